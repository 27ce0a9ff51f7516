"""`viaduct plan` as a user runs it: from given rates, from a file, and what is refused."""

import json

import pytest

from jobs.cli import main
from jobs.plan.rates import Calibration, Rates
from jobs.recipes import RECIPES

GIVEN = (
    *("--gpu-tflops", "200", "--encoder-share", "0.5", "--train-share", "0.4"),
    *("--ingest-per-s", "50", "--curate-per-s", "200", "--decode-per-s", "100"),
    *("--picture-bytes", "30000"),
)
RATES = Rates(
    core_gflops=50,
    encoder_share=0.8,
    train_share=0.5,
    ingest_per_s=50,
    curate_per_s=200,
    decode_per_s=100,
    picture_bytes=30_000,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def planned(capsys):
    """Plans, and returns what the JSON says."""

    def run(*options: str):
        capsys.readouterr()
        assert main(["plan", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_the_papers_run_by_given_rates(planned):
    paper = ("--recipe", "blip2-vit-g-opt-2.7b", "--pairs", "129000000", "--gpus", "16")
    plan = planned(*paper, "--cores", "256", *GIVEN, "--usd-per-gpu-hour", "2")
    steps = {step["name"]: step for step in plan["steps"]}
    tokens = 257 * 1408 * 2
    assert steps["features"]["write_bytes"] == 129_000_000 * tokens
    assert steps["train-stage1"]["read_bytes"] == 250_000 * 1680 * tokens
    assert steps["train-stage2"]["pictures"] == 80_000 * 1920
    flops = plan["counted"]["encoder"]["flops"]
    hours = 129_000_000 * flops / (16 * 200e12 * 0.5) / 3600
    assert steps["features"]["hours"] == pytest.approx(hours)
    assert steps["features"]["usd"] == pytest.approx(hours * 16 * 2)
    assert plan["hours"] == pytest.approx(sum(step["hours"] for step in plan["steps"]))
    assert plan["caching"]["passes"] == (250_000 * 1680 + 80_000 * 1920) / 129_000_000
    assert plan["counted"]["stage1"]["parameters"] == 186_705_470


def test_the_demos_run_from_a_file_of_rates(planned, refused, capsys, caplog):
    Calibration(rates=RATES, device="cpu", encoder="timm:x", measured={}).write("rates.json")
    demo = ("--recipe", "demo", "--pairs", "2500")
    plan = planned(*demo, "--cores", "2", "--train-share", "0.25")  # overrides the file's
    assert plan["rates"]["core_gflops"] == 50
    assert "encoder_share is that of timm:x, not of offline:efficientnet_lite0" in caplog.text
    assert plan["counted"]["token_bytes"] == 49 * 1280 * 2
    train = plan["steps"][3]
    assert train["pictures"] == 280 * 96
    flops = 280 * 96 * plan["counted"]["stage1"]["flops"]
    assert train["hours"] == pytest.approx(flops / (2 * 50e9 * 0.25) / 3600)

    assert main(["plan", *demo, "--cores", "2"]) == 0
    text = capsys.readouterr().out
    assert "train-stage2" in text
    assert "313.6 MB" in text  # 2,500 times 49 x 1280 values of two bytes
    assert "USD" not in text  # no price was given

    # What a CPU reaches of its peak says nothing of a GPU.
    line = refused("plan", *demo, "--gpus", "1", "--gpu-tflops", "100")
    assert "give --encoder-share, --train-share, or measure" in line


def test_recipes_plan_the_run_that_they_train():
    planned = {name: recipe for name, recipe in RECIPES.items() if "plan" in recipe}
    # The parts of a demo that go on from its stage 1 are trainings, no whole runs.
    assert RECIPES.keys() - planned.keys() == {"demo-captioner", "demo-judge"}
    for name, recipe in planned.items():
        stage1, stage2, plan = (recipe[c] for c in ("train-stage1", "train-stage2", "plan"))
        assert plan["encoder"] == recipe["features"]["encoder"], name
        assert plan.get("views") == recipe["features"].get("views")
        assert plan.get("dtype") == recipe["features"].get("dtype")
        assert plan["stage1_steps"] == stage1["steps"]
        assert plan["stage1_batch_size"] == stage1["batch_size"]
        assert plan["stage2_steps"] == stage2["steps"]
        assert plan["stage2_batch_size"] == stage2["batch_size"]
        assert plan["language_model"] == stage2["language_model"]
        assert plan["num_queries"] == stage1["num_queries"]


def test_what_cannot_be_planned_is_one_line(refused, here):
    assert "pairs: how many pictures?" in refused("plan")
    assert "pairs: 0 is not positive" in refused("plan", "--pairs", 0)
    assert "give --core-gflops, or" in refused("plan", "--recipe", "demo", "--pairs", 10, *GIVEN)
    assert "train_share: 1.5 is more than 1" in refused("plan", "--pairs", 1, "--train-share", 1.5)
    (here / "rates.json").write_text("[]")
    assert "rates.json: is no file of rates" in refused("plan", "--pairs", 10, "--recipe", "demo")


def test_a_file_of_rates_round_trips(here):
    written = Calibration(rates=RATES, device="cpu", encoder="timm:x", measured={"threads": 2})
    written.write("there.json")
    assert Calibration.read("there.json") == written
    assert Calibration.read("nowhere.json") is None
    assert written.rates_for(on_gpus=False) == RATES
    assert written.rates_for(on_gpus=True).encoder_share is None
    assert written.rates_for(on_gpus=True).decode_per_s == 100
