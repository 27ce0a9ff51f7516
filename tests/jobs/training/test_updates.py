"""An update in closed form, and from micro-batches as from one large batch."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from jobs.training import LoopConfig
from jobs.training.updates import Updates, in_bf16
from model.optimizer import OptimizerConfig

CONFIG = OptimizerConfig(learning_rate=0.1, final_learning_rate=0.02, warmup_steps=2)
LOOP = LoopConfig(steps=6, batch_size=12)
CPU = torch.device("cpu")


@dataclass
class Lines:
    """A batch: points, and what a line is to say of them."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> "Lines":
        return self


class LineLearner:
    """The mean squared error of points, in whose number batches differ."""

    def __init__(self) -> None:
        self.module = nn.Linear(3, 1).double()
        with torch.no_grad():
            self.module.weight.copy_(torch.tensor([[0.5, -1.0, 2.0]]))
            self.module.bias.fill_(0.3)
        self.seen: list[int] = []
        self.num_updates = 0

    def losses(self, module: nn.Module, batch: Lines, number: int) -> dict[str, Tensor]:
        self.seen.append(number)
        errors = (module(batch.x).squeeze(1) - batch.y).square()
        weight = torch.tensor(len(errors), dtype=torch.float64)
        return {"loss": errors.mean(), "largest": errors.max(), "weight": weight}

    def updated(self) -> None:
        self.num_updates += 1


class EqualLearner(LineLearner):
    """Its micro-batches count alike."""

    def losses(self, module: nn.Module, batch: Lines, number: int) -> dict[str, Tensor]:
        losses = super().losses(module, batch, number)
        del losses["weight"]
        return losses


def points(number: int, count: int) -> Lines:
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(number)).double()
    return Lines(x, x.sum(dim=1).square())


def weights(learner: LineLearner) -> list[float]:
    return torch.cat([p.detach().flatten() for p in learner.module.parameters()]).tolist()


def test_an_update_is_clipped_adamw_at_the_rate_of_its_step():
    """Warm-up, cosine, clipping, moments, and decay, which the bias has not, written out."""
    learner = LineLearner()
    updates = Updates(learner, LOOP, CONFIG, CPU)
    expected = torch.tensor(weights(learner), dtype=torch.float64)
    mean, square = torch.zeros(4).double(), torch.zeros(4).double()
    decay = torch.tensor([0.05, 0.05, 0.05, 0.0], dtype=torch.float64)
    falling = [0.02 + 0.04 * (1 + math.cos(math.pi * at / 3)) for at in range(4)]
    for step, rate in enumerate([0.05, 0.1, *falling]):
        batch = points(step, 12)
        error = batch.x @ expected[:3] + expected[3] - batch.y
        gradient = 2 * torch.cat([batch.x * error[:, None], error[:, None]], dim=1).mean(dim=0)
        norm = gradient.norm()
        assert norm > CONFIG.clip_norm
        clipped = gradient / (norm + 1e-6)
        mean = 0.9 * mean + 0.1 * clipped
        square = 0.98 * square + 0.02 * clipped**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.98 ** (step + 1))
        expected = expected - rate * decay * expected
        expected = expected - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        values, skipped = updates.make(step, iter([batch]))
        assert not skipped
        assert values["gradient_norm"].item() == pytest.approx(norm.item())
        assert values["loss"].item() == pytest.approx(error.square().mean().item())
        assert weights(learner) == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("counts", [(4, 4, 4), (1, 9, 2)])
def test_micro_batches_make_the_update_of_one_large_batch_and_log_its_loss(counts):
    one, several = LineLearner(), LineLearner()
    large = Updates(one, LOOP, CONFIG, CPU)
    small = Updates(several, replace(LOOP, accumulate=3), CONFIG, CPU)
    for step in range(3):
        batch = points(step, 12)
        split = zip(batch.x.split(counts), batch.y.split(counts), strict=True)
        parts = [Lines(*pair) for pair in split]
        expected, _ = large.make(step, iter([batch]))
        found, _ = small.make(step, iter(parts))
        for name in ("loss", "gradient_norm"):
            assert found[name].item() == pytest.approx(expected[name].item(), rel=1e-12)
        assert weights(several) == pytest.approx(weights(one), rel=1e-12)
    assert several.seen == list(range(9))
    assert several.num_updates == one.num_updates == 3


def test_without_weights_micro_batches_count_alike():
    learner = EqualLearner()
    updates = Updates(learner, replace(LOOP, accumulate=2), CONFIG, CPU)
    parts = [points(1, 3), points(2, 9)]
    losses = [learner.losses(learner.module, part, 0)["loss"].item() for part in parts]
    values, _ = updates.make(0, iter(parts))
    assert values["loss"].item() == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize("bad", [0, 1])
def test_one_micro_batch_that_is_not_finite_skips_the_whole_update(bad):
    learner = LineLearner()
    updates = Updates(learner, replace(LOOP, accumulate=2), CONFIG, CPU)
    before = weights(learner)
    parts = [points(1, 6), points(2, 6)]
    parts[bad].y[0] = math.nan
    _, skipped = updates.make(0, iter(parts))
    assert skipped
    assert weights(learner) == before
    assert not updates.make(1, iter([points(1, 6), points(2, 6)]))[1]
    assert weights(learner) != before


@pytest.mark.parametrize(
    ("precision", "device", "supported", "expected"),
    [
        ("auto", "cpu", True, False),
        ("auto", "cuda", True, True),
        ("auto", "cuda", False, False),
        ("bf16", "cpu", False, True),
        ("fp32", "cuda", True, False),
    ],
)
def test_bf16_where_it_is_asked_for_or_a_gpu_has_it(
    monkeypatch, precision, device, supported, expected
):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: supported)
    assert in_bf16(precision, torch.device(device)) == expected
