"""How weights are updated: AdamW's groups, and the learning rate of each step."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from pipeline.errors import ConfigError

TEMPERATURE_RATE = 1e-4
"""Highest learning rate of ITC's temperature: the paper's peak. An update of AdamW is about as
large as its rate: at the 1e-3 of a short run, seventy of them can use up a temperature of 0.07."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, per step; defaults are BLIP-2's for stage 1."""

    learning_rate: float = 1e-4
    """Peak learning rate."""

    final_learning_rate: float = 0.0
    """Learning rate at the last step."""

    warmup_steps: int = 2000
    """Steps of linear warm-up."""

    weight_decay: float = 0.05
    """Decay of weight matrices; biases, norms, queries and temperature have none."""

    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""

    beta2: float = 0.98
    """Decay of AdamW's mean of squared gradients."""

    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("final_learning_rate", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: {getattr(self, name)} is negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is not in [0, 1)")


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0.

    Args:
        config: see there.
        step: rises linearly up to the peak at `warmup_steps`, then falls as a cosine.
        steps: of the whole training.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    share = (1 + math.cos(math.pi * min(1.0, done))) / 2
    return config.final_learning_rate + share * (config.learning_rate - config.final_learning_rate)


def make_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.AdamW:
    """AdamW over the module's trainable weights, matrices with decay and all others without."""
    options = {
        "matrices": {"weight_decay": config.weight_decay},
        "others": {"weight_decay": 0.0},
        "temperature": {"weight_decay": 0.0, "highest_lr": TEMPERATURE_RATE},
    }
    members: dict[str, list[nn.Parameter]] = {group: [] for group in options}
    for name, p in module.named_parameters():
        if p.requires_grad:
            members[_group(name, p)].append(p)
    groups = [{"params": members[group], **its} for group, its in options.items()]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """The learning rate of the next update, within what each group allows."""
    for group in optimizer.param_groups:
        group["lr"] = min(rate, group.get("highest_lr", rate))


def update(optimizer: torch.optim.AdamW, *, skip: Bool[Tensor, ""]) -> None:
    """Update the weights, unless `skip` is true: decided on the device, so that no host waits."""
    optimizer.found_inf = skip.float()  # type: ignore[attr-defined]  # as GradScaler has it
    optimizer.step()


def _group(name: str, weight: Tensor) -> str:
    if name == "temperature":
        return name
    return "matrices" if weight.ndim >= 2 and not name.endswith("query_tokens") else "others"


def optimizer_state(optimizer: torch.optim.AdamW, module: nn.Module) -> dict[str, Tensor]:
    """AdamW's state by the names of the weights; not a copy of it."""
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        f"{names[id(p)]}.{key}": value.detach()
        for p, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.AdamW, module: nn.Module, state: dict[str, Tensor]
) -> None:
    """Put back what `optimizer_state` gave."""
    for name, p in module.named_parameters():
        found = {
            key: state[f"{name}.{key}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{name}.{key}" in state
        }
        if found:
            optimizer.state[p] = {key: value.to(p.device) for key, value in found.items()}
