"""Rules of the architecture that no linter checks; import-linter checks the layers of packages, see setup.cfg."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import worldlm

TOP = Path(worldlm.__file__).parent
SOURCES = sorted(TOP.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = ["worldlm", *path.relative_to(TOP).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def imports_of(path: Path) -> set[str]:
    """Return the modules of worldlm that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found & MODULES.keys()


def test_no_two_modules_import_each_other() -> None:
    graph = {name: imports_of(path) for name, path in MODULES.items()}
    assert len(graph) > 150
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"an import cycle: {' -> '.join(error.args[1])}") from None


def test_imports_within_functions_and_for_annotations_count(tmp_path: Path) -> None:
    path = tmp_path / "probe.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from worldlm.topology.tree import Node\n"
        "def late():\n    from worldlm.rounds import world\n    import worldlm.cli.main\n"
    )
    assert imports_of(path) == {"worldlm.topology.tree", "worldlm.rounds.world", "worldlm.cli.main"}


def test_only_packages_are_at_the_top() -> None:
    assert sorted(path.name for path in TOP.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_the_loops_alone_use_the_private_loops_of_lightning() -> None:
    users = [path.name for path in SOURCES if "lightning.pytorch.loops" in path.read_text()]
    assert users == ["epoch_loop.py", "fit_loop.py"]


def test_files_stay_small() -> None:
    assert {path.name: number for path in SOURCES if (number := len(path.read_text().splitlines())) > 300} == {}
