"""What tests of every room may use."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from lightning.pytorch.loggers import Logger

# A slow machine is no mistake. Where CI is set, Hypothesis draws the same examples in every run.
settings.register_profile("worldlm", settings.default, deadline=None)
settings.load_profile("worldlm")


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--accelerator", default="cpu", help="what integration tests train on: cpu, or gpu")


@pytest.fixture(scope="session")
def accelerator(pytestconfig: pytest.Config) -> str:
    """What to train on."""
    return str(pytestconfig.getoption("--accelerator"))


@pytest.fixture
def recorder() -> Recorder:
    """A logger for `logger=`."""
    return Recorder()


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Let signals do what they do by default, also where nohup or a shell's `&` ignores them; put all handlers back."""
    signals = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {signum: signal.getsignal(signum) for signum in signals}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="module")
def reading() -> Iterator[Any]:
    """Yield the command line up to where it would build anything; making its parsers is what takes the time."""
    from worldlm.cli.parser import parse_command_line
    from worldlm.cli.recipe_cli import COMMANDS, RecipeCLI

    class Reading(RecipeCLI):
        def subcommands(self) -> dict[str, set[str]]:
            return COMMANDS

        def instantiate_classes(self) -> None:
            pass

        def after_instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield Reading(parse_command_line(["fit", "--recipe", "quickstart"]))
