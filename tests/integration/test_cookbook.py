"""All commands and files of the Hugging Face cookbook, in the order of the page, with its tiny model."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tutorial_files import TUTORIALS, blocks, files_of

from worldlm.cli import main

PAGE = "hugging_face_cookbook"
SHORT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]
AS_SHOWN = pytest.mark.parametrize(
    "shown", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "as_shown"]
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of peft's calls of transformers
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def section(number: int) -> str:
    """Return a recipe of the page."""
    text = (TUTORIALS / f"{PAGE}.md").read_text("utf-8")
    return re.split(r"^## ", text, flags=re.M)[1 + number]


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and what its first script makes."""
    folder = tmp_path_factory.mktemp("cookbook")
    for name, text in files_of(PAGE).items():
        (folder / name).write_text(text)
    for text in blocks(PAGE, "py"):
        (folder / text.split()[1]).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path("make_stand_ins.py", run_name="__main__")
    return folder


@pytest.fixture
def stand_ins(made: Path, tmp_path: Path) -> Path:
    """A copy of this folder, to work in."""
    return Path(shutil.copytree(made, tmp_path / "cookbook"))


@pytest.fixture
def carry_out(stand_ins: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Carry out the commands of a recipe, and return the output.

    In `shown`, they are those of the page, and what does not depend on the machine is compared. Otherwise trainings are
    short.
    """
    monkeypatch.chdir(stand_ins)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(number: int, *, shown: bool) -> str:
        text, output = section(number), ""
        for line in "".join(fenced(text, "bash")).splitlines():
            program, *words = shlex.split(line)
            if program == "python":
                runpy.run_path(words[0], run_name="__main__")
            else:
                assert main([*words, *([] if shown or words[0] != "fit" else SHORT)]) == 0, line
            captured = capsys.readouterr()
            assert "warning" not in captured.err, captured.err
            output += captured.out
        same = re.findall(r"^(?:done\.|example_epsilon:|.* rounds: ).*$", "".join(fenced(text, "text")), re.M)
        assert same or number == 4
        assert not shown or [line for line in same if line not in output] == []
        return output

    return run


def test_the_first_script_is_the_only_other_command() -> None:
    assert fenced(section(0), "bash") == ["python make_stand_ins.py\n"]


@AS_SHOWN
def test_newspapers(shown: bool, carry_out: Any) -> None:
    assert "After the " in carry_out(1, shown=shown)
    assert (Path("press_model") / "model.safetensors").is_file()


@AS_SHOWN
def test_a_small_llama(shown: bool, carry_out: Any) -> None:
    carry_out(3, shown=shown)
    assert json.loads((Path("small_llama_model") / "config.json").read_text())["model_type"] == "llama"


@AS_SHOWN
def test_hospitals_and_their_adapters(shown: bool, carry_out: Any) -> None:
    pytest.importorskip("peft")
    output = carry_out(2, shown=shown)
    epsilons = re.findall(r"│ +(\d+\.\d\d) │$", output, re.M)
    assert len(epsilons) == 3
    assert not shown or epsilons == re.findall(r"│ +(\d+\.\d\d) │$", "".join(fenced(section(2), "text")), re.M)
    output = carry_out(4, shown=shown)
    before, after = (float(found) for found in re.findall(r": perplexity ([\d.]+)$", output, re.M))
    assert not shown or after < before
    assert re.search(r"^It may be .+\.$", output, re.M)
    assert "trained on conversations" in (Path("trust_adapters") / "README.md").read_text()
    ours, theirs = (load_file(f"{name}/model.safetensors") for name in ("trust_model", "home_model"))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-5
