"""The commands of the tutorial about two organisations, one after the other, in a folder for each side."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkstemp

import pytest
from command_processes import start
from identities import free_port
from tutorial_files import blocks, files_of

PAGE = "two_organisations"
SMALLER = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]


def commands(port: int) -> list[list[str]]:
    text = "\n".join(blocks(PAGE, "bash")).replace("7443", str(port)).replace("0.0.0.0", "127.0.0.1")
    return [shlex.split(line)[1:] for line in text.splitlines() if line]


class Command:
    """A command that runs in a process of its own."""

    def __init__(self, words: list[str], side: Path) -> None:
        self._log = Path(mkstemp(dir=side.parent, suffix=".log")[1])
        self.process = start(words, side, self._log)

    def end(self, expected: int = 0) -> str:
        """Wait for the command, and return its output."""
        self.process.join(120)
        output = self._log.read_text()
        assert self.process.exitcode == expected, output
        return output


def run(words: list[str], side: Path) -> str:
    return Command(words, side).end()


@pytest.fixture
def sides(tmp_path: Path) -> dict[str, Path]:
    """The folders of both sides, with the files that the page shows, and only the own text in each."""
    found = {name: tmp_path / f"{name}_side" for name in ("hospital", "clinic")}
    files = files_of(PAGE)
    script = files.pop("make_two_texts.py")
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    for name, side in found.items():
        side.mkdir()
        (tmp_path / f"{name}.jsonl").rename(side / f"{name}.jsonl")
        for file in ("pact_tree.yaml", "pact.yaml", f"{name}_text.yaml"):
            (side / file).write_text(files[file])
    return found


def test_the_tutorial_works(sides: dict[str, Path]) -> None:
    hospital, clinic = sides["hospital"], sides["clinic"]
    keys_of_hospital, keys_of_clinic, admit, accept, serve, join, status, export, sent = commands(free_port())
    run(keys_of_hospital, hospital)
    fingerprint = re.search("fingerprint of the request: (.*)", run(keys_of_clinic, clinic))
    shutil.copy(clinic / "clinic" / "identity" / "request.csr", hospital)
    assert fingerprint is not None
    assert fingerprint[1] in run(admit, hospital)
    shutil.copy(hospital / "hospital" / "clinic.pem", clinic)
    run(accept, clinic)

    server = Command([*serve, *SMALLER], hospital)
    try:
        output = Command([*join, *SMALLER, "--trainer.max_epochs", "6"], clinic).end(expected=2)
        assert "worldlm: hospital and clinic differ in the number of rounds: 5 and 6" in output
        assert "Traceback" not in output
        output = run([*join, *SMALLER], clinic)
        served = server.end()
    finally:
        server.process.kill()
    for text in (output, served):
        assert "round 5/5" in text
        assert "done. results: " in text.splitlines()[-1]
    assert "clinic: hospital and clinic differ in the number of rounds" in served
    lines = run(status, hospital).splitlines()
    assert lines[0] == "hospital is not running; when it stopped:"
    assert lines[1].startswith("hospital: round 5/5")
    assert re.fullmatch(r"child clinic: called \d+ s ago", lines[2])
    run(export, clinic)
    assert (clinic / "clinic_model" / "model.safetensors").is_file()
    check_separate(hospital, clinic)
    assert "10 messages, " in run(sent, clinic)


def check_separate(hospital: Path, clinic: Path) -> None:
    """Check that neither side has the text or a secret of the other."""
    for own, name, other, words in (
        (hospital, "hospital", clinic, (b"vaccine", b"prescription", b"clinic.jsonl")),
        (clinic, "clinic", hospital, (b"anaesthetic", b"theatre", b"hospital.jsonl")),
    ):
        other_name = other.name.removesuffix("_side")
        secret = (other / other_name / "identity" / "seed").read_bytes()
        content = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
        assert content[own / f"{name}.jsonl"], "the own text is there"
        for path, found in content.items():
            for word in (*words, secret):
                assert word not in found, f"{word!r} of {other_name} is in {path}"
