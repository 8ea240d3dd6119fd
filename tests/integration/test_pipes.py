"""No command waits for a pipe in the place of a file: it ends with one line, or replaces the pipe."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from worldlm.cli import main

RUN = "runs/tiny/version_0"
FIT = ("fit", "--recipe", "tiny.yaml", "--trainer.max_epochs", "1")
RESUME = (*FIT, "--ckpt_path", "last")
REPEAT = ("fit", "--repeat", RUN)
VALIDATE = ("validate", "--recipe", "tiny.yaml", "--ckpt_path", "last")
EXPORT = ("export", RUN, "--node", "sea", "--out", "out")
GENERATE = ("generate", RUN, "--node", "sea", "wave")
EVALUATE = ("evaluate", RUN)
REPORT = ("report", RUN)
COMPARE = ("compare", "--recipe", "tiny.yaml", "--methods", "methods/fedavg", "--seeds", "1", "--runs", "runs")
COMMANDS = {
    "tiny.yaml": (FIT, COMPARE, ("prepare", "--recipe", "tiny.yaml"), ("topology", "estimate", "tiny.yaml")),
    "shore.yaml": (FIT, ("topology", "check", "shore.yaml"), ("topology", "show", "shore.yaml")),
    "hills.txt": (FIT, EVALUATE),
    f"{RUN}/results.json": (RESUME, REPEAT, EXPORT, GENERATE, EVALUATE, REPORT, ("runs",)),
    f"{RUN}/config.yaml": (RESUME, REPEAT, EXPORT, GENERATE, EVALUATE, REPORT),
    f"{RUN}/tokenizer.json": (RESUME, EXPORT, GENERATE, EVALUATE),
    f"{RUN}/checkpoints/last.ckpt": (RESUME, VALIDATE, EXPORT, GENERATE, EVALUATE, REPEAT),
    f"{RUN}/report.html": (REPORT,),
    f"{RUN}/.lock": (RESUME, ("runs",)),
    "out/config.json": (EXPORT,),
    "cache/*/train.bin": (("prepare", "--recipe", "tiny.yaml"), EVALUATE),
    "cache/*/counts.json": (("prepare", "--recipe", "tiny.yaml"), EVALUATE),
}
"""The commands that open each file."""


@pytest.fixture
def _alarm() -> Iterator[None]:
    """Raise from a call that waits."""

    def ring(*_: object) -> NoReturn:
        raise AssertionError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.usefixtures("_alarm")
@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_waits(shore: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(FIT) == 0
    assert main(REPORT) == 0
    assert main(EXPORT) == 0
    shutil.copytree(shore.parent, shore.parent / "backup")
    for command in COMMANDS[name]:
        paths = list(Path().glob(name))
        assert paths, name
        for path in paths:
            path.unlink()
            os.mkfifo(path)
        capsys.readouterr()
        signal.alarm(60)
        status = main([*command, "--force"] if command == EXPORT else command)
        signal.alarm(0)
        output = capsys.readouterr()
        lines = [line for line in output.err.splitlines() if line.startswith("worldlm: ")]
        assert "Traceback" not in output.err
        assert status == 0 or (status == 2 and any("pipe" in line for line in lines)), (
            command,
            status,
            output,
        )
        for entry in (shore.parent / "backup").iterdir():
            target = shore.parent / entry.name
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
            shutil.copytree(entry, target) if entry.is_dir() else shutil.copy2(entry, target)
