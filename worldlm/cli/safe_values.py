"""The values that `--safe` refuses in settings: addresses, folders elsewhere, and functions to call."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from worldlm.cli.safe_mode import OPTION
from worldlm.topology.checks import shorten
from worldlm.topology.errors import UserError

_ADDRESS = re.compile(r"://|::|^\s*data:", re.IGNORECASE)
"""How fsspec, with which Lightning and `datasets` open files, recognises what is not a local path."""

_TEXTS = re.compile(
    r"model\.split\.(backbone|keys|values)\.\d+|trainer\.callbacks\.(\d+\.)?init_args\.prompt"
    r"|data\.corpora\.[^.]+\.init_args\.((corpus\.init_args\.)?(where(\..+)?|field)|by|values(\..+)?)"
)
"""Settings that are never opened: patterns, prompts, and the fields and values of records."""

_FOLDERS = re.compile(
    r"runs|data\.cache_dir|data\.corpora\.[^.]+\.init_args\.(corpus\.init_args\.)?cache_dir"
    r"|trainer\.(default_root_dir|noise_key|paging\.folder|paging\.init_args\.folder)"
)
"""Settings of WorldLM that name a folder to write into."""

_LIGHTNING = "lightning."
"""The packages whose classes may write wherever an argument names."""

_FORBIDDEN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trainer.model_registry": (lambda value: value is None, "it uploads checkpoints"),
    "trainer.profiler": (lambda value: value != "xla", "it opens a port"),
}
"""Settings, whether a value of them is allowed, and why not."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A value in the settings, or the name of one."""

    key: str
    """Its dotted name."""
    value: Any
    owner: str = ""
    """The class whose argument it is, or is part of; "" if there is none."""


def check_safe_values(config: Any, given: Collection[str] = (), defaults: Mapping[str, Any] | None = None) -> None:
    """Check that no setting leads out of this machine or the current folder, or names a function to call.

    Args:
        config: The parsed settings: namespaces, mappings, lists and plain values.
        given: Settings on the command line. The user may name any local folder there.
        defaults: Settings whose default is a folder outside the current one, and that default.

    Raises:
        UserError: Names every such setting.
    """
    own = {key for key, default in (defaults or {}).items() if _get(config, key) == default} | set(given)
    problems = {f"{each.key}: {problem}" for each in _values(config) if (problem := _problem(each, own))}
    if problems:
        raise UserError(sorted(problems))


def _problem(each: _Value, own: Collection[str]) -> str:
    """Return why a value is not allowed; "" if it is."""
    if each.key in _FORBIDDEN:
        allowed, reason = _FORBIDDEN[each.key]
        return "" if allowed(each.value) else f"{OPTION} does not allow {each.value!r}: {reason}"
    if not isinstance(each.value, str | os.PathLike):
        return f"{OPTION} allows no function to call" if _is_function(each) else ""
    text = str(each.value)
    if _ADDRESS.search(text) and not _TEXTS.fullmatch(each.key):
        return f"{OPTION} allows only paths on this machine, without '://' and '::', but this is {shorten(repr(text))}"
    is_folder = _FOLDERS.fullmatch(each.key) or each.owner.startswith(_LIGHTNING)
    is_own = any(each.key == name or each.key.startswith(f"{name}.") for name in own)
    if is_folder and not is_own and _leads_out(text):
        within = f"{OPTION} lets a recipe name only folders below the current one"
        return f"{within}, but this is {shorten(repr(text))}; name it on the command line"
    return ""


def _is_function(each: _Value) -> bool:
    """Return whether a value is a function, or an object that can be called like one, but not the default."""
    if isinstance(each.value, Mapping):  # an object that is an argument of another
        kind = _import(each.value["class_path"])
        return isinstance(kind, type) and any("__call__" in vars(base) for base in kind.__mro__)
    if not callable(each.value) or isinstance(each.value, type):
        return False
    owner = _import(each.owner)
    parameter = inspect.signature(owner).parameters.get(each.key.rsplit(".", 1)[-1]) if owner else None
    return parameter is None or parameter.default is not each.value


def _leads_out(text: str) -> bool:
    """Return whether a path, also as the end of a longer path, may lead out of the current folder."""
    return text.startswith("~") or Path(text).is_absolute() or ".." in Path(text).parts


def _values(value: Any, key: str = "", owner: str = "") -> Iterator[_Value]:
    """List all values, the names of keys, and the objects that are arguments of others."""
    content = vars(value) if isinstance(value, Namespace) else value
    if isinstance(content, Mapping):
        path = content.get("class_path")
        if owner and isinstance(path, str):
            yield _Value(key, content, owner)
        for name, below in content.items():
            whole = f"{key}.{name}".removeprefix(".")
            yield _Value(key, str(name))
            yield from _values(below, whole, str(path) if path and name in ("init_args", "dict_kwargs") else owner)
    elif isinstance(content, list | tuple | set | frozenset):
        for i, item in enumerate(content):
            yield from _values(item, f"{key}.{i}", owner)
    else:
        yield _Value(key, content, owner)


def _get(config: Any, key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    for name in key.split("."):
        content = vars(config) if isinstance(config, Namespace) else config
        config = content.get(name) if isinstance(content, Mapping) else None
    return config


def _import(path: str) -> Any:
    """Return the class of a dotted path that was imported before; None if there is none."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
