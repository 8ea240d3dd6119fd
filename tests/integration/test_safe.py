"""`--safe`: a stranger's recipe, whatever it names, runs no code and imports none."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse._common import get_parsing_setting

from worldlm.cli import main
from worldlm.cli.recipe import find_class, read_recipe
from worldlm.cli.recipe_cli import RecipeCLI
from worldlm.cli.recipe_parser import UsageError
from worldlm.cli.safe_mode import ALLOWED, REFUSED, denied, refusal, restricted_imports
from worldlm.commands.compare.execute import start_process
from worldlm.commands.compare.plan import plan_runs
from worldlm.commands.inference.saved_run import data_module
from worldlm.topology import find_file
from worldlm.topology.errors import UserError

STRANGER = """\
import pathlib
pathlib.Path("ran").touch()
from worldlm.callbacks import NodeMetrics
class Evil(NodeMetrics): ...
def evil(*_): pathlib.Path("ran").touch()
"""
POPEN = "{class_path: subprocess.Popen, init_args: {args: [touch, ran]}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand where a stranger left a module that shows when it ran, and where Python finds it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    Path("stranger.py").write_text(STRANGER)
    yield tmp_path
    sys.modules.pop("stranger", None)
    assert not Path("ran").exists()


def parse(reading: RecipeCLI, *given: str) -> Any:
    """Parse as `worldlm fit` does, and build what would be built, but for the trainer."""
    parser = reading.parser
    settings = parser.parse_args(["fit", "--recipe", str(find_file("recipes", "quickstart")), *given])
    return parser.instantiate_classes(settings)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--trainer.callbacks", "stranger.Evil"], "stranger.Evil"),
        (["--trainer.callbacks+=stranger.Evil"], "stranger.Evil"),
        (["--trainer.callbacks", "[{class_path: stranger.Evil}]"], "stranger.Evil"),
        (["--trainer.callbacks", "stranger.evil"], "stranger.evil"),
        (["--trainer.logger", "stranger.Evil"], "stranger.Evil"),
        (["--trainer.logger.help", "stranger.Evil"], "stranger.Evil"),
        (["--trainer.profiler.class_path", "stranger.Evil"], "stranger.Evil"),
        (["--data.corpora.topics.class_path", "stranger.Evil"], "stranger.Evil"),
        (["--data.corpora", "{topics: {class_path: stranger.Evil}}"], "stranger.Evil"),
        (["--data.tokenizer.class_path", "stranger.Evil"], "stranger.Evil"),
        (["--trainer.logger", "lightning.pytorch.loggers.WandbLogger"], "lightning.pytorch.loggers.WandbLogger"),
        (["--trainer.callbacks", "worldlm.data.hub.Path"], "pathlib.Path"),
        (["--trainer.callbacks", "torch.hub.load"], "torch.hub.load"),
        (["--trainer.plugins", "lightning.pytorch.plugins.TorchCheckpointIO"], "torch_io.TorchCheckpointIO"),
        (
            ["--trainer.callbacks", "lightning.pytorch.callbacks.LambdaCallback"],
            "lightning.pytorch.callbacks.LambdaCallback",
        ),
        (
            ["--trainer.callbacks", "[{class_path: BackboneFinetuning, init_args: {lambda_func: stranger.evil}}]"],
            "stranger.evil",
        ),
    ],
)
def test_nothing_on_the_command_line_imports(reading: RecipeCLI, given: list[str], named: str) -> None:
    with restricted_imports(), pytest.raises(UsageError, match="is not allowed, denied by") as refused:
        parse(reading, *given)
    assert denied(str(refused.value)).endswith(named)
    assert "stranger" not in sys.modules


@pytest.mark.parametrize(
    "given",
    [
        ["--federation.settings", f"{{num_local_steps: {POPEN}}}"],
        [
            "--trainer.callbacks",
            f"[{{class_path: Averaging, init_args: {{parts: [keys], optimizer: SGD, arguments: {{lr: {POPEN}}}}}}}]",
        ],
    ],
)
def test_where_any_value_may_stand_nothing_is_built(reading: RecipeCLI, given: list[str]) -> None:
    with restricted_imports(), pytest.raises((ValueError, TypeError)):
        built = parse(reading, *given)
        raise ValueError(built)  # parsed: the values are plain, and whoever gets them refuses them


def test_a_recipe_is_refused_with_its_lines(reading: RecipeCLI) -> None:
    recipe = Path("r.yaml")
    recipe.write_text(
        "trainer:\n  logger: {class_path: stranger.Evil}\n  callbacks:\n    - class_path: worldlm.callbacks.Averaging\n"
        "    - class_path: lightning.pytorch.callbacks.LambdaCallback\n    - class_path: worldlm.data.hub.Path\n"
    )
    with pytest.raises(UserError) as refused:
        read_recipe(recipe, {"trainer.logger", "trainer.callbacks"}, safe=True)
    why = "is not trusted: only classes of worldlm, torch and lightning are, if they run no others"
    assert refused.value.mistakes == (
        f"r.yaml:2: class 'stranger.Evil' {why}",
        "r.yaml:5: class 'lightning.pytorch.callbacks.LambdaCallback' is not trusted: it calls functions that a recipe "
        "names",
        f"r.yaml:6: class 'pathlib.Path' {why}",
    )


def test_a_plain_name_in_a_recipe_is_told_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("r.yaml").write_text("trainer:\n  max_epochs: 1\n  logger: stranger.Evil\n")
    assert main(["fit", "--safe", "--recipe", "quickstart", "--recipe", "r.yaml"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("worldlm: ")] == [
        "worldlm: r.yaml:3: class 'stranger.Evil' is not trusted: only classes of worldlm, torch and "
        "lightning are, if they run no others"
    ]


def test_what_is_allowed_is_there() -> None:
    for path in (*ALLOWED, *REFUSED):
        module, _, name = path.rpartition(".")
        assert hasattr(__import__(module, fromlist=[name]), name)


def test_shipped_recipes_are_safe(reading: RecipeCLI) -> None:
    recipes = sorted(find_file("recipes", "quickstart").parent.rglob("*.yaml"))
    assert len(recipes) > 20
    for recipe in recipes:
        read_recipe(recipe, reading.known, safe=True)
    with restricted_imports():
        parse(reading)


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("worldlm.callbacks.Averaging", True),
        ("lightning.pytorch.callbacks.EarlyStopping", True),
        ("lightning.pytorch.loggers.CSVLogger", True),
        ("lightning.pytorch.loggers.MLFlowLogger", False),
        ("lightning.pytorch.callbacks_too.Evil", False),
        ("worldlm.commands.compare.execute.start_process", False),
        ("torch.load", False),
        ("torch.optim.AdamW", True),
        ("worldlm", False),
    ],
)
def test_dotted_paths(path: str, is_allowed: bool) -> None:
    assert (refusal(path) == "") is is_allowed


def test_all_is_put_back() -> None:
    path = list(sys.path)
    before = [get_parsing_setting(name) for name in ("import_path_verdicts", "import_paths_enforced")]
    with pytest.raises(KeyError), restricted_imports():
        assert str(Path.cwd()) not in sys.path
        assert get_parsing_setting("import_paths_enforced")
        raise KeyError
    assert sys.path == path
    assert [get_parsing_setting(name) for name in ("import_path_verdicts", "import_paths_enforced")] == before


def test_an_old_jsonargparse_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("jsonargparse._common.parsing_settings")
    with pytest.raises(UserError, match="--safe needs jsonargparse 4.53 or newer"), restricted_imports():
        pass


def test_a_stranger_s_run_builds_no_class_of_his(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"corpora": {"a": {"class_path": "stranger.Evil"}}}
    with pytest.raises(ValueError, match=r"^class 'stranger\.Evil' is not trusted: .* no others; --trust allows all$"):
        data_module(settings, trusted=False)
    assert find_class("stranger.Evil", safe=True)[0] is None


def test_runs_of_a_comparison_are_safe_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[list[str]]()
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    for safe in (True, False):
        (run,) = plan_runs(["quickstart"], ["methods/fedavg"], [1], name="c", runs=str(folder), safe=safe)
        run.folder.mkdir(parents=True, exist_ok=True)
        start_process(run, 1)
    assert started[0][1:4] == ["-P", "-m", "worldlm"]
    assert started[0][-1] == "--safe"
    assert started[1][1:3] == ["-m", "worldlm"]
    assert "--safe" not in started[1]
