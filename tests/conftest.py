"""What tests of every room may use."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.loggers import Logger


class Recorder(Logger):
    """A logger that keeps scalars, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars: list[tuple[str, float, int]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep none."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.scalars += [(name, float(value), step) for name, value in metrics.items()]

    def last(self, tag: str) -> float:
        return [value for name, value, _ in self.scalars if name == tag][-1]


@pytest.fixture
def recorder() -> Recorder:
    """A logger for `logger=`."""
    return Recorder()
