"""The learning rate in closed form, what decays, and an optimiser that is put back bit for bit."""

import math

import pytest
import torch
from safetensors.torch import load

from model.checkpoint import save_tensors
from model.optimizer import (
    TEMPERATURE_RATE,
    OptimizerConfig,
    learning_rate,
    make_optimizer,
    optimizer_state,
    restore_optimizer,
    set_learning_rate,
    update,
)
from model.stage2 import Stage2
from pipeline.errors import ConfigError

# The learning rate


def test_warm_up_is_linear_and_then_a_cosine_falls():
    config = OptimizerConfig(learning_rate=8.0, final_learning_rate=2.0, warmup_steps=4)
    rates = [learning_rate(config, step, 11) for step in range(11)]
    assert rates[:4] == [2.0, 4.0, 6.0, 8.0]
    falling = [5.0 + 3.0 * math.cos(math.pi * at / 6) for at in range(7)]
    assert rates[4:] == pytest.approx(falling)
    assert rates[-1] == pytest.approx(2.0)


def test_without_warm_up_the_first_step_has_the_peak_and_the_last_the_floor():
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    rates = [learning_rate(config, step, 101) for step in range(101)]
    assert rates[0] == 1e-3
    assert rates[50] == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_a_training_shorter_than_its_warm_up_only_warms_up():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=10)
    assert [learning_rate(config, step, 4) for step in range(4)] == [0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup_steps", [0, 1, 2])
def test_the_shortest_trainings_have_a_rate(steps, warmup_steps):
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=warmup_steps)
    rates = [learning_rate(config, step, steps) for step in range(steps)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0


def test_the_defaults_are_those_of_the_paper():
    config = OptimizerConfig()
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.98, 0.05)
    assert learning_rate(config, 1999, 250_000) == 1e-4
    assert learning_rate(config, 999, 250_000) == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("clip_norm", 0.0),
        ("final_learning_rate", -1e-9),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
    ],
)
def test_values_that_make_no_sense_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"{field}: {value} is"):
        OptimizerConfig(**{field: value})


# What decays


def decaying(module: torch.nn.Module) -> dict[str, float]:
    """Name of each trained weight to its decay."""
    names = {id(p): name for name, p in module.named_parameters()}
    optimizer = make_optimizer(OptimizerConfig(), module)
    return {
        names[id(p)]: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }


def test_matrices_decay_and_biases_norms_queries_and_temperature_do_not(scattered_stage1):
    stage1 = scattered_stage1()
    decay = decaying(stage1)
    assert decay.keys() == dict(stage1.named_parameters()).keys()
    for name, value in decay.items():
        kept = name.endswith(".bias") or "norm" in name or name.startswith("ln_vision")
        kept |= name in ("temperature", "qformer.query_tokens", "qformer.head.bias")
        assert value == (0.0 if kept else 0.05), name
    assert {decay["itm_head.weight"], decay["qformer.embeddings.words.weight"]} == {0.05}


def test_the_temperature_keeps_to_the_papers_learning_rate(scattered_stage1):
    stage1 = scattered_stage1()
    optimizer = make_optimizer(OptimizerConfig(), stage1)

    def rates() -> dict[bool, set[float]]:
        found: dict[bool, set[float]] = {True: set(), False: set()}
        for group in optimizer.param_groups:
            for p in group["params"]:
                found[p is stage1.temperature].add(group["lr"])
        return found

    set_learning_rate(optimizer, 8e-4)
    assert rates() == {True: {TEMPERATURE_RATE}, False: {8e-4}}
    set_learning_rate(optimizer, 5e-5)
    assert rates() == {True: {5e-5}, False: {5e-5}}


def test_what_is_frozen_is_not_trained(tiny):
    stage2 = Stage2(tiny(), 8)
    stage2.ln_vision.requires_grad_(False)
    names = set(decaying(stage2))
    trained = {name for name, p in stage2.named_parameters() if p.requires_grad}
    assert names == trained
    assert not any(name.startswith("ln_vision") for name in names)


# An update


def test_a_skipped_update_changes_nothing_and_the_next_one_is_as_if_it_had_not_been(tiny):
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=1e-2)
    one, other = Stage2(tiny(), 8), Stage2(tiny(), 8)
    other.load_state_dict(one.state_dict())
    first, second = make_optimizer(config, one), make_optimizer(config, other)
    go_on, skip = torch.tensor(False), torch.tensor(True)
    for number in (1, 2):
        for module, optimizer in ((one, first), (other, second)):
            gradients(module, optimizer, number)
            update(optimizer, skip=go_on)
        before = bits(one)
        for weight in one.parameters():
            weight.grad = torch.full_like(weight, math.nan)
        update(first, skip=skip)
        assert bits(one) == before == bits(other)
    state, expected = optimizer_state(first, one), optimizer_state(second, other)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


# Its state


def gradients(module: torch.nn.Module, optimizer: torch.optim.AdamW, number: int) -> None:
    """A function of their number and the weights; every third leaves one weight out."""
    generator = torch.Generator().manual_seed(number)
    optimizer.zero_grad(set_to_none=True)
    for at, weight in enumerate(module.parameters()):
        if at or number % 3:
            noise = torch.randn(weight.shape, generator=generator)
            weight.grad = noise + 0.1 * weight.detach()


def step(module: torch.nn.Module, optimizer: torch.optim.AdamW, number: int) -> None:
    gradients(module, optimizer, number)
    update(optimizer, skip=torch.tensor(False))


def bits(module: torch.nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("before", [0, 1, 3, 4])
def test_an_optimiser_put_back_gives_the_same_steps_bit_for_bit(tiny, before):
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=1e-2)
    one, other = Stage2(tiny(), 8), Stage2(tiny(), 8)
    first, second = make_optimizer(config, one), make_optimizer(config, other)
    for number in range(before):
        step(one, first, number)

    stored = load(save_tensors(optimizer_state(first, one)))
    other.load_state_dict(load(save_tensors(one.state_dict())))
    restore_optimizer(second, other, stored)

    for number in range(before, before + 4):
        step(one, first, number)
        step(other, second, number)
    assert bits(one) == bits(other)


def test_without_its_state_the_steps_are_others(tiny):
    """The test above would see it."""
    torch.manual_seed(0)
    config = OptimizerConfig(learning_rate=1e-2)
    one, other = Stage2(tiny(), 8), Stage2(tiny(), 8)
    first, second = make_optimizer(config, one), make_optimizer(config, other)
    step(one, first, 1)
    other.load_state_dict(one.state_dict())
    step(one, first, 2)
    step(other, second, 2)
    assert bits(one) != bits(other)


def test_the_state_has_the_names_of_the_weights(tiny):
    stage2 = Stage2(tiny(), 8)
    optimizer = make_optimizer(OptimizerConfig(), stage2)
    assert optimizer_state(optimizer, stage2) == {}
    step(stage2, optimizer, 1)
    names = [name for name, _ in stage2.named_parameters()]
    kinds = ("step", "exp_avg", "exp_avg_sq")
    state = optimizer_state(optimizer, stage2)
    assert set(state) == {f"{name}.{kind}" for name in names for kind in kinds}
    assert state["projection.weight.exp_avg"].shape == stage2.projection.weight.shape
