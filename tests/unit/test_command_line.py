"""The words of a command line: parsed once, into what LightningCLI takes and what it does not."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from worldlm.cli import main
from worldlm.cli.parser import Parser, names, number_from, parse_command_line, split_option, whole_number, whole_numbers
from worldlm.cli.recipe import find_class, read_recipe
from worldlm.topology.errors import UserError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Path(f"{name}.yaml").touch()


def test_recipes_become_paths_where_they_stand() -> None:
    line = parse_command_line(["fit", "--recipe", "a.yaml", "--x.y", "1", "--safe", "--recipe=b.yaml", "--z=-2"])
    assert line.command == "fit"
    assert line.settings == ("--recipe=a.yaml", "--x.y", "1", "--recipe=b.yaml", "--z=-2")
    assert line.recipes == (Path("a.yaml"), Path("b.yaml"))
    assert line.safe
    assert line.repeat is None
    assert line.text == "worldlm fit --recipe a.yaml --x.y 1 --safe --recipe=b.yaml --z=-2"


def test_a_recipe_without_a_name_is_left_to_lightning() -> None:
    line = parse_command_line(["validate", "--recipe"])
    assert (line.settings, line.recipes) == (("--recipe",), ())


@pytest.mark.parametrize(("words", "asks"), [(["fit", "-h"], True), (["fit", "--help"], True), (["fit"], False)])
def test_help(words: Sequence[str], asks: bool) -> None:
    assert parse_command_line(words).asks_for_help is asks


def test_other_processes_start_with_the_same_settings() -> None:
    line = parse_command_line(["fit", "--safe", "--recipe", "a.yaml", "--x", "1"])
    settings = ["-m", "worldlm", "fit", "--recipe=a.yaml", "--x", "1"]
    assert line.process_command() == [sys.executable, "-P", *settings, "--safe"]
    assert parse_command_line(["fit", "--recipe", "a.yaml"]).process_command()[1] == "-m"


def test_the_command_that_resumes_a_run() -> None:
    line = parse_command_line(["fit", "--recipe", "a.yaml", "--ckpt_path=old", "--name", "n 1"])
    assert line.resume_command("last") == "worldlm fit --recipe a.yaml --name 'n 1' --ckpt_path last"


@pytest.mark.parametrize("words", [["--repeat", "runs/a"], ["--repeat=runs/a"]])
def test_a_run_that_is_repeated(words: list[str]) -> None:
    line = parse_command_line(["fit", *words, "--x", "1"])
    assert (line.repeat, line.settings) == ("runs/a", ("--x", "1"))
    assert parse_command_line(["validate", *words]).repeat is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeat"], "takes one run"),
        (["--repeat="], "takes one run"),
        (["--repeat", "--safe"], "takes one run"),
        (["--repeat", "a", "--repeat=b"], "takes one run"),
        (["--repeat", "a", "--recipe", "a.yaml"], "leave --recipe out"),
    ],
)
def test_mistakes_in_repeat(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_command_line(["fit", *words])


def test_values_of_an_option() -> None:
    assert split_option(["a", "--x", "1", "b", "--x=2", "--y"], "--x") == (["1", "2"], ["a", "b", "--y"])
    assert split_option(["--x"], "--x") == ([], [])


def test_a_parser_raises_with_its_usage() -> None:
    parser = Parser("worldlm try")
    parser.add_run()
    parser.add_safe()
    assert parser.parse_args(["runs/a", "--round", "3"]).round == 3
    with pytest.raises(UserError) as raised:
        parser.parse_args(["runs/a", "--round", "0"])
    message, *usage = raised.value.mistakes
    assert message == "try: argument --round: must be a whole number of at least 1, but is '0'"
    assert usage[0].startswith("usage: worldlm try")
    with pytest.raises(UserError, match="unrecognized arguments: --rou"):
        parser.parse_args(["runs/a", "--rou", "1"])


def test_values() -> None:
    assert names(" a, b,,c") == ["a", "b", "c"]
    assert whole_number(0)("12") == 12
    assert whole_numbers("1,-2") == [1, -2]
    assert number_from(0)("0.5") == 0.5
    for read, text in ((whole_number(1), "0"), (whole_number(1), "1.0"), (whole_numbers, "x"), (number_from(0), "nan")):
        with pytest.raises(argparse.ArgumentTypeError, match=f"but is '{text}'"):
            read(text)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("worldlm.callbacks.StartAnew", "worldlm.callbacks.DivergenceRecovery"),
        ("worldlm.callbacks.start_anew.StartAnew", "worldlm.callbacks.DivergenceRecovery"),
        ("StartAnew", "worldlm.callbacks.DivergenceRecovery"),
        ("worldlm.callbacks.SameText", "worldlm.callbacks.DataConsistencyCheck"),
        ("worldlm.loop.Paging", "worldlm.storage.Paging"),
        ("worldlm.loop.node_store.Paging", "worldlm.storage.Paging"),
        ("worldlm.loop.WorldTrainer", "worldlm.trainer.WorldTrainer"),
        ("worldlm.loop.FederationCallback", "worldlm.trainer.FederationCallback"),
        ("worldlm.loop.hooks.Context", "worldlm.rounds.Context"),
    ],
)
def test_a_class_that_was_renamed_is_found_by_its_new_name(old: str, new: str, safe: bool) -> None:
    assert find_class(old, safe) == (None, f"class_path {old!r} was renamed: write {new}")


def test_a_round_callback_is_no_callback_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from worldlm.rounds import RoundCallback\n\n\nclass Mine(RoundCallback): ...\n"
    (tmp_path / "my_part.py").write_text(source)
    (tmp_path / "mine.yaml").write_text("trainer:\n  callbacks:\n    - class_path: my_part.Mine\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"mine.yaml:3: .* Mine is a RoundCallback.*FederationCallback"):
        read_recipe(tmp_path / "mine.yaml", {"trainer.callbacks"})


@pytest.mark.parametrize("path", ["mine.StartAnew", "worldlm.callbacks.DivergenceRecovery", "worldlm.loops.Paging"])
def test_other_classes_were_not_renamed(path: str) -> None:
    assert "was renamed" not in find_class(path)[1]


def test_a_renamed_class_in_a_recipe_is_reported_with_its_line() -> None:
    Path("r.yaml").write_text("trainer:\n  callbacks:\n    - class_path: worldlm.callbacks.SameText\n")
    with pytest.raises(UserError) as raised:
        read_recipe(Path("r.yaml"), {"trainer.callbacks"})
    message = "class_path 'worldlm.callbacks.SameText' was renamed: write worldlm.callbacks.DataConsistencyCheck"
    assert raised.value.mistakes == (f"r.yaml:3: {message}",)


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow) for name in ("export", "generate", "evaluate")]
)
def test_a_command_can_be_imported_first(command: str) -> None:
    """In a new process, where nothing else has imported the packages in another order."""
    code = f"import worldlm.commands.inference.{command}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reading_and_drawing_need_no_torch() -> None:
    code = (
        "import sys; from worldlm.cli import main; import worldlm.commands.report, worldlm.commands.compare\n"
        "main(['runs']); main(['topology', 'check', 'quickstart']); main(['topology', 'show', 'quickstart'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'matplotlib', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


class PanicException(BaseException):
    """As that of libraries in Rust, which cannot be imported."""


def test_a_panic_of_a_library_ends_a_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def panic(words: list[str]) -> int:
        raise PanicException("\nindex out of bounds\nnote: more")

    monkeypatch.setattr(sys.modules["worldlm.cli.main"], "_run", panic)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == "worldlm: a library failed: index out of bounds (WORLDLM_DEBUG=1 shows where)\n"
    monkeypatch.setenv("WORLDLM_DEBUG", "1")
    with pytest.raises(PanicException):
        main(["runs"])


def test_a_current_folder_that_was_removed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["fit", "--recipe", "quickstart"]) == 2
    assert capsys.readouterr().err == "worldlm: the current folder was removed: change to another one\n"
