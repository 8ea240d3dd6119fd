"""Commands that are killed, or whose disk is full or read-only, at any of their changes of the disk.

After a kill, the same command succeeds and gives the same files. A disk that fails ends a command with one line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from write_points import How, interrupt_everywhere

from worldlm.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*os.fork:RuntimeWarning"),
]

RUN = "runs/tiny/version_0"
FIT = ("fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "2", "--ckpt_path", "last")
LOCAL = ("--data.cache_dir", "cache")
COMMANDS = {
    "report": ("report", RUN),
    "export": ("export", RUN, "--node", "sea", "--out", "out"),
    "export again": ("export", RUN, "--node", "land", "--out", "out", "--force"),
    "evaluate": ("evaluate", RUN, "--node", "sea", "--limit", "1"),
    "prepare": ("prepare", "--recipe", "tiny.yaml", *LOCAL),
    "show": ("topology", "show", "shore.yaml", "--format", "svg", "--out", "pictures.svg"),
    "resume": (*FIT, "--trainer.max_epochs", "3", *LOCAL),
}


def command(name: str) -> Callable[[], int]:
    return lambda: main(COMMANDS[name])


def set_up(name: str) -> None:
    if name not in ("prepare", "show"):
        assert main((*FIT, *LOCAL)) == 0
    if name == "export again":
        assert main(COMMANDS["export"]) == 0


HOW: tuple[How, ...] = ("kill", "torn", "full", "read-only")
QUICK = ("show",)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow, pytest.mark.timeout(1800)))
        for name in COMMANDS
    ],
)
def test_a_command(shore: Path, name: str, how: How) -> None:
    set_up(name)
    interrupt_everywhere(shore.parent, command(name), how, step=60 if name == "resume" else 1)
