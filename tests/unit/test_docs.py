"""Checks every block of shell, YAML and Python in README.md, CONTRIBUTING.md and docs/**/*.md.

New pages are found by themselves. Their blocks are checked by language:

- `bash` is read by a real shell in which every program is replaced by a recorder. A command that begins with `worldlm`
  is checked by HOW, one function for each command: add a line there for a new command. PROGRAMS lists what else a page
  may tell you to type.
- `yaml` is parsed as what it contains: a topology, a recipe or a part of one, corpora, callbacks.
- `python` is executed, all blocks of a page one after another, with the smaller numbers of SMALLER.

A block whose first line is a comment with a file name, such as `# my_world.yaml`, is written to a file of that name,
and the blocks of all pages can use it. Put `<!-- not run: why -->` on the line before a block that cannot run in a
test. It is then checked, but the slow test does not run it; the slow test runs all other blocks with a small model.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from glob import glob
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldlm.cli import COMMANDS, main
from worldlm.cli.parser import parse_command_line
from worldlm.cli.recipe import find_class, read_recipe
from worldlm.commands.compare import command as compare_command
from worldlm.commands.compare import compare
from worldlm.commands.compare.plan import PlannedRun, plan_runs
from worldlm.commands.inference import evaluate, export, generate
from worldlm.commands.organisations import identities, run_node
from worldlm.commands.report import command as report_command
from worldlm.topology import find_file, load_topology, parse_topology

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
FOLDERS = ("tutorials", "how-to", "explanation", "reference", "benchmarks")
"""Folders of docs/ that a page may be in: those of Diataxis, and measurements."""


def find_pages() -> list[Path]:
    """Return the pages that people write: all but the API pages, which Sphinx fills from docstrings."""
    skipped = (DOCS / "_build", DOCS / "reference" / "api")
    found = [page for page in sorted(DOCS.rglob("*.md")) if not any(page.is_relative_to(one) for one in skipped)]
    return [TOP / "README.md", TOP / "CONTRIBUTING.md", *found]


PAGES = find_pages()


def name_of(page: Path) -> str:
    return page.relative_to(TOP).as_posix()


PROGRAMS = (
    "worldlm python pip pytest ruff mypy lint-imports "
    "sphinx-build tensorboard torchrun pyproject-build twine srun .ci/run"
)
"""What pages may tell a reader to type, beside what a shell has by itself."""

SMALLER = {
    "max_epochs=10": "max_epochs=1, limit_train_batches=1",
    "limit_val_batches=4": "limit_val_batches=1",
    "d_model=128": "d_model=16",
    'tokenizer="bytes"': 'tokenizer="bytes", cache_dir="cache"',
}
"""What stands in Python blocks, and what is executed in its place."""


# ---------------------------------------------------------------------- blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What stands between two fences."""

    page: Path
    line: int
    text: str
    runs: bool
    """False where the page says, in a comment before the block, why it cannot run in a test."""

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"

    @property
    def file(self) -> str:
        """The name in a first line such as `# my_world.yaml`, or "": what other blocks call this one."""
        first = re.match(r"# ([\w/]+\.(?:yaml|py))\n", self.text)
        return first.group(1) if first else ""


_FENCE = re.compile(
    r"(?P<note>^ *<!--[^\n]*-->\n)?^(?P<indent> *)```(?P<language>\w+)\n(?P<text>.*?)^ *```$", re.M | re.S
)


@cache
def blocks_of(page: Path, language: str) -> list[Block]:
    text, found = page.read_text("utf-8"), []
    for match in _FENCE.finditer(text):
        note = match["note"] or ""
        if "not run" in note:
            assert re.fullmatch(r" *<!-- not run: \w.* -->\n", note), f"{name_of(page)}: write <!-- not run: why -->"
        if match["language"] == language:
            line = text.count("\n", 0, match.start("language")) + 1
            content = textwrap.dedent(match["text"])
            found.append(Block(page=page, line=line, text=content, runs="not run" not in note))
    return found


def all_blocks(language: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for page in PAGES for block in blocks_of(page, language)]


def commands_of(block: Block) -> Iterator[list[str]]:
    """Yield the words of every command of a block of shell, read in the current folder by a real shell.

    Comments, quotes, braces and here-documents are what they are to a reader; every program is a stand-in that
    writes its words down.
    """
    calls = Path(".calls")
    calls.write_text("")
    stand_ins = "".join(f'function {name} {{ record {name} "$@"; }}\n' for name in PROGRAMS.split())
    script = (
        f"record() {{ printf '%s\\0' \"$@\" $'\\x01' >> .calls; }}\n{stand_ins}"
        f"cat() {{ /bin/cat; }}\nPATH=/nowhere\nset -e\n{block.text}"
    )
    done = subprocess.run(["/bin/bash", "-c", script], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stderr) == (0, ""), f"{block.place}: {done.stderr}"
    for call in calls.read_text().split("\x01\0")[:-1]:
        yield call.split("\0")[:-1]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a reader stands in, with all files that pages show."""
    for page in PAGES:
        for block in (*blocks_of(page, "yaml"), *blocks_of(page, "python"), *blocks_of(page, "py")):
            if block.file:
                path = tmp_path / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
    world = tmp_path / "my_world.yaml"  # shown in how-to/write_a_topology.md
    if world.exists():  # how-to/compare_methods.md names another tree with the same leaves
        swapped = world.read_text().replace("name: my-world", "name: my-world-swapped")
        (tmp_path / "my_world_swapped.yaml").write_text(swapped)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    return tmp_path


# ---------------------------------------------------------------------- commands


def settings_in(given: list[str]) -> tuple[list[str], tuple[Path, ...]]:
    """Return what of a command of Lightning's its parser is handed, and the recipes."""
    command_line = parse_command_line([word for word in given if word != "--print_config"])
    return command_line.words, command_line.recipes


def check_settings(reading: Any, given: list[str]) -> None:
    """Parse a command of Lightning's: its recipes are found, its keys, classes and values are right."""
    arguments, recipes = settings_in(given)
    assert recipes, "names no recipe"
    for path in recipes:
        read_recipe(path, reading.known)
    parsed = reading.parser.parse_args(arguments)
    load_topology(find_file("topologies", parsed[given[0]].federation.topology))


def check_fit(reading: Any, given: list[str]) -> None:
    """Parse a fit's settings; those of a repetition are laid over a run's, for which a recipe stands in."""
    if "--repeat" in given:
        command_line = parse_command_line(["fit", *given])
        assert command_line.repeat is not None
        assert command_line.repeat.startswith("runs/")
        given = ["--recipe", "quickstart", *command_line.settings]
    check_settings(reading, ["fit", *given])


def check_node(reading: Any, command: str, given: list[str]) -> None:
    """Parse the settings of one node, and check that the topology has it."""
    options, command_line = run_node.parse(command, given)
    parsed = reading.parser.parse_args(command_line.words)
    assert options.node in load_topology(find_file("topologies", parsed["fit"].federation.topology)).nodes


def check_compare(reading: Any, given: list[str]) -> None:
    """Plan the runs, and parse the first, and what does not come with WorldLM, which tests of its own parse."""
    parser = compare_command._parser()
    options, rest = parser.parse_known_args(given)
    overrides = compare_command._overrides(parser, rest)
    if options.read:
        return
    assert options.recipe
    assert options.methods
    runs = plan_runs(options.recipe, options.methods, [1], name="x", runs="runs", overrides=overrides)
    ours = str(find_file("recipes", "quickstart").parent)
    for number, run in enumerate(runs):
        recipes = [word for before, word in pairwise(run.command) if before == "--recipe"]
        if number == 0 or not all(one.startswith(ours) for one in recipes):
            check_settings(reading, list(run.command))


def check_topology(reading: Any, given: list[str]) -> None:
    if given[0] != "estimate":
        return carry_out(["topology", *given])
    speed = [i for i, one in enumerate(given) if one == "--tokens_per_second"]  # no setting of `prepare`
    assert all(float(given[i + 1]) > 0 for i in speed)
    rest = [one for i, one in enumerate(given) if not {i, i - 1} & set(speed)]
    check_settings(reading, ["prepare", "--recipe", *rest[1:]])


def check_words(parser: Any, given: list[str]) -> None:
    """Let a command's own parser read its words; what they name is there once the commands before are carried out."""
    parser.parse_args(given)


def carry_out(given: list[str]) -> None:
    """Run a command here and now."""
    try:
        status = main(given)
    except SystemExit as ended:  # argparse's help
        status = int(ended.code or 0)
    assert status == 0, given


HOW: dict[str, Callable[[Any, list[str]], None]] = {
    "fit": check_fit,
    "validate": lambda reading, given: check_settings(reading, ["validate", *given]),
    "prepare": lambda reading, given: check_settings(reading, ["prepare", *given]),
    "compare": check_compare,
    "topology": check_topology,
    "export": lambda reading, given: check_words(export._parser(), given),
    "generate": lambda reading, given: check_words(generate._parser(), given),
    "evaluate": lambda reading, given: check_words(evaluate._parser(), given),
    "report": lambda reading, given: check_words(report_command._parser(), given),
    "organisations": lambda reading, given: check_words(identities._parser(), given),
    "serve": lambda reading, given: check_node(reading, "serve", given),
    "join": lambda reading, given: check_node(reading, "join", given),
    "runs": lambda reading, given: carry_out(["runs", *given]),
    "help": lambda reading, given: carry_out(["help", *given]),
    "--version": lambda reading, given: carry_out(["--version", *given]),
    "": lambda reading, given: carry_out(given),
}
"""How the command that is named is checked without training; given are the parsed recipe's settings, and its words."""


def check_other(words: list[str]) -> None:
    """Check what is no command of WorldLM's: scripts and their options are there, and extras are."""
    program, *given = words
    if program == "pip":
        extras = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for name in (name for one in given for names in re.findall(r"\[(.*)\]", one) for name in names.split(",")):
            assert name in extras
    shown = program == "python" and Path(given[0]).is_file()  # a script that a page shows is run as a Python block
    if program == "python" and given[0] != "-m" and not shown:
        script = TOP / given[0]
        source = (script / "__main__.py" if script.is_dir() else script).read_text()
        for option in (one for one in given[1:] if one.startswith("--")):
            assert re.search(rf"[\"'](--)?{option.removeprefix('--')}[\"']", source), option
    if program.startswith(".ci"):
        assert (TOP / program).is_file()


DEADLINES = pytest.mark.filterwarnings("ignore:.*deadline_seconds has no effect at .* in a simulation")
"""For topologies of `worldlm serve`, where deadlines are real."""


@DEADLINES
@pytest.mark.parametrize("block", all_blocks("bash"))
def test_commands(block: Block, desk: Path, reading: Any, capfd: pytest.CaptureFixture[str]) -> None:
    found = list(commands_of(block))
    assert found
    for words in found:
        if "worldlm" not in words:
            check_other(words)
            continue
        command, *given = words[words.index("worldlm") + 1 :] or [""]
        assert command in HOW, f"{block.place}: say in HOW how `worldlm {command}` is checked"
        HOW[command](reading, given)


def test_every_command_is_shown_somewhere() -> None:
    shown = "\n".join(block.values[0].text for block in all_blocks("bash"))
    assert [name for name in COMMANDS if not re.search(rf"\bworldlm {name}\b", shown)] == []


# ---------------------------------------------------------------------- YAML and Python


@DEADLINES
@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml(block: Block, desk: Path, reading: Any) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict) and "root" in content:
        parse_topology(block.text, block.place)
        return
    if isinstance(content, list):  # callbacks
        for one in content:
            found, _ = find_class(one["class_path"])
            found(**one.get("init_args", {}))
        content = {"trainer": {"callbacks": content}}
    elif all(isinstance(one, dict) and "class_path" in one for one in content.values()):
        content = {"data": {"corpora": content}}
    Path("shown.yaml").write_text(yaml.safe_dump(content))
    check_settings(reading, ["fit", "--recipe", "quickstart", "--recipe", "shown.yaml"])


def test_the_example_of_a_callback_is_short(desk: Path) -> None:
    assert len(Path("vote.py").read_text().splitlines()) < 30


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page, "python")], ids=name_of)
def test_python(page: Path, desk: Path) -> None:
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*warmup_steps is|.*treespec")
        for block in blocks_of(page, "python"):
            compile(block.text, block.place, "exec")
            imports = "\n".join(line for line in block.text.splitlines() if line.startswith(("from ", "import ")))
            text = block.text if block.runs else imports
            for shown, smaller in SMALLER.items():
                text = text.replace(shown, smaller)
            exec(compile("\n" * block.line + text, str(block.page), "exec"), names)


def test_both_pages_show_the_same_table_of_the_quickstart() -> None:
    pages = ("README.md", "docs/tutorials/quickstart.md")
    tables = [block.text for page in pages for block in blocks_of(TOP / page, "text")]
    tables = [one for one in tables if "after 10 rounds" in one]
    assert len(tables) == 2
    assert tables[0] == tables[1]


# ---------------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def table_of_contents() -> list[str]:
    """Return the entries of all toctrees of the index: pages by their path below docs/, without the ending."""
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text("utf-8"), re.S)
    return [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]


def test_every_page_is_in_the_table_of_contents() -> None:
    pages = [page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES if page.is_relative_to(DOCS)]
    entries = table_of_contents()
    assert sorted(set(entries)) == sorted(entries)
    assert [page for page in pages if page != "index" and page not in entries] == []
    assert [entry for entry in entries if not (DOCS / f"{entry}.md").is_file()] == []


def test_every_page_is_in_a_folder_that_says_what_it_is() -> None:
    below = [page.relative_to(DOCS) for page in PAGES if page.is_relative_to(DOCS)]
    misplaced = [page for page in below if len(page.parts) != 2 or page.parts[0] not in FOLDERS]
    assert [page.as_posix() for page in misplaced] == ["index.md"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    """At most 110 characters outside of code and tables, so that text and its changes can be read in a terminal."""
    code, long = "", []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = re.match(r" *(`{3,})", line)
        if fence:
            code = "" if code == fence[1] else code or fence[1]
        elif not code and not line.lstrip().startswith("|") and len(line) > 110:
            long.append(f"{name_of(page)}:{number}: {len(line)} characters")
    assert long == []


def test_every_module_of_the_mathematics_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "api" / "federation.md").read_text("utf-8")
    modules = sorted(path.stem for path in (TOP / "worldlm" / "federation").glob("*.py") if path.stem != "__init__")
    assert re.findall(r"automodule:: worldlm\.federation\.(\w+)", page) == modules


@pytest.mark.slow
def test_pages_build_without_a_warning(tmp_path: Path) -> None:
    """As `.ci/run` does."""
    pytest.importorskip("furo")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--quiet",
        "-W",
        "--keep-going",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run([*command, "-d", str(tmp_path / "trees")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------------- all of it, carried out small

TEXT = "the sea came in and the sea went out, and nobody on the shore could say how often that had been.\n"


def smaller(reading: Any, given: list[str]) -> list[str]:
    """Return what makes a command of Lightning's small: one step of a tiny model on a few kB of text."""
    arguments, _ = settings_in(given)
    corpora = reading.parser.parse_args(arguments)[given[0]].data.corpora
    local = [word for name in corpora if name != "all" for word in (f"--data.local.{name}", "{split}.jsonl")]
    sizes = {"d_model": 32, "num_heads": 2, "max_seq_len": 16, "vocab_size": 257}
    limits = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1, "accumulate_grad_batches": 1}
    pairs = {f"--model.architecture.{name}": value for name, value in sizes.items()}
    pairs |= {f"--trainer.{name}": value for name, value in limits.items()}
    pairs |= {"--data.tokenizer": "bytes", "--data.cache_dir": "cache", "--data.batch_size": 2, "--data.root": "."}
    pairs |= {"--model.optimizer.warmup_steps": 0, "--trainer.check_val_every_n_epoch": 1}
    return [*(word for name, value in pairs.items() for word in (name, str(value))), *local]


_TYPED = re.compile(r"^(worldlm|pip install .* && worldlm) \w", re.M)
TRAINING = [page for page in PAGES if any(one.runs and _TYPED.search(one.text) for one in blocks_of(page, "bash"))]


class Here:
    """A run of a comparison, carried out in this process when it is first looked at."""

    def __init__(self, reading: Any, run: PlannedRun) -> None:
        self.command = [*run.command, *smaller(reading, list(run.command))]

    def poll(self) -> int:
        return main(self.command)

    def terminate(self) -> None: ...

    def kill(self) -> None: ...

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TRAINING, ids=name_of)
@pytest.mark.filterwarnings("ignore")
def test_commands_are_carried_out(page: Path, desk: Path, reading: Any) -> None:
    for split in ("train", "validation"):
        document = json.dumps({"text": TEXT * 4 + split, "prompt": "", "completion": split})
        Path(f"{split}.jsonl").write_text(f"{document}\n" * 30)  # enough for each shard of a corpus
    done = 0
    for block in (one for one in blocks_of(page, "bash") if one.runs):
        for words in commands_of(block):
            if words[0] != "worldlm" or len(words) == 1:
                continue
            command, *given = words[1:]
            given = [path for one in given for path in (sorted(glob(one)) or [one])]  # of folders made meanwhile
            done += 1
            if command == "compare":
                assert compare(given, start=lambda run, threads: Here(reading, run)) == 0
            elif command in ("fit", "validate", "prepare") and "--repeat" not in given:
                carry_out([command, *given, *smaller(reading, [command, *given])])
            else:
                carry_out([command, *given])
    assert done
