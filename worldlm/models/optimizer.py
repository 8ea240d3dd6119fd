"""The settings of the inner optimizer, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class OptimizerSettings:
    """The inner optimizer: AdamW with linear warmup and cosine decay.

    Raises:
        ValueError: If a value is out of range.
    """

    lr: float = 4e-4
    """Peak learning rate, above 0."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moments, each in [0, 1)."""

    weight_decay: float = 0.0
    """Decoupled weight decay of all parameters, at least 0."""

    warmup_steps: int = 100
    """Optimizer steps of linear warmup, at least 0."""

    min_lr_ratio: float = 0.1
    """Final learning rate of the cosine, as a fraction of `lr`, in [0, 1]."""

    eps: float = 1e-8
    """Added to AdamW's denominator, above 0."""

    def __post_init__(self) -> None:
        checks = {
            "lr": (self.lr > 0, "above 0"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "two numbers in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "in [0, 1]"),
            "eps": (self.eps > 0, "above 0"),
        }
        for name, (holds, allowed) in checks.items():
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {allowed}")


def warmup_cosine(step: int, warmup_steps: int, total_steps: int | None, min_lr_ratio: float) -> float:
    """Factor on the peak learning rate.

    Args:
        step: Number of optimizer steps before this one.
        warmup_steps: Steps of linear warmup; the last of them runs at the peak.
        total_steps: Steps of the whole run, after which the factor is constant; with None there is no decay.
        min_lr_ratio: Factor at `total_steps`.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if total_steps is None:
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
