"""Ingest, curate and features one after the other, as a user runs them."""

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs.cli import main
from pipeline.accounting import Account
from pipeline.dataset import Dataset, check_side_by_side
from pipeline.token_reader import TokenReader, has_tokens
from pipeline.tombstones import add_tombstones
from pipeline.verify import verify
from pipeline.views import open_views

pytestmark = pytest.mark.usefixtures("ray_session")

VIT = ["--encoder", "timm:vit_small_patch16_224", "--weights", "random", "--batch-size", "4"]
CNN = ["--encoder", "offline:efficientnet_lite0", "--batch-size", "4"]


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory, ray_session, draw_folder):
    """Thirty pictures, four of them duplicates, through ingest and curate, in three shards."""
    home = tmp_path_factory.mktemp("made")
    draw_folder(home / "source", 30)
    run("ingest", home / "source", "--out", home / "raw", "--shard-rows", 8)
    run("curate", home / "raw", "--out", home / "pairs", "--shard-rows", 10)
    return home


@pytest.fixture
def pairs(tmp_path, made) -> Dataset:
    """A copy of these pairs for one test, with the raw that they were made of."""
    for name in ("raw", "pairs"):
        shutil.copytree(made / name, tmp_path / name)
    return Dataset.open(str(tmp_path / "pairs"))


def test_every_row_of_a_url_table_is_in_the_ledger(tmp_path, make_folder, serve):
    folder = make_folder(20)
    (folder / "images" / "0003.png").unlink()
    (folder / "images" / "0004.png").write_text("<html>not here</html>")
    whole = (folder / "images" / "0005.png").read_bytes()
    (folder / "images" / "0005.png").write_bytes(whole[: len(whole) // 2])
    address = serve(folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    table = tmp_path / "urls.jsonl"
    lines = [{"url": f"{address}/{r['file']}", "captions": r["captions"]} for r in rows]
    lines.append({"url": "file:///etc/passwd", "captions": ["secret"]})
    lines.append({"url": None, "captions": None})
    lines.append({"url": address.replace("127.0.0.1", "127.0.0.2"), "captions": []})
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))

    here = ("--allow-host", "127.0.0.1")
    run("ingest", table, "--out", tmp_path / "raw", "--shard-rows", 8, *here)

    raw = Dataset.open(str(tmp_path / "raw"), "raw")
    expected = {
        "failed:bad_scheme": 1,
        "failed:bad_url": 1,
        "failed:blocked_address": 1,
        "failed:http_404": 1,
        "failed:not_a_picture": 1,
        "failed:truncated": 1,
    }
    assert raw.manifest.pictures == Account(23, 17, expected)
    num_captions = sum(len(line["captions"] or []) for line in lines)
    assert raw.manifest.captions.num_in == num_captions
    in_raw = sum(len(row["captions"]) for s in raw.shards() for row in s.table.to_pylist())
    assert raw.manifest.captions.num_kept == in_raw
    ledger = [row for n in raw.records for row in raw.attachment(n, "ledger").to_pylist()]
    assert [row["source_row"] for row in ledger] == list(range(23))
    assert [row["url"] for row in ledger] == [line["url"] or "" for line in lines]
    assert ledger[4]["outcome"] == "failed:not_a_picture"
    assert ledger[20]["outcome"] == "failed:bad_scheme"
    kept = [row["uid"] for row in ledger if row["outcome"] == "kept"]
    arrived = [uid for shard in raw.shards() for uid in shard.table.column("uid").to_pylist()]
    assert arrived == kept
    assert list(verify(raw)) == []
    assert not (tmp_path / "raw" / ".work").exists()


def test_equal_pictures_are_united_with_their_captions_and_shards_are_even(pairs):
    assert pairs.manifest.pictures == Account(30, 26, {"duplicate": 4})
    assert [record.entry.rows for record in pairs.manifest.records] == [8, 9, 9]
    assert list(verify(pairs)) == []
    rows = [row for shard in pairs.shards() for row in shard.table.to_pylist()]
    by_url = {row["url"]: row for row in rows}
    assert "images/0006.png" not in by_url
    # Picture 13 is picture 12 again; 12 has no caption, and 13 one of its own.
    texts = [(c["text"], c["status"]) for c in by_url["images/0012.png"]["captions"]]
    assert texts == [("picture number 13", "kept")]
    texts = [(c["text"], c["status"]) for c in by_url["images/0003.png"]["captions"]]
    assert texts == [
        ("picture number 3", "kept"),
        ("picture of 3", "kept"),
        ("", "rejected:empty"),
    ]
    assert {row["split"] for row in rows} <= {"train", "validation", "test"}


def test_curate_takes_several_raws_and_the_first_keeps_a_uid(tmp_path, make_folder):
    a, b = make_folder(6, "a"), make_folder(5, "b")
    # The same path in both, but another picture.
    (b / "images" / "0002.png").write_bytes((a / "images" / "0005.png").read_bytes())
    run("ingest", a, "--out", tmp_path / "raw-a")
    run("ingest", b, "--out", tmp_path / "raw-b")
    run("curate", tmp_path / "raw-a", tmp_path / "raw-b", "--out", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    assert pairs.manifest.pictures == Account(11, 6, {"duplicate": 4, "uid_taken": 1})
    assert pairs.manifest.captions.dropped["picture:uid_taken"] == 2
    assert list(verify(pairs)) == []


def test_pictures_that_are_alike_are_united_and_those_of_an_evaluation_set_left_out(tmp_path):
    def draw(number: int) -> Image.Image:
        rng = np.random.default_rng(number)
        pixels = np.zeros((200, 300, 3), np.uint8)
        for top, left in rng.integers(0, 200, (60, 2)):
            pixels[top : top + 50, left : left + 70] = rng.integers(0, 256, 3)
        return Image.fromarray(pixels)

    def source(name: str, pictures: list[Image.Image]) -> Path:
        (tmp_path / name / "images").mkdir(parents=True)
        lines = []
        for number, picture in enumerate(pictures):
            file = f"images/{name}-{number}.png"
            picture.save(tmp_path / name / file)
            lines.append(json.dumps({"file": file, "caption": f"{name} {number}"}))
        (tmp_path / name / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        return tmp_path / name

    small = draw(1).resize((150, 100), Image.Resampling.BICUBIC)
    run("ingest", source("web", [small, draw(1), draw(2), draw(3)]), "--out", tmp_path / "raw")
    held_out = draw(3).resize((240, 160), Image.Resampling.BICUBIC)
    run("ingest", source("held-out", [held_out]), "--out", tmp_path / "raw-held-out")
    run("curate", tmp_path / "raw-held-out", "--out", tmp_path / "held-out-pairs")
    command = ["curate", tmp_path / "raw", "--evaluation", tmp_path / "held-out-pairs"]
    run(*command, "--out", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    assert pairs.manifest.pictures == Account(4, 2, {"evaluation_leak": 1, "near_duplicate": 1})
    assert list(verify(pairs)) == []
    rows = pairs.shard(0).table.to_pylist()
    assert [row["url"] for row in rows] == ["images/web-1.png", "images/web-2.png"]
    assert [c["text"] for c in rows[0]["captions"]] == ["web 1", "web 0"]
    parents = [parent.digest for parent in pairs.manifest.lineage.parents]
    held_out_digest = Dataset.open(str(tmp_path / "held-out-pairs")).digest
    assert held_out_digest not in parents
    assert pairs.manifest.lineage.config["evaluation"] == [held_out_digest]
    work = tmp_path / "pairs" / ".work"
    for name, hashed in (("hashes", {"captions"}), ("evaluation", set())):  # nobody counts those
        assert Dataset.open(str(work / name)).records[0].attachments.keys() == hashed

    run(*command, "--near-duplicates", "ignore", "--out", tmp_path / "all")
    assert Dataset.open(str(tmp_path / "all")).manifest.pictures == Account(4, 4, {})


def test_an_evaluation_set_without_pictures_is_refused(tmp_path, made, capsys):
    work = made / "pairs" / ".work" / "plan"
    command = ["curate", made / "raw", "--out", tmp_path / "p", "--evaluation", work]
    assert main([str(word) for word in command]) == 2
    assert "holds 'plan', which has no pictures" in capsys.readouterr().err


def test_what_was_taken_down_from_raw_does_not_reach_pairs(tmp_path, make_folder):
    run("ingest", make_folder(5), "--out", tmp_path / "raw")
    raw = Dataset.open(str(tmp_path / "raw"))
    uid = raw.shard(0).table.column("uid")[2].as_py()
    add_tombstones(raw.folder, [uid])
    run("curate", tmp_path / "raw", "--out", tmp_path / "pairs")
    pairs = Dataset.open(str(tmp_path / "pairs"))
    assert pairs.manifest.pictures == Account(5, 4, {"taken_down": 1})
    assert uid not in pairs.shard(0).table.column("uid").to_pylist()


@pytest.mark.parametrize(
    ("encoder", "shape"), [pytest.param(VIT, [197, 384], marks=pytest.mark.slow), (CNN, [49, 1280])]
)
def test_features_lie_beside_pairs_and_do_not_depend_on_the_shards(tmp_path, pairs, encoder, shape):
    run("features", tmp_path / "pairs", "--out", tmp_path / "features", *encoder)
    features = Dataset.open(str(tmp_path / "features"), "features")
    check_side_by_side(pairs, features)
    assert list(verify(features)) == []
    assert features.shard(0).table.schema.field("tokens").type.shape == shape
    assert features.manifest.lineage.parents == (pairs.as_parent,)
    assert features.manifest.lineage.frozen["encoder"]["num_tokens"] == shape[0]
    run("inspect", tmp_path / "features", "--beside", tmp_path / "pairs")
    tokens = features.shard(0).table.column("tokens").combine_chunks().to_numpy_ndarray()
    assert np.isfinite(tokens.astype(np.float32)).all()
    assert tokens.astype(np.float32).std() > 0.01

    run("features", tmp_path / "pairs", "--out", tmp_path / "again", *encoder, "--workers", 1)
    assert Dataset.open(str(tmp_path / "again")).digest == features.digest


@pytest.mark.slow
def test_bf16_features_are_the_fp16_ones_rounded_otherwise(tmp_path, pairs):
    arrays = {}
    for dtype in ("fp16", "bf16"):
        run("features", tmp_path / "pairs", "--out", tmp_path / dtype, *VIT, "--dtype", dtype)
        table = Dataset.open(str(tmp_path / dtype)).shard(0).table
        arrays[dtype] = table.column("tokens").combine_chunks().to_numpy_ndarray()
    as_fp32 = (arrays["bf16"].astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_allclose(as_fp32, arrays["fp16"].astype(np.float32), rtol=2**-7, atol=1e-3)


@pytest.mark.slow
def test_int8_features_are_those_of_fp16_to_a_part_of_each_channels_spread(tmp_path, pairs):
    add_tombstones(pairs.folder, [pairs.shard(1).table.column("uid")[3].as_py()])
    tokens = {}
    for dtype in ("fp16", "int8"):
        run("features", tmp_path / "pairs", "--out", tmp_path / dtype, *CNN, "--dtype", dtype)
        features = Dataset.open(str(tmp_path / dtype))
        check_side_by_side(pairs, features)
        assert list(verify(features)) == []
        here = np.flatnonzero(has_tokens(features.shard(1))).tolist()
        assert 3 not in here
        tokens[dtype] = TokenReader(features).read([(1, row) for row in here]).astype(np.float32)
    spread = tokens["fp16"].std(axis=(0, 1))
    error = np.sqrt(np.square(tokens["int8"] - tokens["fp16"]).mean(axis=(0, 1)))
    assert 1e-3 < np.median(error / np.maximum(spread, 1e-3)) < 2e-2
    config = features.manifest.lineage.config
    assert (config["dtype"], config["calibration_pictures"]) == ("int8", 256)

    # The channels are found out once: another run goes on with them.
    command = ["features", tmp_path / "pairs", "--out", tmp_path / "int8", *CNN, "--dtype", "int8"]
    (tmp_path / "int8" / "00001.json").unlink()
    told = tmp_path / "int8" / ".channels.json"
    before = told.stat().st_mtime_ns
    run(*command)
    assert told.stat().st_mtime_ns == before
    assert Dataset.open(str(tmp_path / "int8")).digest == features.digest
    command[command.index("int8", 5)] = "fp16"
    assert main([str(word) for word in command]) == 2


@pytest.mark.slow
def test_views_are_datasets_of_their_own_and_of_the_same_pictures(tmp_path, pairs, capsys):
    command = ["features", tmp_path / "pairs", *CNN, "--out", tmp_path / "F"]
    run(*command, "--views", 3)
    views = open_views(str(tmp_path / "F"))
    assert [v.manifest.lineage.config.get("min_area") for v in views] == [None, 0.5, 0.5]
    check_side_by_side(pairs, *views)
    digests = [view.digest for view in views]
    tables = [view.shard(0).table.column("tokens").combine_chunks() for view in views]
    assert not any(a.equals(b) for a, b in itertools.combinations(tables, 2))

    run("features", tmp_path / "pairs", *CNN, "--out", tmp_path / "one")
    one = Dataset.open(str(tmp_path / "one"))
    assert "view" not in one.manifest.lineage.config
    assert one.shard(0).table.equals(views[0].shard(0).table)

    # A lost shard of one view comes back as it was, whoever makes it, and views can be added.
    (tmp_path / "F" / "view-2" / "00001.json").unlink()
    run(*command, "--views", 4, "--workers", 1)
    views = open_views(str(tmp_path / "F"))
    assert [view.digest for view in views[:3]] == digests
    assert len(views) == 4

    for options, out in (((), "F"), (("--views", 2), "one")):
        capsys.readouterr()
        words = ["features", tmp_path / "pairs", *CNN, "--out", tmp_path / out, *options]
        assert main([str(word) for word in words]) == 2
        assert "choose another" in capsys.readouterr().err


def test_features_of_a_picture_taken_down_are_null_and_its_row_stays(tmp_path, pairs):
    uid = pairs.shard(1).table.column("uid")[3].as_py()
    add_tombstones(pairs.folder, [uid])
    run("features", tmp_path / "pairs", "--out", tmp_path / "features", *VIT)
    features = Dataset.open(str(tmp_path / "features"))
    check_side_by_side(pairs, features)
    valid = features.shard(1).table.column("tokens").is_valid().to_pylist()
    assert valid == [row != 3 for row in range(len(valid))]


def test_the_same_command_again_finds_everything_done(tmp_path, make_folder):
    folder = make_folder(10)
    for _ in range(2):
        run("ingest", folder, "--out", tmp_path / "raw", "--shard-rows", 4)
        run("curate", tmp_path / "raw", "--out", tmp_path / "pairs")
    runs = json.loads((tmp_path / "raw" / "run.json").read_text())["runs"]
    assert len(runs) == 1


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, make_folder, capsys):
    folder = make_folder(10)
    run("ingest", folder, "--out", tmp_path / "raw")
    digest = Dataset.open(str(tmp_path / "raw")).digest
    assert (
        main(["ingest", str(folder), "--out", str(tmp_path / "raw"), "--short-side-px", "9"]) == 2
    )
    assert "config.short_side_px: 256 there, 9 now" in capsys.readouterr().err
    assert Dataset.open(str(tmp_path / "raw")).digest == digest


def test_a_changed_source_is_refused(tmp_path, make_folder, capsys):
    folder = make_folder(10)
    run("ingest", folder, "--out", tmp_path / "raw")
    with (folder / "pairs.jsonl").open("a") as file:
        file.write('{"file": "images/0000.png", "captions": []}\n')
    assert main(["ingest", str(folder), "--out", str(tmp_path / "raw")]) == 2
    assert "was begun otherwise (parents.0.digest" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_shard_is_named_and_the_rest_is_kept(tmp_path, pairs, capsys):
    file = tmp_path / "pairs" / "00001.arrow"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    command = ["features", tmp_path / "pairs", "--out", tmp_path / "features", *VIT]
    assert main([str(word) for word in command]) == 2
    assert "00001.arrow: damaged" in capsys.readouterr().err
    made = {path.name for path in (tmp_path / "features").glob("0*.arrow")}
    assert made == {"00000.arrow", "00002.arrow"}

    # Removed and rebuilt by its own job, then features goes on.
    file.unlink()
    run("curate", tmp_path / "raw", "--out", tmp_path / "pairs", "--shard-rows", 10)
    run(*command)
    assert Dataset.open(str(tmp_path / "features")).num_rows == 26


def test_a_published_dataset_may_lack_what_was_set_aside(tmp_path, pairs):
    (tmp_path / "pairs" / "00001.arrow").write_bytes(b"")
    command = ["features", tmp_path / "pairs", "--out", tmp_path / "features", *VIT]
    run(*command, "--publish-incomplete")
    features = Dataset.open(str(tmp_path / "features"))
    assert list(features.records) == [0, 2]
    assert features.manifest.pictures == Account(26, 17, {"set_aside": 9})


def test_unknown_encoders_and_weights_are_one_line(tmp_path, pairs, capsys):
    wrong = {
        "timm has no 'vit_tiny_patch16_225'; did you mean": ["timm:vit_tiny_patch16_225"],
        "is neither timm:NAME, hf:NAME_OR_FOLDER nor offline": ["magic"],
        "is neither pretrained, random nor an existing": ["timm:resnet18", "--weights", "x.pth"],
        "layer: -99, but the encoder has 12 blocks": [*VIT[1:], "--layer", "-99"],
    }
    for message, options in wrong.items():
        command = ["features", tmp_path / "pairs", "--out", tmp_path / "f", "--encoder", *options]
        assert main([str(word) for word in command]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_inspect_shows_verifies_and_writes_pictures_that_ingest_reads(tmp_path, pairs, capsys):
    capsys.readouterr()
    run("inspect", tmp_path / "pairs", "--verify")
    text = capsys.readouterr().out
    assert "duplicate        4" in text
    assert pairs.digest in text
    assert f"verified: {pairs.num_bytes:,} bytes in 3 shards" in text

    run("inspect", tmp_path / "pairs", "--pictures", tmp_path / "look", "--num-pictures", 5)
    assert len(list((tmp_path / "look").glob("*.jpg"))) == 5
    run("ingest", tmp_path / "look", "--out", tmp_path / "raw-again")
    assert Dataset.open(str(tmp_path / "raw-again")).num_rows == 5

    capsys.readouterr()
    run("inspect", tmp_path / "pairs", "--json")
    assert json.loads(capsys.readouterr().out)["pictures"]["kept"] == 26


def test_inspect_verify_names_a_damaged_shard(tmp_path, pairs, capsys):
    (tmp_path / "pairs" / "00002.arrow").unlink()
    assert main(["inspect", str(tmp_path / "pairs"), "--verify"]) == 2
    assert "00002.arrow: is missing" in capsys.readouterr().err


def test_a_reader_written_from_the_format_page_alone_agrees(tmp_path, pairs):
    """docs/data-format.md, followed with json, hashlib and pyarrow and nothing of ours."""
    home = tmp_path / "pairs"
    manifest = json.loads((home / "dataset.json").read_text())
    content = {key: value for key, value in manifest.items() if key not in ("format", "digest")}
    for shard in content["shards"]:
        for entry in (shard, *shard["attachments"].values()):
            file = entry.pop("file")
            data = (home / file).read_bytes()
            assert entry["bytes"] == len(data)
            assert entry["digest"] == hashlib.sha256(data).hexdigest()
            table = pa.ipc.open_file(pa.memory_map(str(home / file))).read_all()
            uids = b"".join(table["uid"].to_pylist())
            assert entry["uid_digest"] == hashlib.sha256(uids).hexdigest()
            for row in table.to_pylist():
                assert row["uid"] == hashlib.sha256(row["url"].encode()).digest()[:16]
        for account in (shard["pictures"], shard["captions"]):
            assert account["in"] == account["kept"] + sum(account["dropped"].values())
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert manifest["digest"] == hashlib.sha256(canonical.encode()).hexdigest()


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_curate_without_a_damaged_shard_of_raw_counts_what_it_lacks(tmp_path, pairs):
    damage(tmp_path / "raw" / "00001.arrow")
    lost = Dataset.open(str(tmp_path / "raw")).records[1]
    command = ["curate", tmp_path / "raw", "--out", tmp_path / "again"]
    assert main([str(word) for word in command]) == 2
    run(*command, "--publish-incomplete")
    again = Dataset.open(str(tmp_path / "again"))
    assert again.manifest.pictures.num_in == 30
    assert again.manifest.pictures.dropped["set_aside"] == lost.entry.rows
    assert again.manifest.captions.num_in == pairs.manifest.captions.num_in
    assert again.manifest.captions.dropped["picture:set_aside"] == lost.captions.num_kept


def test_ingest_without_shards_that_took_too_long_counts_their_captions(tmp_path, make_folder):
    command = ["ingest", make_folder(9), "--out", tmp_path / "raw", "--attempts", 1]
    waits = ("--shard-timeout-s", 0.0005, "--total-timeout-s", 0.0005)
    run(*command, *waits, "--deadline-s", 0.001, "--publish-incomplete")
    raw = Dataset.open(str(tmp_path / "raw"))
    assert raw.manifest.pictures == Account(9, 0, {"set_aside": 9})
    assert raw.manifest.captions == Account(12, 0, {"picture:set_aside": 12})


@pytest.mark.slow
def test_a_shard_that_would_be_rebuilt_otherwise_is_refused_each_time(tmp_path, pairs, capsys):
    command = ["features", tmp_path / "pairs", "--out", tmp_path / "features", *VIT]
    run(*command)
    add_tombstones(pairs.folder, [pairs.shard(1).table.column("uid")[0].as_py()])
    (tmp_path / "features" / "00001.arrow").unlink()
    for _ in range(2):
        assert main([str(word) for word in command]) == 2
        assert "two attempts at this shard disagree" in capsys.readouterr().err
        assert not (tmp_path / "features" / "00001.arrow").exists()


def test_sources_from_which_nothing_arrives_end_well(tmp_path):
    (tmp_path / "urls.csv").write_text("url,caption\nftp://x/a.png,one\nnonsense,two\n")
    run("ingest", tmp_path / "urls.csv", "--out", tmp_path / "raw")
    run("curate", tmp_path / "raw", "--out", tmp_path / "pairs")
    run("features", tmp_path / "pairs", "--out", tmp_path / "features", *VIT)
    assert Dataset.open(str(tmp_path / "raw")).manifest.pictures.num_in == 2
    assert Dataset.open(str(tmp_path / "features")).num_rows == 0


def test_inspect_of_an_unfinished_dataset_shows_it_and_verifies_nothing(tmp_path, pairs, capsys):
    (tmp_path / "pairs" / "dataset.json").unlink()
    intent = {"kind": "pairs", "schema": {}, "lineage": {}}
    (tmp_path / "pairs" / ".draft.json").write_text(json.dumps(intent))
    capsys.readouterr()
    run("inspect", tmp_path / "pairs")
    assert "goes on where it stopped" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "pairs"), "--verify"]) == 2
    assert "not finished" in capsys.readouterr().err


def test_datasets_that_do_not_match_are_both_named(tmp_path, pairs, capsys):
    run("curate", tmp_path / "raw", "--out", tmp_path / "other", "--shard-rows", 8)
    command = ["inspect", tmp_path / "pairs", "--beside", tmp_path / "other"]
    assert main([str(word) for word in command]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pairs and " in line
    assert "other do not match: shard 00000 has 8 rows and 6" in line


def test_inspect_as_json_prints_json_alone(tmp_path, pairs, capsys):
    capsys.readouterr()
    run("inspect", tmp_path / "pairs", "--json", "--verify", "--pictures", tmp_path / "look")
    assert json.loads(capsys.readouterr().out)["rows"] == 26
    (tmp_path / "file").touch()
    command = ["inspect", tmp_path / "pairs", "--pictures", tmp_path / "file"]
    assert main([str(word) for word in command]) == 2
