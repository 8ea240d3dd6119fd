"""The commands of the tutorial about three levels, one after the other, in a folder for each organisation."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from command_processes import start
from identities import free_port
from tutorial_files import blocks, files_of

from worldlm.organisations.identity import Identity

PAGE = "three_levels"
NODES = ("consortium", "hospitals", "press", "north", "south", "daily", "weekly")
SMALLER = [
    *("--trainer.max_epochs", "2"),
    *("--trainer.limit_train_batches", "2"),
    *("--trainer.limit_val_batches", "1"),
]


def commands() -> Iterator[list[str]]:
    """Yield the words of each command of the page, with ports that are free."""
    text = "\n".join(blocks(PAGE, "bash")).replace("\\\n", " ").replace("0.0.0.0", "127.0.0.1")
    ports = {port: str(free_port()) for port in set(re.findall(r":(\d+)", text))}
    assert len(set(ports.values())) == len(ports) == 3
    for line in re.sub(r":(\d+)", lambda found: f":{ports[found[1]]}", text).splitlines():
        if line:
            program, *words = shlex.split(line)
            assert program == "worldlm"
            yield words


class Sides:
    """The folders of all organisations, with the files that the page shows, and only the own text in each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = files_of(PAGE)
        script = files.pop("make_five_texts.py")
        subprocess.run([sys.executable, "-c", script], cwd=folder, check=True)
        (words,) = (node.value for node in ast.parse(script).body if ast.unparse(node).startswith("words ="))  # type: ignore[attr-defined]
        self.words: dict[str, list[str]] = ast.literal_eval(words)
        for name in NODES:
            self[name].mkdir()
            for file in ("three_levels_tree.yaml", "three_levels.yaml"):
                (self[name] / file).write_text(files[file])
        for name in self.words:
            (folder / f"{name}.jsonl").rename(self[name] / f"{name}.jsonl")
            (self[name] / "own_text.yaml").write_text(files["own_text.yaml"].replace("hospitals", name))

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{name}_side"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def start(self, words: list[str]) -> tuple[str, BaseProcess]:
        """Start a command at the organisation that it names."""
        name = words[words.index("--home" if "--home" in words else "--node") + 1]
        return name, start(words, self[name], self.log(name))

    def finish(self, name: str, process: BaseProcess, seconds: float = 120.0) -> None:
        process.join(seconds)
        assert process.exitcode == 0, self.log(name).read_text()

    def admit(self, request: str, words: list[str]) -> None:
        """Carry a request to the parent, let the parent admit it, and carry the answer back."""
        child, parent = request.removesuffix(".csr"), words[-1]
        shutil.copy(self[child] / child / "identity" / "request.csr", self[parent] / request)
        self.finish(*self.start(words))
        shutil.copy(self[parent] / parent / f"{child}.pem", self[child])


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def test_the_tutorial_works(sides: Sides) -> None:
    running: dict[str, BaseProcess] = {}
    try:
        for words in commands():
            if words[0] in ("serve", "join"):
                name, process = sides.start([*words, *SMALLER])
                running[name] = process
                continue
            for name, process in running.items():
                sides.finish(name, process)
            if words[:2] == ["organisations", "admit"]:
                sides.admit(words[2], words)
            else:
                sides.finish(*sides.start(words))
    finally:
        for process in running.values():
            process.kill()
    assert set(running) == set(NODES)
    for name in NODES:
        log = sides.log(name).read_text()
        assert "Traceback" not in log
        assert "round 2/2" in log
        assert f"done. results: {name}/runs/three_levels/version_0" in log
    for name in ("daily", "press"):
        assert (sides[name] / f"{name}_model" / "model.safetensors").is_file()
    for card, what in (("daily", "a leaf, which trained it"), ("press", "a federation, whose model combines")):
        text = (sides[card] / f"{card}_model" / "README.md").read_text()
        assert what in text
        assert f"`consortium > press{' > daily' * (card == 'daily')}`" in text
    sides.finish(*sides.start(["export", "south/runs/three_levels", "--node", "south", "--out", "south_model"]))
    assert "These are the weights of south before clipping and noise" in sides.log("south").read_text()
    assert "round 2: ends at epsilon 2.94" in sides.log("south").read_text()
    assert Identity(sides["press"] / "press" / "identity").admitted() == ["daily"]
    check_tables(sides)
    check_separate(sides)


def check_tables(sides: Sides) -> None:
    """Check who is told which figures: received, after_merge and after_fit of the children that are not private."""
    figures = {}
    for name in ("consortium", "hospitals", "press"):
        rows = re.findall(r"│ +(\w+) +│(.*)│$", sides.log(name).read_text(), re.M)
        figures[name] = {row for row, cells in rows if re.search(r"\d", cells)}
    assert figures == {
        "consortium": {"consortium", "hospitals", "press"},
        "hospitals": {"hospitals", "north"},
        "press": {"press", "daily", "weekly"},
    }


def forms(word: str) -> list[bytes]:
    """Return how a word can be stored: as text, or as the numbers of its tokens, which are bytes here."""
    return [word.encode(), *(np.frombuffer(word.encode(), "u1").astype(kind).tobytes() for kind in ("u2", "i4", "i8"))]


def check_separate(sides: Sides) -> None:
    """Check that no organisation has the text or a secret of another."""
    marks = {name: [form for word in words[:3] for form in forms(word)] for name, words in sides.words.items()}
    content = {
        name: {path: path.read_bytes() for folder in (sides[name], sides.log(name)) for path in files_below(folder)}
        for name in NODES
    }
    for name in NODES:
        secrets = Identity(sides[name] / name / "identity")
        text = marks.get(name, [])
        for kind in text[:2]:  # in the text, and in the packed tokens
            assert any(kind in found for found in content[name].values()), f"{name} does not have its own text"
        for other in (other for other in NODES if other != name):
            for path, found in content[other].items():
                for mark in (*text, str(secrets.seed).encode(), secrets.key, f"{name}.jsonl".encode()):
                    assert mark not in found, f"{mark!r} of {name} is in {path}"


def files_below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]
