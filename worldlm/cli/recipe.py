"""Checks recipes before anything is built: unknown keys and classes, with file, line and the nearest name.

jsonargparse checks the values. This module finds the mistakes for which its messages give no line.
"""

import importlib
import inspect
from collections.abc import Collection
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from worldlm.callbacks import RENAMED
from worldlm.cli.safe_mode import refusal, refusal_of_class
from worldlm.topology.checks import shorten
from worldlm.topology.compose import C_LIMITS, line_of, pairs, too_far
from worldlm.topology.errors import UserError, suggest
from worldlm.topology.reader import MAX_MISTAKES, Reader, read_text
from worldlm.trainer.method_checks import wrong_base

MAX_OBJECTS = 100
"""Most objects in one list, such as callbacks. The time jsonargparse takes grows with the square of their number."""
MAX_DIGITS = 1000
"""Most digits of one number. Python reads at most 4300."""
_MOVED = {
    "Paging": "worldlm.storage.Paging",
    "RankLost": "worldlm.distributed.RankLost",
    "World": "worldlm.rounds.World",
    "Context": "worldlm.rounds.Context",
}
"""Where classes of worldlm.loop are now. All others are in worldlm.trainer."""


class RecipeError(UserError):
    """All mistakes of a recipe, one line each."""


class MergeRecipe(ActionConfigFile):
    """Lays a recipe over those before it: lists and mappings are replaced, `federation.settings` key by key."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read one more recipe."""
        before = cfg.get("federation.settings")
        for key in _lists(Reader(read_text(Path(values), RecipeError), str(values), RecipeError, C_LIMITS).root, ""):
            if isinstance(cfg.get(key), list):  # or items of a list of equal length would inherit arguments from it
                cfg[key] = None
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        after = cfg.get("federation.settings")
        if isinstance(before, dict) and isinstance(after, dict):
            cfg["federation.settings"] = {**before, **after}


def read_recipe(path: Path, known: Collection[str], safe: bool = False) -> Reader:
    """Check the keys and classes of a recipe.

    Args:
        path: The YAML file.
        known: Dotted names of all settings, such as `trainer.max_epochs`. Keys below them are not checked.
        safe: Whether to reject, without importing them, classes that `worldlm.cli.safe_mode` does not allow.

    Returns:
        The document, to look up lines in.

    Raises:
        RecipeError: Names every mistake with file and line.
    """
    reader = Reader(read_text(path, RecipeError), str(path), RecipeError, C_LIMITS)
    if not isinstance(reader.root, yaml.MappingNode):
        reader.fail(1, "a recipe must be a mapping (key: value)")
    _check_keys(reader, reader.root, "", known, safe)
    reader.finish()
    return reader


def _lists(node: yaml.Node, prefix: str) -> list[str]:
    """List the dotted path of every key whose value is a list. Lists within lists are left out."""
    if isinstance(node, yaml.SequenceNode):
        return [prefix]
    below = pairs(node) if isinstance(node, yaml.MappingNode) else ()
    return [path for key, entry in below for path in _lists(entry.node, f"{prefix}.{key.value}".removeprefix("."))]


def _check_keys(reader: Reader, node: yaml.Node, prefix: str, known: Collection[str], safe: bool) -> None:
    """Check the names of a mapping's keys down to the settings themselves, and the classes in these."""
    for name, entry in reader.mapping(node, prefix or "the recipe").items():
        path = f"{prefix}.{name}" if prefix else name
        if any(setting.startswith(f"{path}.") for setting in known):
            _check_keys(reader, entry.node, path, known, safe)
            continue
        if path.removesuffix("+") not in known:
            depth = prefix.count(".") + 1 if prefix else 0
            siblings = {key.split(".")[depth] for key in known if key.startswith(f"{prefix}." if prefix else "")}
            reader.report(entry.line, f"unknown key {shorten(repr(path))}{reader.near(name, siblings)}")
        _check_classes(reader, entry.node, shorten(path), safe)


def _check_classes(reader: Reader, node: yaml.Node, where: str, safe: bool) -> None:
    """Check each class_path and the names of its init_args, and report repeated keys and values that take too long."""
    if reader.num_mistakes >= MAX_MISTAKES:
        return
    if isinstance(node, yaml.ScalarNode):
        _check_value(reader, node, where)
    if isinstance(node, yaml.SequenceNode):
        if sum(isinstance(item, yaml.MappingNode) for item in node.value) > MAX_OBJECTS:
            reader.report(line_of(node), f"{where} has a list of more than the {MAX_OBJECTS} objects allowed")
            return
        for item in node.value:
            _check_classes(reader, item, where, safe)
    if not isinstance(node, yaml.MappingNode):
        return
    entries = reader.mapping(node, where)
    if "class_path" in entries:
        path = reader.value(entries["class_path"], str, "class_path")
        found, problem = (None, "") if path is MISSING else find_class(path, safe)
        if problem:
            reader.report(entries["class_path"].line, problem)
        elif found is not None and "init_args" in entries:
            _check_arguments(reader, found, path, entries["init_args"].node)
    for entry in entries.values():
        _check_classes(reader, entry.node, where, safe)


def _check_value(reader: Reader, node: yaml.ScalarNode, where: str) -> None:
    """Check that jsonargparse, which also reads texts as YAML, does not take too long over a value."""
    if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
        reader.report(line_of(node), f"{where} has a number of {len(node.value)} digits; {MAX_DIGITS} are allowed")
    elif problem := too_far(node.value):
        reader.report(line_of(node), f"{where} has a text that, read as YAML, {problem}")


def _check_arguments(reader: Reader, found: Any, name: str, node: yaml.Node) -> None:
    parameters = inspect.signature(found).parameters
    if not isinstance(node, yaml.MappingNode) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key, entry in reader.mapping(node, f"the init_args of {name}").items():
        if key not in parameters:
            allowed = ", ".join(parameters) or "none"
            near = suggest(key, parameters)
            reader.report(entry.line, f"{name} takes no argument {shorten(repr(key))}; allowed: {allowed}{near}")


def find_class(path: str, safe: bool = False) -> tuple[Any | None, str]:
    """Import the class that a class_path names.

    Args:
        path: The dotted path.
        safe: Whether to reject what `worldlm.cli.safe_mode` does not allow.

    Returns:
        The class and "", or None and the problem; None and "" for a name without a module, which jsonargparse looks up.
    """
    if problem := _renamed(path):
        return None, problem
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return None, ""
    if not all(part.isidentifier() for part in path.split(".")):
        return None, f"class_path {shorten(repr(path))} must be names with dots between{suggest(path, _our_classes())}"
    if safe and (problem := refusal(path)):
        return None, problem
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return None, f"class_path {path!r}: {error}{suggest(path, _our_classes())}"
    found = getattr(module, name, None)
    if not isinstance(found, type):
        near = suggest(name, [key for key, value in vars(module).items() if isinstance(value, type)])
        return None, f"class_path {path!r}: {module_name} has no class {name!r}{near}"
    if safe and (problem := refusal_of_class(found)):  # a module may import classes of other packages
        return None, problem
    problem = wrong_base(found)
    return (None, f"class_path {path!r}: {problem}") if problem else (found, "")


def _renamed(path: str) -> str:
    """Return where a class of an earlier version is now, as an error message; "" for all others."""
    module, _, name = path.rpartition(".")
    if name in RENAMED and (not module or f"{module}.".startswith("worldlm.")):
        present = f"worldlm.callbacks.{RENAMED[name]}"
    elif f"{module}.".startswith("worldlm.loop."):
        present = _MOVED.get(name, f"worldlm.trainer.{name}")
    else:
        return ""
    return f"class_path {path!r} was renamed: write {present}"


def _our_classes() -> list[str]:
    modules = [importlib.import_module(f"worldlm.{name}") for name in ("callbacks", "data")]
    return [f"{module.__name__}.{name}" for module in modules for name in getattr(module, "__all__", ())]
