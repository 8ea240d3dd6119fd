"""Any file in the place of a topology or a recipe is read, or refused in plain lines, soon and in little memory."""

from __future__ import annotations

import json
import os
import re
import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worldlm.cli import main
from worldlm.cli.explain import explain, out_of_memory
from worldlm.cli.recipe import read_recipe
from worldlm.cli.recipe_parser import UsageError
from worldlm.cli.safe_mode import restricted_imports
from worldlm.commands.compare.plan import plan_runs
from worldlm.topology import find_file, load_topology, parse_topology
from worldlm.topology.compose import too_far
from worldlm.topology.errors import UserError, printable
from worldlm.topology.reader import MAX_CHARACTERS, MAX_MISTAKES, Reader, read_plain, read_text

mutate = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "mutations.py"))["mutate"]
TOPOLOGIES = [find_file("topologies", name).read_bytes() for name in ("quickstart", "star", "pile_three_level_private")]
RECIPES = [find_file("recipes", name).read_bytes() for name in ("quickstart", "mc4_tiny", "methods/worldlm")]
BOMB = "".join(
    ["x0: &a0 {k1: 1, k2: 2}\n", *(f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20))]
)
Read = Callable[[Path], object]

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of settings that have no effect
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of class paths where any value may stand
]


@pytest.fixture(autouse=True)
def _safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["worldlm", "fit"])


@pytest.fixture(scope="module")
def parse(reading: Any) -> Read:
    """Return what reads a recipe as `worldlm fit --safe` does, up to where it would build anything."""
    base = str(find_file("recipes", "quickstart"))

    def read(path: Path) -> object:
        readers = [read_recipe(path, reading.known, safe=True)]
        try:
            with restricted_imports():
                return reading.parser.parse_args(["fit", "--recipe", base, "--recipe", str(path)])
        except (UsageError, ValueError) as error:
            raise UserError(explain(str(error), readers, reading.known).splitlines()) from error

    return read


def _mistakes(read: Read, path: Path) -> tuple[str, ...]:
    try:
        read(path)
    except UserError as error:
        return error.mistakes or ("",)
    return ()


def read_or_refuse(read: Read, path: Path, data: bytes) -> None:
    """Only UserError may come, and all its lines must be of use; and soon."""
    path.write_bytes(data)
    started = time.process_time()
    mistakes = _mistakes(read, path)
    assert all(mistake.strip() and len(mistake.splitlines()) == 1 for mistake in mistakes)
    assert max(map(len, mistakes), default=0) < 3000
    assert time.process_time() - started < 1 + 10 * len(data) / 1e6


FEW = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_topology(rng: Random, tmp_path: Path) -> None:
    read_or_refuse(load_topology, tmp_path / "t.yaml", mutate(rng, TOPOLOGIES, seldom=0.02))


@FEW
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_recipe(rng: Random, tmp_path: Path, reading: Any) -> None:
    read_or_refuse(
        lambda path: read_recipe(path, reading.known, safe=True), tmp_path / "r.yaml", mutate(rng, RECIPES, seldom=0.02)
    )


@settings(FEW, max_examples=20)
@given(rng=st.randoms(use_true_random=False))
def test_a_mutated_recipe_through_the_command_line(rng: Random, tmp_path: Path, parse: Read) -> None:
    read_or_refuse(parse, tmp_path / "r.yaml", mutate(rng, RECIPES, seldom=0.2))


@pytest.mark.slow
def test_many_mutated_files(tmp_path: Path, reading: Any, parse: Read) -> None:
    kinds: list[tuple[Read, list[bytes], int]] = [
        (load_topology, TOPOLOGIES, 3_000),
        (lambda path: read_recipe(path, reading.known, safe=True), RECIPES, 3_000),
        (parse, RECIPES, 300),
    ]
    for read, seeds, number in kinds:
        for i in range(number):
            read_or_refuse(read, tmp_path / "f.yaml", mutate(Random(i), seeds))


# ---------------------------------------------------------------------- what was found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("? [a]\n: 1\n", "r.yaml:1: a key of the recipe must be text, but is a list"),
        ("a.b.c.d.e.f.g: 1\n", "r.yaml:1: unknown key 'a.b.c.d.e.f.g'"),
        ("model:\n  no.such.key.at.all: 1\n", "r.yaml:2: unknown key 'model.no.such.key.at.all'"),
        ("trainer: {callbacks: {? [a]: 1}}\n", "r.yaml:1: a key of trainer.callbacks must be text, but is a list"),
        ("trainer: {callbacks: {class_path: [a]}}\n", "r.yaml:1: class_path must be text, but is a list"),
        ("trainer: {callbacks: {class_path: .a.B}}\n", "r.yaml:1: class_path '.a.B' must be names with dots between"),
        (
            "trainer:\n  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {? [a]: 1}}\n",
            "r.yaml:2: a key of the init_args of lightning.pytorch.loggers.CSVLogger must be text, but is a list",
        ),
        (
            "trainer: {logger: {class_path: x.Y, class_path: x.Z}}\n",
            "r.yaml:1: key 'class_path' of trainer.logger is written twice, first in line 1",
        ),
        ("trainer: {max_epochs: " + "9" * 5000 + "}\n", "r.yaml:1: trainer.max_epochs has a number of 5000 digits"),
        ("trainer: {max_epochs: !!bool maybe}\n", "r.yaml:1: tag !!bool does not fit 'maybe'; write the plain value"),
        ("trainer: {max_epochs: !!timestamp x}\n", "r.yaml:1: tag !!timestamp does not fit 'x'; write the plain value"),
        ("trainer: {max_epochs: !!int [1]}\n", "r.yaml:1: tag !!int does not fit a list or a mapping"),
        (
            "trainer:\n  callbacks: [" + "{class_path: a.B}, " * 101 + "]\n",
            "r.yaml:2: trainer.callbacks has a list of more",
        ),
        (BOMB, "r.yaml:5: has more than the"),
        (
            f"trainer:\n  max_epochs: {json.dumps(BOMB)}\n",
            "r.yaml:2: trainer.max_epochs has a text that, read as YAML, has",
        ),
        (
            f"federation:\n  settings: {json.dumps('[' * 100)}\n",
            "r.yaml:2: federation.settings has a text that, read as",
        ),
        (
            f"name: {json.dumps(json.dumps('{a: ' * 99))}\n",
            "r.yaml:1: name has a text that, read as YAML, is nested deeper",
        ),
        (
            "name: \"a: '!!bool maybe'\"\n",
            "r.yaml:1: name has a text that, read as YAML, tag !!bool does not fit 'maybe'",
        ),
        ('"\\e[31m": 1\n', "r.yaml:1: unknown key '\\x1b[31m'"),
        ('"\\e[31m": {? [a]: 1}\n', "r.yaml:1: a key of \\x1b[31m must be text"),
    ],
)
def test_a_recipe_is_refused(
    text: str, message: str, tmp_path: Path, parse: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("r.yaml")
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        parse(path)
    assert any(line.startswith(message) for line in refused.value.mistakes), refused.value


@pytest.mark.parametrize(
    "text", ["Once [upon", "*.txt", "!(a|b)", "a: b", "{{name}}", "[1, 2]", "&a 3", "!", "\\[*", ""]
)
def test_texts_that_are_no_bombs_may_stand(text: str) -> None:
    assert too_far(text) == ""


def test_a_value_is_not_repeated_without_end() -> None:
    message = explain(f"Something is wrong with {'x' * 100_000}", [], [])
    assert len(message) == MAX_CHARACTERS


def test_a_name_is_not_repeated_without_end() -> None:
    with pytest.raises(UserError) as refused:
        parse_topology(f"name: t\nroot: {{name: {'1' * 50_000}, corpus: a}}", "t.yaml")
    assert max(map(len, refused.value.mistakes)) == len("t.yaml:2: ") + MAX_CHARACTERS


def test_a_hundred_mistakes_are_told_and_the_rest_counted() -> None:
    text = "".join(f"key{i}: 1\n" for i in range(250)) + "name: t\nroot: {name: a, corpus: a}\n"
    with pytest.raises(UserError) as refused:
        parse_topology(text, "t.yaml")
    assert len(refused.value.mistakes) == MAX_MISTAKES + 1
    assert re.fullmatch(r"t\.yaml:\d+: and \d+ more mistakes from here on", refused.value.mistakes[-1])


def test_twenty_jurisdictions_are_warned_of_and_the_rest_counted() -> None:
    names = ", ".join(f"j{i}" for i in range(5000))
    top = f"name: t\nsettings: {{num_local_steps: 1, residuals: {{accept_from: [{names}]}}}}\n"
    with pytest.warns(UserWarning, match="no node has that jurisdiction|more jurisdictions") as warned:
        parse_topology(f"{top}root: {{name: w, children: [{{name: a, corpus: a}}]}}", "t.yaml")
    assert [str(warning.message) for warning in warned][20:] == [
        "accept_from names 4980 more jurisdictions that no node has"
    ]


def test_many_unknown_keys_take_no_time(tmp_path: Path, reading: Any) -> None:
    text = "trainer:\n" + "".join(f"  max_{i}: 1\n" for i in range(2_000))
    read_or_refuse(lambda path: read_recipe(path, reading.known), tmp_path / "r.yaml", text.encode())


# ---------------------------------------------------------------------- what is no file


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Things that are not files, by name, with the beginning of the error message."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder.yaml").mkdir()
    Path("gone.yaml").symlink_to("nowhere")
    Path("secret.yaml").symlink_to("/proc/self/mem")
    Path("huge.yaml").touch()
    os.truncate("huge.yaml", 10**12)
    no_file = "is not a regular file but a pipe or a device; save its content to a file"
    return {
        "pipe.yaml": f"pipe.yaml: {no_file}",
        "/dev/zero": f"/dev/zero: {no_file}",
        "folder.yaml": "folder.yaml: is a folder, not a YAML file",
        "huge.yaml": "huge.yaml: is larger than the 2000000 bytes allowed",
        "secret.yaml": "secret.yaml: cannot be read: ",
        "loop.yaml": "no file 'loop.yaml', and no file of that name in ",
        "gone.yaml": "no file 'gone.yaml', and no file of that name in ",
        "~nobody-of-that-name/x": "no file '~nobody-of-that-name/x', and no file",
        "a\0b": "no file 'a\\x00b', and no file of that name in",
        "../" * 2000: "no file '../../",
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("command", ["topology check", "fit --safe --recipe", "compare"])
def test_what_is_no_file_is_refused(command: str, odd: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    ends = ["--methods", "methods/fedavg"] if command == "compare" else []
    given_first = ["compare", "--recipe"] if command == "compare" else command.split()
    before = _peak()
    for name, message in odd.items():
        assert main([*given_first, name, *ends]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith(f"worldlm: {message}")], (name, lines)
        assert len(lines) == 1
    assert _peak() - before < 200e6


def test_a_recipe_may_not_point_out_of_here(
    odd: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it names is read as a topology, or not at all; nothing is written outside the folder of runs."""
    for setting, message in {
        "federation: {topology: /dev/zero}": "/dev/zero: is not a regular file",
        "federation: {topology: pipe.yaml}": "pipe.yaml: is not a regular file",
        "trainer: {callbacks: huge.yaml}": "r.yaml:1: class 'huge.yaml' is not trusted",
        "name: ../../evil": "name must be that of a folder below runs, but is '../../evil'",
        "name: /evil": "name must be that of a folder below runs, but is '/evil'",
        'name: "a\\0b"': "name must be that of a folder below runs, but is 'a\\x00b'",
        "data: {tokenizer: ../../x}": "tokenizer '../../x': there is no",
    }.items():
        Path("r.yaml").write_text(setting)
        assert main(["fit", "--safe", "--recipe", "quickstart", "--recipe", "r.yaml"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if message in line], (setting, lines)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "not enough memory: use"),
        (
            RuntimeError("[x] can't allocate memory: you tried to allocate 12 bytes. Error"),
            r"\(tried to allocate 12 bytes\)",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            r"memory \(out of memory\): use a smaller model or batch_size, or --trainer.nodes_on host",
        ),
        (RuntimeError("something else"), "^$"),
        (ValueError("must be 3"), "^$"),
    ],
)
def test_errors_of_missing_memory(error: Exception, message: str) -> None:
    assert re.search(message, out_of_memory(error))


def test_a_model_that_fits_nowhere_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--recipe", "quickstart", "--model.architecture.d_model", "80000000"]) == 2
    (line,) = (line_ for line_ in capsys.readouterr().err.splitlines() if line_.startswith("worldlm: "))
    assert line.startswith("worldlm: not enough memory (tried to allocate")


def test_plain_values_are_read_in_the_same_bounds(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for text, message in {
        BOMB: "has more than the",
        "a: 2001-99-99": "month must be in 1..12",
        "a: [": "expected the node",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_plain(path)
    path.write_text("a: [1, x]")
    assert read_plain(path) == {"a": [1, "x"]}


def test_a_comparison_of_a_hostile_recipe_is_planned(tmp_path: Path) -> None:
    """What is wrong with it, its runs say."""
    recipe = tmp_path / "r.yaml"
    for text in (
        BOMB,
        "federation: [a]",
        "a: !!bool maybe",
        "federation: {topology: 2001-99-99}",
        "federation: {topology: {}}",
    ):
        recipe.write_text(text)
        (run,) = plan_runs([str(recipe)], ["methods/fedavg"], [1], name="c", runs=str(tmp_path))
        assert run.settings["topology"] == {}


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert printable("a\x1b[2Jb\x00\u202ec\ud800 é🦙") == "a\\x1b[2Jb\\x00\\u202ec\\ud800 é🦙"
    with pytest.raises(UserError) as refused:
        Reader('"a', "t.yaml")
    assert all(line.isprintable() for line in refused.value.mistakes)
    with pytest.raises(UserError, match="is not a regular file"):
        read_text(Path("/dev/null"))
