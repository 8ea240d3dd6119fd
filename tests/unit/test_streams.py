"""Standard streams that are closed, full, closed by their reader, or of a narrow encoding."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worldlm.cli import main
from worldlm.cli.streams import OutputLost, safe_streams

TOPOLOGY = "name: two\nsettings: {num_local_steps: 1}\nroot: {name: world, children: [{name: a, corpus: a}]}\n"


def full() -> io.TextIOWrapper:
    return open("/dev/full", "w", encoding="utf-8")


def without_reader() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", encoding="utf-8")


@pytest.mark.parametrize(("make", "warns"), [(full, True), (without_reader, False)])
def test_a_command_whose_result_is_in_files_goes_on(
    make: Callable[[], io.TextIOWrapper],
    warns: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with make() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with safe_streams(is_result=False):
            for _ in range(3):
                print("x" * 10_000, flush=True)
        assert sys.stdout is stream
    warning = "worldlm: warning: standard output cannot be written: No space left on device\n"
    assert capsys.readouterr().err == (warning if warns else "")


@pytest.mark.parametrize("make", [full, without_reader])
def test_a_command_whose_result_is_its_output_fails(
    make: Callable[[], io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    with make() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OutputLost), safe_streams(is_result=True):
            print("x", flush=True)


def test_messages_that_cannot_be_written_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with full() as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        assert main(["nothing"]) == 2


def test_other_characters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with safe_streams(is_result=True):
        print("Zürich \udcff", flush=True)
    assert written.getvalue() == b"Z\\xfcrich \\udcff\n"


LOST = "worldlm: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("words", "redirected", "status", "output"),
    [
        ("topology check two.yaml", ">&- 2>&-", 0, ""),
        ("topology check two.yaml", "<&- >&- 2>&-", 0, ""),
        ("topology show two.yaml", ">&-", 0, ""),
        ("nothing", "2>&-", 2, ""),
        ("topology show two.yaml", ">/dev/full", 1, LOST),
        ("--help", "> /dev/full", 1, LOST),
    ],
)
def test_commands_whose_streams_are_closed_or_full(
    words: str, redirected: str, status: int, output: str, tmp_path: Path
) -> None:
    (tmp_path / "two.yaml").write_text(TOPOLOGY)
    line = f"exec {sys.executable} -m worldlm {words} {redirected}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert (done.returncode, done.stdout) == (status, output)
