"""Training on several ranks is training on one: losses and gradients, over gloo.

Run as a program, this file is the ranks of `worlds`: what they import is imported once.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from model.language_text import IGNORED
from model.objectives import ObjectivesConfig
from model.pretrained.language import LanguageModel
from model.qformer import QFormerConfig
from model.ranks import alone, anywhere, gathered, mean_over_ranks, num_ranks, rank
from model.stage1 import Stage1, Stage1Batch
from model.stage2 import Stage2, Stage2Batch
from model.tokenizer import CaptionTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTIONS = [
    "the old house by the sea at night, with a light in its window",
    "people wait for a green bus",
    "a plate of food and a glass of water",
    "two dogs run over the grass",
    "a boat",
    "a red boat on a lake",
    "grass",
    "a man",
]
"""Of other lengths on each rank."""

DISTINCT = (list(range(8)), list(range(8)))
DUPLICATES = ([0, 1, 2, 3, 0, 5, 6, 1], [0, 1, 2, 3, 4, 2, 6, 3])
"""Keys of pictures and captions; equal ones lie on different ranks."""
LONELY = ([0, 0, 0, 0, 0, 5, 6, 7], [0, 1, 2, 3, 4, 0, 0, 0])
"""The first pair has no negatives."""
FEW = ([0, 1, 2, 0], [4, 1, 2, 3])
"""Four ranks have one pair each."""
ONE_PICTURE = ([5] * 8, list(range(8)))
"""Nobody has negatives."""


class Case(NamedTuple):
    """Pairs, and how a step has them."""

    keys: tuple[list[int], list[int]]
    hardness: float | None = 1.0
    dtype: torch.dtype = torch.float32
    gradient: bool = True
    with_itg: bool = True
    losses: str = "itc,itm,itg"


CASES = {
    "distinct": Case(DISTINCT),
    "duplicates": Case(DUPLICATES, 0.5, torch.float16),
    "lonely": Case(LONELY, dtype=torch.bfloat16),
    "before ITM": Case(DUPLICATES, None),
    "before ITG": Case(DUPLICATES, with_itg=False),
    "one pair a rank": Case(FEW),
    "one picture": Case(ONE_PICTURE),
    "gathered without gradient": Case(DISTINCT, gradient=False),
    "ITC and ITM": Case(DUPLICATES, losses="itc,itm"),
    "ITM alone": Case(DUPLICATES, 0.0, losses="itm"),
    "ITG alone": Case(DUPLICATES, None, losses="itg"),
}


def load(folder: Path) -> Stage1:
    stored = torch.load(folder / "stage1.pt", weights_only=True)
    tokenizer = CaptionTokenizer.from_json(stored["tokenizer"])
    stage1 = Stage1(QFormerConfig(**stored["config"]), tokenizer)
    stage1.load_state_dict(stored["weights"])
    return stage1.train()


def here(num: int) -> slice:
    """This rank's share of what all ranks have."""
    return slice(rank() * num // num_ranks(), (rank() + 1) * num // num_ranks())


def pairs_of(stage1: Stage1, keys: tuple[list[int], list[int]], dtype: torch.dtype) -> Stage1Batch:
    """This rank's share of the pairs of all ranks, padded to its own longest caption."""
    picture, caption = (torch.tensor(k)[here(len(k))] for k in keys)
    drawn = torch.randn(8, 5, 10, generator=torch.Generator().manual_seed(3))
    texts = [CAPTIONS[c] for c in caption.tolist()]
    return stage1.batch(drawn[picture].to(dtype), texts, picture, caption)


def step(stage1: Stage1, case: str) -> dict[str, Tensor]:
    """Losses and gradients, averaged over the ranks."""
    keys, hardness, dtype, gradient, with_itg, losses = CASES[case]
    numbers = torch.rand(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    numbers = numbers[: len(keys[0])].T
    objectives = ObjectivesConfig(gather_gradient=gradient, losses=losses)
    batch = pairs_of(stage1, keys, dtype)
    stage1.zero_grad(set_to_none=True)
    stage1.requires_grad_(True).freeze_unread(objectives.chosen)
    found = averaged(stage1, stage1(batch, objectives, hardness, numbers, with_itg=with_itg))
    stage1.requires_grad_(True)
    return found


def averaged(module: nn.Module, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses and gradients of all ranks, from those of this one."""
    found["loss"].backward()
    found = {f"loss {name}": value.detach() for name, value in found.items()}
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found |= {f"gradient {name}": p.grad.clone() for name, p in trained.items()}
    if num_ranks() > 1:
        for value in found.values():
            dist.all_reduce(value)
            value /= num_ranks()
    return found


def stage2_step(stage1: Stage1) -> dict[str, Tensor]:
    """Of stage 2, where ranks have other numbers of words to learn, and the first has fewest."""
    torch.manual_seed(5)
    size = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24}
    size |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32}
    model = LlamaForCausalLM(LlamaConfig(**size, pad_token_id=0, eos_token_id=1, bos_token_id=2))
    module = Stage2(stage1.config, 16)
    for weights in [*model.parameters(), *module.parameters()]:
        nn.init.normal_(weights, std=0.3)
    lengths = torch.tensor([1, 2, 1, 3, 7, 5, 9, 4])
    tokens, ids = torch.randn(8, 5, 10), torch.randint(3, 40, (8, 9))
    present = torch.arange(9) < lengths[:, None]
    targets = ids.masked_fill(~present, IGNORED)
    batch = Stage2Batch(*(x[here(8)] for x in (tokens, ids, present, targets)))
    return averaged(module, module(batch, LanguageModel("hf:small", model, None)))


def steps(stage1: Stage1) -> dict[str, dict[str, Tensor]]:
    return {case: step(stage1, case) for case in CASES} | {"stage 2": stage2_step(stage1)}


def tokens_gathered(stage1: Stage1) -> list[tuple[str, bool]]:
    """Type of the pictures' tokens that a step has from other ranks, and if with gradient."""
    with mock.patch("model.stage1.gathered", wraps=gathered) as spy:
        step(stage1, "duplicates")
    asked = [(call.args[0], call.kwargs["gradient"]) for call in spy.call_args_list]
    return [(str(x.dtype), gradient) for x, gradient in asked if x.shape[1:] == (5, 10)]


def parts() -> dict[str, Tensor]:
    """What the functions of `model.ranks` give on each rank, gathered."""
    mine = torch.arange(2.0) + 10 * rank()
    mine.requires_grad_()
    whole = gathered(mine, gradient=True)
    (whole * torch.arange(len(whole)) * (rank() + 1)).sum().backward()
    totals = mean_over_ranks(torch.tensor(6.0 + rank()), torch.tensor(rank()))
    with alone():
        by_itself = torch.tensor([num_ranks(), rank(), *gathered(mine, gradient=False).tolist()])
    return {
        "ranks": gathered(torch.tensor([rank()]), gradient=False),
        "anywhere": torch.stack(
            [anywhere(torch.tensor(flag)) for flag in (rank() == 1, False, True)]
        ),
        "flags": gathered(torch.tensor([rank() == 1, True]), gradient=False),
        "whole": whole.detach(),
        "gradients": gathered(mine.grad, gradient=False),
        "needs gradient": torch.tensor(gathered(mine, gradient=False).requires_grad),
        "totals": gathered(totals[None], gradient=False),
        "alone": gathered(by_itself[None], gradient=False),
    }


def run_rank(number: int, folder: Path) -> None:
    """A rank of a world of four, and if it is one of the first two, of a world of two before."""
    torch.set_num_threads(1)
    stage1 = load(folder)
    for size in (2, 4):
        if number >= size:
            continue
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder / f'meet-{size}'}",
            rank=number,
            world_size=size,
            timeout=timedelta(seconds=100),
        )
        found = {"steps": steps(stage1), "parts": parts(), "tokens": tokens_gathered(stage1)}
        if number == 0:
            with alone():  # the others take no part
                found["alone"] = step(stage1, "duplicates")
            torch.save(found, folder / f"world-{size}.pt")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, scattered_stage1):
    folder = tmp_path_factory.mktemp("ranks")
    stage1 = scattered_stage1()
    stored = {
        "config": vars(stage1.config),
        "tokenizer": stage1.tokenizer.to_json(),
        "weights": stage1.state_dict(),
    }
    torch.save(stored, folder / "stage1.pt")
    return folder


@pytest.fixture(scope="module")
def one_rank(folder):
    return steps(load(folder))


@pytest.fixture(scope="module")
def worlds(folder):
    """What worlds of two and of four ranks found."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, __file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {n: torch.load(folder / f"world-{n}.pt", weights_only=True) for n in (2, 4)}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    longest = max(v.norm() for name, v in expected.items() if name.startswith("gradient"))
    for name, value in expected.items():
        if name.startswith("loss"):
            assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
        else:
            assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-6 * longest, name


SAME = [name for name, case in CASES.items() if case.gradient]


@pytest.mark.parametrize("case", [*SAME, "stage 2"])
@pytest.mark.parametrize("size", [2, 4])
def test_losses_and_gradients_are_those_of_one_rank(worlds, one_rank, size, case):
    assert_same(worlds[size]["steps"][case], one_rank[case])


def test_the_cases_are_what_they_are_called(one_rank):
    """Each has something to compare: ITM decides, and masks matter."""
    for name, case in CASES.items():
        found, losses = one_rank[name], case.losses.split(",")
        assert ("loss itm" in found) == (case.hardness is not None)
        assert ("loss itg" in found) == (case.with_itg and "itg" in losses)
        assert ("loss itc" in found) == ("itc" in losses)
        if "itc" in losses:
            assert (found["loss itc"] > 0.1) == (name != "one picture")
        assert ("gradient itm_head.weight" in found) == ("itm" in losses)
    assert one_rank["one picture"]["loss itc"] == one_rank["one picture"]["loss itm"] == 0
    assert one_rank["stage 2"]["loss loss"] > 1
    assert 0 < one_rank["lonely"]["loss itm_accuracy"] < 1
    assert one_rank["gathered without gradient"]["loss itc"] == one_rank["distinct"]["loss itc"]


@pytest.mark.parametrize("size", [2, 4])
def test_without_gradient_losses_are_the_same_and_itcs_gradient_is_too_short(
    worlds, one_rank, size
):
    found, expected = worlds[size]["steps"]["gathered without gradient"], one_rank["distinct"]
    for name in ("gradient vision_proj.weight", "gradient text_proj.weight"):  # ITC's alone
        assert found[name].norm() < 0.95 * expected[name].norm()
    for name in expected:
        # What ITC does not move has the same gradient.
        if name.startswith(("loss", "gradient itm_head", "gradient qformer.head")):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_tokens_of_other_ranks_come_in_the_caches_type_and_without_gradient(worlds, size):
    assert worlds[size]["tokens"] == [("torch.float16", False)]


@pytest.mark.parametrize("size", [2, 4])
def test_a_rank_can_reckon_alone(worlds, one_rank, size):
    assert_same(worlds[size]["alone"], one_rank["duplicates"])


@pytest.mark.parametrize("size", [2, 4])
def test_values_come_in_the_order_of_ranks(worlds, size):
    found = worlds[size]["parts"]
    everyone = range(size)
    assert found["anywhere"].tolist() == [True, False, True]
    assert found["ranks"].tolist() == list(everyone)
    assert found["flags"].tolist() == [flag for r in everyone for flag in (r == 1, True)]
    assert found["whole"].tolist() == [10.0 * r + i for r in everyone for i in (0, 1)]
    # Rank r's loss weighs place p by p (r + 1).
    total = sum(r + 1 for r in everyone)
    assert found["gradients"].tolist() == [total * p for p in range(2 * size)]
    assert not found["needs gradient"]
    mean_count = (size - 1) / 2
    assert found["totals"].tolist() == pytest.approx([(6 + r) / mean_count for r in everyone])
    assert found["alone"].tolist() == [[1, 0, 10 * r, 10 * r + 1] for r in everyone]


def test_with_one_process_nothing_is_exchanged():
    assert [bool(anywhere(torch.tensor(flag))) for flag in (True, False)] == [True, False]
    assert (num_ranks(), rank()) == (1, 0)
    values = torch.arange(3.0, requires_grad=True)
    assert gathered(values, gradient=True) is values
    assert mean_over_ranks(torch.tensor(6.0), torch.tensor(4)) == 1.5
    assert mean_over_ranks(torch.tensor(0.0), torch.tensor(0)) == 0


if __name__ == "__main__":
    mp.start_processes(run_rank, (Path(sys.argv[1]),), nprocs=4, start_method="fork")
