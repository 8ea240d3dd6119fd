"""Recipes checked before anything is built: unknown keys and classes, with file, line and the nearest name.

What the values are is left to jsonargparse; this finds the mistakes for which its own messages give no line.
"""

import importlib
import inspect
import re
from collections.abc import Collection
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from worldlm.cli.safe_mode import denied, refusal, refusal_of_class
from worldlm.topology.checks import shorten
from worldlm.topology.compose import line_of, pairs, too_far
from worldlm.topology.errors import UserError, suggest
from worldlm.topology.reader import MAX_CHARACTERS, MAX_MISTAKES, Reader, read_text

MAX_OBJECTS = 100
"""In one list, such as callbacks; jsonargparse's time grows with the square of their number."""
MAX_DIGITS = 1000
"""Of one number; Python reads none of more than 4300."""


class RecipeError(UserError):
    """All mistakes of a recipe, one line each."""


class LayRecipe(ActionConfigFile):
    """Lays a recipe over those before it: lists and mappings are replaced, `federation.settings` key by key."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Read one recipe more."""
        before = cfg.get("federation.settings")
        for key in _lists(Reader(read_text(Path(values), RecipeError), str(values), RecipeError).root, ""):
            if isinstance(cfg.get(key), list):  # a list as long would inherit the arguments that its items leave out
                cfg[key] = None
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]
        after = cfg.get("federation.settings")
        if isinstance(before, dict) and isinstance(after, dict):
            cfg["federation.settings"] = {**before, **after}


def read_recipe(path: Path, known: Collection[str], safe: bool = False) -> Reader:
    """Check the keys and classes of a recipe.

    Args:
        path: The YAML file.
        known: Dotted names of all settings, such as `trainer.max_epochs`; below them anything goes.
        safe: Whether to refuse, without importing them, classes that `worldlm.cli.safe_mode` does not allow.

    Returns:
        The document, to look up lines in.

    Raises:
        RecipeError: Names every mistake with file and line.
    """
    reader = Reader(read_text(path, RecipeError), str(path), RecipeError)
    if not isinstance(reader.root, yaml.MappingNode):
        reader.fail(1, "a recipe must be a mapping (key: value)")
    _check_keys(reader, reader.root, "", known, safe)
    reader.finish()
    return reader


def line_of_key(readers: Collection[Reader], key: str, value: str | None = None) -> str:
    """Return `file:line` of a key, dotted or by its last name; "" if it is nowhere, or nobody knows which it is.

    Args:
        readers: The recipes.
        key: The key.
        value: What it was given, to tell keys of one name apart.
    """
    for reader in readers:
        found = [one for one in _keys(reader.root, "") if one[0] == key or one[0].endswith(f".{key}")]
        if len(found) > 1:
            found = [one for one in found if one[2] == value]
        if len(found) == 1:
            return f"{reader.source}:{found[0][1]}"
    return ""


def _keys(node: yaml.Node, prefix: str) -> list[tuple[str, int, Any]]:
    """List the dotted path, line and (if it is a scalar) text of every key."""
    found: list[tuple[str, int, Any]] = []
    if isinstance(node, yaml.MappingNode):
        for key, entry in pairs(node):
            path = f"{prefix}.{key.value}" if prefix else str(key.value)
            found += [(path, entry.line, entry.node.value), *_keys(entry.node, path)]
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            found += _keys(item, f"{prefix}.{i}")
    return found


def _lists(node: yaml.Node, prefix: str) -> list[str]:
    """List the dotted path of every key whose value is a list, down to the first list on each way."""
    if isinstance(node, yaml.SequenceNode):
        return [prefix]
    below = pairs(node) if isinstance(node, yaml.MappingNode) else ()
    return [path for key, entry in below for path in _lists(entry.node, f"{prefix}.{key.value}".removeprefix("."))]


def _check_keys(reader: Reader, node: yaml.Node, prefix: str, known: Collection[str], safe: bool) -> None:
    """Check the names of a mapping's keys down to the settings themselves, and the classes in these."""
    for name, entry in reader.mapping(node, prefix or "the recipe").items():
        path = f"{prefix}.{name}" if prefix else name
        if any(one.startswith(f"{path}.") for one in known):
            _check_keys(reader, entry.node, path, known, safe)
            continue
        if path.removesuffix("+") not in known:
            depth = prefix.count(".") + 1 if prefix else 0
            siblings = {one.split(".")[depth] for one in known if one.startswith(f"{prefix}." if prefix else "")}
            reader.report(entry.line, f"unknown key {shorten(repr(path))}{reader.near(name, siblings)}")
        _check_classes(reader, entry.node, shorten(path), safe)


def _check_classes(reader: Reader, node: yaml.Node, where: str, safe: bool) -> None:
    """Check every class_path, the names of its init_args, that no key is written twice, and what takes too long."""
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
        found, wrong = (None, "") if path is MISSING else find_class(path, safe)
        if wrong:
            reader.report(entries["class_path"].line, wrong)
        elif found is not None and "init_args" in entries:
            _check_arguments(reader, found, path, entries["init_args"].node)
    for entry in entries.values():
        _check_classes(reader, entry.node, where, safe)


def _check_value(reader: Reader, node: yaml.ScalarNode, where: str) -> None:
    """Check a single value for what jsonargparse, which reads texts as YAML too, would take too long over."""
    if node.tag.endswith((":int", ":float")) and len(node.value) > MAX_DIGITS:
        reader.report(line_of(node), f"{where} has a number of {len(node.value)} digits; {MAX_DIGITS} are allowed")
    elif wrong := too_far(node.value):
        reader.report(line_of(node), f"{where} has a text that, read as YAML, {wrong}")


def _check_arguments(reader: Reader, found: Any, name: str, node: yaml.Node) -> None:
    parameters = inspect.signature(found).parameters
    if not isinstance(node, yaml.MappingNode) or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key, entry in reader.mapping(node, f"the init_args of {name}").items():
        if key not in parameters:
            allowed = ", ".join(parameters) or "none"
            told = f"{name} takes no argument {shorten(repr(key))}; allowed: {allowed}{suggest(key, parameters)}"
            reader.report(entry.line, told)


def find_class(path: str, safe: bool = False) -> tuple[Any | None, str]:
    """Import what a class_path names.

    Args:
        path: The dotted path.
        safe: Whether to refuse what `worldlm.cli.safe_mode` does not allow.

    Returns:
        The class and "", or None and what is wrong; None and "" for a bare name, which jsonargparse looks up.
    """
    module_name, _, name = path.rpartition(".")
    if not module_name:
        return None, ""
    if not all(part.isidentifier() for part in path.split(".")):
        return None, f"class_path {shorten(repr(path))} must be names with dots between{suggest(path, _our_classes())}"
    if safe and (wrong := refusal(path)):
        return None, wrong
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        return None, f"class_path {path!r}: {error}{suggest(path, _our_classes())}"
    found = getattr(module, name, None)
    if not isinstance(found, type):
        near = suggest(name, [one for one, value in vars(module).items() if isinstance(value, type)])
        return None, f"class_path {path!r}: {module_name} has no class {name!r}{near}"
    if safe and (wrong := refusal_of_class(found)):  # what a module imported from elsewhere is no class of its own
        return None, wrong
    return found, ""


def _our_classes() -> list[str]:
    rooms = [importlib.import_module(f"worldlm.{room}") for room in ("callbacks", "data")]
    return [f"{room.__name__}.{name}" for room in rooms for name in getattr(room, "__all__", ())]


# ---------------------------------------------------------------------- errors of values


def explain(message: str, readers: Collection[Reader], known: Collection[str], given: Collection[str] = ()) -> str:
    """Put an error into as few lines as it needs, with file and line where a recipe is to blame.

    Args:
        message: What jsonargparse, or a class it built, had to say.
        readers: The recipes.
        known: Dotted names of all settings.
        given: The command line, whose settings are not the recipe's.

    Returns:
        One line per mistake.
    """
    told = _explained(message, readers, known, given)
    return "\n".join(shorten(line, MAX_CHARACTERS) for line in told.splitlines())


def no_memory(error: Exception) -> str:
    """Say that there is not as much memory as was asked for, if that is what went wrong; else nothing."""
    text = " ".join(str(error).split())
    found = re.search(r"tried to allocate [\d.]+ \w+|out of memory", text, re.IGNORECASE)
    if not found and not isinstance(error, MemoryError):
        return ""
    said = f" ({found.group()})" if found else ""
    less = "a smaller model or batch_size" + (", or --trainer.nodes_on host" if "CUDA" in text else "")
    return f"there is not the memory for it{said}: take {less}; see worldlm topology estimate"


def _explained(message: str, readers: Collection[Reader], known: Collection[str], given: Collection[str]) -> str:
    overridden = {one.removeprefix("--").split("=")[0] for one in given if one.startswith("--")}
    if unknown := re.match(r"unrecognized arguments: --([\w.]+)", message, re.IGNORECASE):
        return f"no setting --{unknown.group(1)}{suggest(unknown.group(1), known)}"
    if path := denied(message):
        return _with_place_of_value(refusal(path), path, readers)
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    if not keys and "Union subtypes" not in message:
        elsewhere = tuple(f"{one.rsplit('.', 1)[-1]} " for one in overridden)
        lines = message.splitlines()
        return "\n".join(one if one.startswith(elsewhere) else _with_place(one, one, readers) for one in lines)
    text = _innermost(message.rsplit('Parser key "', 1)[-1].split('":', 1)[-1])
    told = f"{keys[-1]}: {text}" if keys else text
    return told if keys and keys[-1] in overridden else _with_place(told, told, readers)


def _innermost(text: str) -> str:
    """Take what is to the point from jsonargparse's account of every type it tried."""
    text = text.replace("typing.", "").strip()
    if not text.startswith("Does not validate"):
        text = text.split("\n", 1)[0]
    bullets = [one.strip() for one in re.findall(r"^\s+- (.*)$", text, re.MULTILINE)]
    useful = [one for one in bullets if not re.match(r"(Expected a <class|Not a valid subclass|an? )", one)]
    if useful:
        return "; ".join(dict.fromkeys(useful))
    types = re.findall(r"<class '(?:\w+\.)*(\w+)'>", " ".join(bullets) if bullets else text)
    given = re.search(r"(?:Given value|Got value): (.*)", text)
    if not types:
        return " ".join(text.split())
    allowed = " or ".join("nothing" if one == "NoneType" else one for one in dict.fromkeys(types) if one != given)
    return f"must be {allowed}" + (f", but is {given.group(1)}" if given else "")


def _with_place(message: str, key: str, readers: Collection[Reader]) -> str:
    name = re.match(r"[\w.]+", key)
    value = re.search(r"(?:is|Got value:|got) '?([^\s':,]+)'?", message)
    place = line_of_key(readers, name.group().rstrip("."), value and value.group(1)) if name else ""
    return f"{place}: {message}" if place else message


def _with_place_of_value(message: str, value: str, readers: Collection[Reader]) -> str:
    places = (
        f"{reader.source}:{line}: " for reader in readers for _, line, text in _keys(reader.root, "") if text == value
    )
    return f"{next(places, '')}{message}"
