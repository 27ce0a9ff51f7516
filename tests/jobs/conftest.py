"""What the tests of jobs share: features of small pictures, a tiny training, ranks in process."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import psutil
import pyarrow.fs as pafs
import pytest
import torch
from ray._private.authentication import authentication_token_setup
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from jobs import train_stage1
from jobs.cli import main
from pipeline.lineage import canonical_digest

NUM_PICTURES = 72
VIT = ("--encoder", "timm:vit_tiny_patch16_224", "--weights", "random")
SIZE = ("--num-queries", 4, "--embed-dim", 8, "--max-text-tokens", 12)
SHORT = (
    *("--threads", 1, "--device", "cpu"),
    *("--steps", 12, "--batch-size", 8, "--warmup-steps", 2, "--learning-rate", 2e-3),
    *("--log-every", 1, "--validate-every", 4, "--checkpoint-every", 4),
    *("--itm-joins-at", 0.4, "--itm-hardens-until", 0.7),
)
"""A training of stage 1 for tests: with dropout, and ITM joins after the first checkpoint."""


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Runs a command that must fail with exit code 2 and one line; returns the line."""

    def refused(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("viaduct")]
        assert len(lines) == 1
        assert "Traceback" not in out + err
        return lines[0]

    return refused


# Data and models


@pytest.fixture(scope="session")
def data(tmp_path_factory, ray_session, draw_folder) -> Path:
    """`raw`, `pairs` and `features` of 72 pictures, in shards of 20; not to be changed."""
    home = tmp_path_factory.mktemp("data")
    draw_folder(home / "source", NUM_PICTURES)
    run("ingest", home / "source", "--out", home / "raw")
    shares = ("--validation-share", 0.2, "--test-share", 0.2)
    run("curate", home / "raw", "--out", home / "pairs", "--shard-rows", 20, *shares)
    run("features", home / "pairs", "--out", home / "features", *VIT)
    return home


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """A BERT of two layers, 32 wide, whose tokenizer knows numbers, as a hub has it."""
    folder = tmp_path_factory.mktemp("bert") / "bert"
    words = ["picture", "number", "of", *"0123456789", *(f"##{digit}" for digit in range(10))]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: number for number, word in enumerate(special + words)}
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "max_position_embeddings": 32}
    BertForMaskedLM(BertConfig(vocab_size=len(vocabulary), **size)).save_pretrained(folder)
    made = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    BertTokenizerFast(tokenizer_object=made._tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stage1_command(data, bert_folder) -> Callable[..., list[object]]:
    """The command of a short training of stage 1: `stage1_command(out, *options)`."""

    def command(out: Path, *options: object) -> list[object]:
        where = ("--features", data / "features", "--captions", data / "pairs", "--out", out)
        start = ("--start", f"hf:{bert_folder}", *SIZE)
        return ["train-stage1", *where, *start, *SHORT, *options]

    return command


@pytest.fixture(scope="session")
def tune_command(data, unbroken) -> Callable[..., list[object]]:
    """The same command from the checkpoint of another training: `tune_command(out, *options)`."""

    def command(out: Path, *options: object) -> list[object]:
        where = ("--features", data / "features", "--captions", data / "pairs", "--out", out)
        return ["train-stage1", *where, "--init", unbroken, *SHORT, *options]

    return command


def save_number_tokenizer(folder: Path, template: str) -> int:
    """A byte-level tokenizer that knows the captions; `</s>` is 0, `<pad>` 1. Its size."""
    learner = ByteLevelBPETokenizer()
    texts = [f"picture number {number} picture of {number}" for number in range(NUM_PICTURES)]
    special = ["</s>", "<pad>"]
    learner.train_from_iterator(texts, vocab_size=300, special_tokens=special, show_progress=False)
    backend = learner._tokenizer
    backend.post_processor = TemplateProcessing(single=template, special_tokens=[("</s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


@pytest.fixture(scope="session")
def language_folder(tmp_path_factory) -> Path:
    """A Llama of two layers, 16 wide, with a byte-level tokenizer, as a hub has it."""
    folder = tmp_path_factory.mktemp("language") / "llama"
    size = {"vocab_size": save_number_tokenizer(folder, "$A"), "hidden_size": 16}
    size |= {"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A T5 of two layers, 16 wide, whose tokenizer ends each text, as a hub has it."""
    folder = tmp_path_factory.mktemp("language") / "t5"
    size = {"vocab_size": save_number_tokenizer(folder, "$A </s>"), "d_model": 16, "d_kv": 8}
    size |= {"d_ff": 24, "num_layers": 2, "num_heads": 2}
    size |= {"pad_token_id": 1, "eos_token_id": 0, "decoder_start_token_id": 1}
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**size)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stage2_command(data, unbroken, language_folder) -> Callable[..., list[object]]:
    """The command of a short training of stage 2: `stage2_command(out, *options)`."""

    def command(out: Path, *options: object) -> list[object]:
        where = ("--features", data / "features", "--captions", data / "pairs", "--out", out)
        return [
            *("train-stage2", "--checkpoint", unbroken, *where),
            *("--language-model", f"hf:{language_folder}", "--max-language-tokens", 24),
            *("--steps", 8, "--batch-size", 8, "--warmup-steps", 2, "--learning-rate", 5e-3),
            *("--log-every", 1, "--validate-every", 4, "--checkpoint-every", 4),
            *("--threads", 1, "--device", "cpu", *options),
        ]

    return command


@pytest.fixture(scope="session")
def stage2(tmp_path_factory, stage2_command, rank_here) -> Path:
    """The folder of a short training of stage 2, with a prompt; not to be changed."""
    out = tmp_path_factory.mktemp("stage2") / "stage2"
    with rank_here():
        run(*stage2_command(out, "--prompt", "picture"))
    return out


@pytest.fixture
def rename_encoder() -> Callable[[Path], None]:
    """Has a dataset of features say that another encoder made it."""

    def rename(home: Path) -> None:
        """Have a dataset of features say that another encoder made it."""
        file = home / "dataset.json"
        manifest = json.loads(file.read_text())
        manifest["lineage"]["frozen"]["encoder"]["name"] = "timm:other"
        content = {name: v for name, v in manifest.items() if name not in ("format", "digest")}
        for shard in content["shards"]:
            for entry in (shard, *shard["attachments"].values()):
                entry.pop("file")
        digest = canonical_digest(content)
        manifest = json.loads(file.read_text())
        manifest["lineage"]["frozen"]["encoder"]["name"] = "timm:other"
        file.write_text(json.dumps(manifest | {"digest": digest}))

    return rename


# Commands

Value = TypeVar("Value")


class Command:
    """A command in a process of its own, whose output is the file `log`."""

    PATIENCE_S = 600

    def __init__(self, log: Path, words: list[str]) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = psutil.Popen(
                words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._known: set[psutil.Process] = set()

    def descendants(self) -> set[psutil.Process]:
        """All processes below it, those too that it had when this was asked before."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._known |= set(self.process.children(recursive=True))
        return self._known

    def wait_until(self, true: Callable[[], Value]) -> Value:
        """Wait for something to be true before the command ends; returns it."""
        deadline = time.monotonic() + self.PATIENCE_S
        while not (value := true()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)
        return value

    def ends_well(self) -> None:
        """Wait for its end, which must be a good one."""
        assert self.process.wait(timeout=self.PATIENCE_S) == 0, self.log.read_text()

    def kill(self) -> None:
        """It and nothing below it."""
        self.process.kill()
        self.process.wait()

    def clear_away(self) -> None:
        """Kill it and whatever it left behind."""
        for process in {self.process, *self.descendants()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def started() -> Callable[..., contextlib.AbstractContextManager[Command]]:
    """Starts a command of its own: `with started(log, *arguments) as job:`."""
    viaduct = Path(sys.executable).with_name("viaduct")

    @contextlib.contextmanager
    def started(log: Path, *arguments: object) -> Iterator[Command]:
        job = Command(log, [str(viaduct), *map(str, arguments)])
        try:
            yield job
        finally:
            job.clear_away()

    return started


# Clusters


@pytest.fixture(scope="session")
def ray_token() -> None:
    """The user's token, which clusters ask everybody for; `viaduct` and Ray's client find it."""
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([ray, "get-auth-token", "--generate"], check=True, capture_output=True)
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """So many ports of loopback that are free: `free_ports(count)`."""

    def free_ports(count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]

    return free_ports


# Places


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket on loopback: its filesystem, and the URI of what is in it by name."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}%3A{port}&scheme=http&region=us-east-1"
    uri = f"s3://key:secret@bucket{{}}?{options}"
    fs, _ = pafs.FileSystem.from_uri(uri.format("") + "&allow_bucket_creation=true")
    fs.create_dir("bucket")
    yield fs, lambda name: uri.format(f"/{name}")
    server.stop()


# Ranks


class _TrainerHere:
    """In place of Ray Train's: one rank, in this process, from what would be pickled to it."""

    def __init__(self, loop: Callable, *, train_loop_config: dict, **_: object) -> None:
        from ray import cloudpickle

        self._loop, self._config = cloudpickle.loads(cloudpickle.dumps((loop, train_loop_config)))

    def fit(self) -> None:
        from ray.train import WorkerGroupError

        try:
            self._loop(self._config)
        except Exception as error:
            raise WorkerGroupError(str(error), {0: error}) from error


@pytest.fixture(scope="session")
def rank_here() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Within `with rank_here():` a training has one rank, in this process: that takes a second."""

    @contextlib.contextmanager
    def here() -> Iterator[None]:
        threads = torch.get_num_threads()
        filled = torch.utils.deterministic.fill_uninitialized_memory
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ray.train.torch.TorchTrainer", _TrainerHere)
            patch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
            try:
                yield
            finally:
                torch.set_num_threads(threads)
                torch.use_deterministic_algorithms(False)
                torch.utils.deterministic.fill_uninitialized_memory = filled

    return here


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, stage1_command, rank_here) -> Path:
    """The folder of a short training of stage 1 that nothing disturbed; not to be changed."""
    out = tmp_path_factory.mktemp("unbroken") / "stage1"
    with rank_here():
        run(*stage1_command(out))
    return out


@pytest.fixture(scope="session")
def searchable(tmp_path_factory, data, unbroken) -> Path:
    """An index of 72 small pictures with their captions, by `unbroken`; not to be changed."""
    home = tmp_path_factory.mktemp("searchable")
    where = ("--features", data / "features", "--captions", data / "pairs")
    run("embed", "--checkpoint", unbroken, *where, "--out", home / "embeddings")
    made = ("--pairs", data / "pairs", "--checkpoint", unbroken)
    run("index", home / "embeddings", *made, "--out", home / "index")
    return home / "index"


@pytest.fixture(scope="session")
def other(tmp_path_factory, stage1_command, rank_here) -> Path:
    """A stage 1 that was trained from another seed than `unbroken`, as a judge should be."""
    out = tmp_path_factory.mktemp("other") / "stage1"
    with rank_here():
        run(*stage1_command(out, "--seed", 1, "--steps", 2))
    return out


@pytest.fixture(scope="session")
def embeddings(tmp_path_factory, data, unbroken) -> Path:
    """`image_embeddings` and `text_embeddings` of all pictures; not to be changed."""
    out = tmp_path_factory.mktemp("answers") / "embeddings"
    run(
        *("embed", "--checkpoint", unbroken, "--out", out),
        *("--features", data / "features", "--captions", data / "pairs"),
    )
    return out


@pytest.fixture
def disturb(monkeypatch) -> Callable:
    """Has something done in a rank before the losses of a step: `disturb(step, what)`.

    Everything is a local name: it travels to ranks in other processes by value.
    """

    def disturb(step: int, what: Callable[[], None]) -> None:
        class Disturbed(train_stage1.Stage1Learner):
            def losses(self, module, batch, at):
                if at == step:
                    what()
                return super().losses(module, batch, at)

        monkeypatch.setattr(train_stage1, "Stage1Learner", Disturbed)

    return disturb


@pytest.fixture
def stop_at(disturb) -> Callable[[int], None]:
    """Has a training stopped before the losses of a step, as by Ctrl-C: `stop_at(step)`."""

    def stop_at(step: int) -> None:
        def stop() -> None:
            raise KeyboardInterrupt

        disturb(step, stop)

    return stop_at


@pytest.fixture
def no_ranks(monkeypatch) -> None:
    """Whoever starts ranks fails."""

    def fails(*_, **__):
        raise AssertionError("ranks were started")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", fails)


# What a training leaves


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict]]:
    """The lines of a training's metrics.jsonl."""
    return lambda folder: read_lines(folder / "metrics.jsonl")


def read_lines(file: Path) -> list[dict]:
    """Of JSON; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="session")
def steps_of() -> Callable[[Path], list[str]]:
    """The checkpoints of a training folder."""
    return lambda folder: sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


TIMES = ("step_s", "pairs_per_s", "data_wait_s", "time_left_s")


@pytest.fixture(scope="session")
def read_training() -> Callable[[Path], SimpleNamespace]:
    """What of a training must not depend on what became of it on its way."""

    def read(folder: Path) -> SimpleNamespace:
        """`lines` of metrics without times, `captions`, `best` checkpoint, and `digest`."""
        lines = read_lines(folder / "metrics.jsonl")
        lasting = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
        captions = read_lines(folder / "validation_captions.jsonl")
        best = json.loads((folder / "checkpoints" / "best.json").read_text())
        digest = json.loads((folder / "checkpoint.json").read_text())["digest"]
        return SimpleNamespace(lines=lasting, captions=captions, best=best, digest=digest)

    return read
