"""The scalars of a recipe, read by their declared type.

PyYAML implements YAML 1.1 and reads `no` as False, `0123` as 83 and `12:30` as 750. Where a setting is declared as
text, such as a name or a value of `where`, the user means the text: this module puts quotes around it before
jsonargparse reads the recipe. Where a number is declared, such forms are mistakes. `worldlm.topology.scalars` reads
topologies by the same rules.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

import yaml

from worldlm.topology.compose import C_LIMITS, Composer, line_of, pairs
from worldlm.topology.reader import Reader
from worldlm.topology.scalars import is_decimal, is_null, shown

Types: TypeAlias = tuple[Any, ...]
"""The types that a setting may have, without unions; none if they are unknown."""
_NONE = type(None)
_TEXT = (str, Path)
_ANY = (Any, object)
_NUMBERS = (int, float)


class _Scalar(NamedTuple):
    """A scalar of a recipe."""

    key: str
    """The setting, dotted, or the argument of a class."""
    node: yaml.ScalarNode
    """The value."""
    kinds: Types
    """Its declared types."""


def check_scalars(reader: Reader, declared: Mapping[str, Any]) -> None:
    """Reject settings without a value, and numbers in a form that YAML 1.1 reads as another number.

    Args:
        reader: A recipe. Only classes that were imported before are known; `worldlm.cli.recipe.read_recipe` imports
            those of a recipe.
        declared: Dotted name of a setting -> its type.

    Raises:
        UserError: Names every mistake with file and line.
    """
    for key, node, kinds in _settings(reader.root, "", declared):
        if is_null(node) and kinds and not any(kind in (_NONE, *_ANY) for kind in kinds):
            reader.report(line_of(node), f"{key} has no value; write one, or leave the key out")
        elif any(kind in _NUMBERS for kind in kinds) and not is_decimal(node):
            reader.report(line_of(node), f"{key} must be a decimal number, but is {shown(node)}")
    reader.finish()


def quote_texts(content: str, declared: Mapping[str, Any]) -> str:
    """Put quotes around the plain scalars of a recipe that are declared as text, and around names.

    Args:
        content: The recipe.
        declared: Dotted name of a setting -> its type.

    Returns:
        The recipe with quotes; as it is if it is not valid YAML.
    """
    return _quote(content, lambda root: _settings(root, "", declared))


def quote_words(words: Sequence[str], declared: Mapping[str, Any]) -> list[str]:
    """Put quotes around the texts in the lists and mappings of a command line, such as `--data.local '{no: a.txt}'`.

    Args:
        words: The command line.
        declared: Dotted name of a setting -> its type.

    Returns:
        The words with quotes.
    """
    quoted = list(words)
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        key = option if equals else words[i - 1] if i else ""
        value = value if equals else word
        if key.startswith("--") and value.lstrip().startswith(("{", "[")):
            kinds = _types_at(key[2:].removesuffix("+"), declared)
            text = _quote(value, lambda root, kinds=kinds: _scalars("", root, kinds))  # type: ignore[misc]
            quoted[i] = f"{option}={text}" if equals else text
    return quoted


def _quote(content: str, find: Callable[[yaml.Node], Iterable[_Scalar]]) -> str:
    """Put quotes around the texts among the scalars that a function finds in a YAML text."""
    try:
        root = Composer(content, C_LIMITS).compose()
    except (yaml.YAMLError, ValueError):
        return content
    scalars = find(root) if root else ()
    texts = {each.node.end_mark.index: each.node.value for each in scalars if _is_text(each)}
    quoted, position = list[str](), 0
    for end, text in sorted(texts.items()):
        start = end - len(text)  # an anchor or a tag may stand before it
        if content[start:end] == text:
            quoted += [content[position:start], json.dumps(text, ensure_ascii=False)]
            position = end
    return "".join([*quoted, content[position:]])


def _is_text(scalar: _Scalar) -> bool:
    """Return whether a scalar is written without quotes, and declared as nothing but text."""
    choices = [value for kind in scalar.kinds if _origin(kind) is Literal for value in get_args(kind)]
    if scalar.node.style is not None or is_null(scalar.node) or not all(isinstance(value, str) for value in choices):
        return False
    is_text = any(kind in _TEXT for kind in scalar.kinds) or bool(choices)
    return is_text and not any(kind in (*_NUMBERS, bool, *_ANY) for kind in scalar.kinds)


def _types_at(key: str, declared: Mapping[str, Any]) -> Types:
    """Return the types of a dotted key, which may lead into mappings and objects of the settings."""
    name = max((name for name in declared if f"{key}.".startswith(f"{name}.")), key=len, default="")
    kinds, hints = _types(declared.get(name)), list[dict[str, Any]]()
    for part in key[len(name) + 1 :].split(".") if key != name else ():
        if part == "init_args":
            hints = [_arguments(kind) for kind in _subclasses(kinds)]
            kinds = ()
        elif hints:
            kinds, hints = _types(*(hint[part] for hint in hints if part in hint)), []
        else:
            kinds = _types(*(get_args(kind)[-1] for kind in kinds if get_args(kind)))
    return kinds


def _settings(node: yaml.Node, prefix: str, declared: Mapping[str, Any]) -> Iterator[_Scalar]:
    """Yield the scalars in a mapping of settings."""
    for key, entry in pairs(node) if isinstance(node, yaml.MappingNode) else ():
        path = f"{prefix}{key.value}"
        if isinstance(entry.node, yaml.MappingNode) and any(name.startswith(f"{path}.") for name in declared):
            yield from _settings(entry.node, f"{path}.", declared)
        else:
            yield from _scalars(path, entry.node, _types(declared.get(path.removesuffix("+"))))


def _scalars(key: str, node: yaml.Node, kinds: Types) -> Iterator[_Scalar]:
    """Yield the scalars in a value that may have some types."""
    if isinstance(node, yaml.ScalarNode):
        yield _Scalar(key, node, kinds)
    elif isinstance(node, yaml.SequenceNode):
        items = _types(*(argument for kind in kinds for argument in get_args(kind) if not _maps(kind)))
        for item in node.value:
            yield from _scalars(key, item, items)
    elif isinstance(node, yaml.MappingNode):
        yield from _entries(key, node, kinds)


def _entries(key: str, node: yaml.MappingNode, kinds: Types) -> Iterator[_Scalar]:
    """Yield the scalars in a mapping, or in the description of an object: `class_path` and `init_args`."""
    entries = {str(name.value): entry.node for name, entry in pairs(node)}
    if (path := entries.get("class_path")) is not None:
        hints = _arguments(_find_class(str(path.value), kinds))
        arguments = entries.get("init_args")
        for name, entry in pairs(arguments) if isinstance(arguments, yaml.MappingNode) else ():
            yield from _scalars(str(name.value), entry.node, _types(hints.get(str(name.value))))
        return
    names, values = (_types(*(get_args(kind)[i] for kind in kinds if _maps(kind) and get_args(kind))) for i in (0, 1))
    for name, entry in pairs(node):
        yield from _scalars(key, name, names)
        yield from _scalars(f"{key}.{name.value}", entry.node, values)


def _types(*declared: Any) -> Types:
    """Return all types in some types and unions."""
    found: list[Any] = []
    for kind in declared:
        origin = _origin(kind)
        if origin in (Union, types.UnionType):
            found += _types(*get_args(kind))
        elif origin is Annotated:
            found += _types(get_args(kind)[0])
        elif kind is not None:
            found.append(kind)
    return tuple(found)


def _origin(kind: Any) -> Any:
    return get_origin(kind)


def _maps(kind: Any) -> bool:
    origin = _origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _find_class(path: str, kinds: Types) -> type | None:
    """Find a class that was imported before, by its dotted path, or by its name among the subclasses of some types."""
    module, _, name = path.rpartition(".")
    if module:
        found = getattr(sys.modules.get(module), name, None)
        return found if isinstance(found, type) else None
    return next((kind for kind in _subclasses(kinds) if kind.__name__ == name), None)


def _subclasses(kinds: Iterable[Any]) -> Iterator[type]:
    for kind in kinds:
        if isinstance(kind, type) and kind is not type:
            yield kind
            yield from _subclasses(kind.__subclasses__())


@cache
def _arguments(kind: type | None) -> dict[str, Any]:
    """Return the declared types of a class's arguments, those that it hands to the classes above it included."""
    hints: dict[str, Any] = {}
    for base in reversed(kind.__mro__ if kind else ()):
        with suppress(Exception):  # a type may exist for type checkers only
            hints |= get_type_hints(base.__init__)  # type: ignore[misc]
            parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
            hints |= {p.name: hints.get(p.name, Any) | None for p in parameters if p.default is None}
    with suppress(Exception):
        hints |= get_type_hints(kind) if hasattr(kind, "__dataclass_fields__") else {}
    return hints
