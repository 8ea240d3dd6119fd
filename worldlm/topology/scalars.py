"""YAML values read by their declared type, not by the type that YAML guesses.

PyYAML implements YAML 1.1 and reads `6e-4` as a text, `no` as False and `12:30` as 750.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from worldlm.topology.checks import shorten
from worldlm.topology.compose import pairs

_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TRUE, _FALSE = {"true", "yes", "on"}, {"false", "no", "off"}


def coerce(node: yaml.Node, declared: Any) -> Any:
    """Read a node as a declared type.

    Args:
        node: the composed value.
        declared: str, int, float, bool, Any, `X | None`, `Literal[...]` or `tuple[X, ...]`.

    Raises:
        ValueError: `must be ..., but is ...`.
    """
    if declared in _READERS:
        return _READERS[declared](node)
    origin, arguments = get_origin(declared), get_args(declared)
    if declared is Any:
        return plain(node)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and is_null(node):
            return None
        (declared,) = (kind for kind in arguments if kind is not type(None))
        return coerce(node, declared)
    if origin is Literal:
        if isinstance(node, yaml.ScalarNode) and node.value in arguments:
            return node.value
        raise _type_error(" or ".join(map(repr, arguments)), node)
    if origin is tuple:
        if isinstance(node, yaml.SequenceNode):
            return tuple(coerce(item, arguments[0]) for item in node.value)
        raise _type_error("a list", node)
    raise TypeError(f"no reader of {declared}")


def plain(node: yaml.Node) -> Any:
    """Read a node without a declared type: null, bool, int, float, text, tuple or dict.

    Raises:
        ValueError: if a number overflows, or a key of a mapping is not a text.
    """
    if isinstance(node, yaml.SequenceNode):
        return tuple(plain(item) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        merged = [(_text(key), plain(entry.node)) for key, entry in pairs(node)]
        return dict(reversed(merged))
    if is_null(node):
        return None
    if not _is_plain(node):
        return _text(node)
    if node.value.casefold() in _TRUE | _FALSE:
        return _boolean(node)
    if _is_number(node):
        return _real(node) if set(node.value) & set(".eE") else _integer(node)
    return _text(node)


def is_null(node: yaml.Node) -> bool:
    """Whether a node is an unquoted `null`, `~` or empty."""
    return _is_plain(node) and node.value in ("", "~", "null", "Null", "NULL")


def is_decimal(node: yaml.Node) -> bool:
    """Whether a node is not a number of YAML 1.1 in another form, such as `0123`, `0x1f` or `12:30`."""
    is_number = _is_plain(node) and node.tag.endswith((":int", ":float"))
    return not is_number or _is_number(node) or node.value.strip("+-.").casefold() in ("inf", "nan")


def shown(node: yaml.Node) -> str:
    """Return a value as a short text for an error message."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    if is_null(node):
        return "nothing"
    return f"{'' if _is_plain(node) else 'the quoted text '}{shorten(repr(node.value))}"


def _is_plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _is_number(node: yaml.Node) -> bool:
    return _is_plain(node) and _NUMBER.fullmatch(node.value) is not None


def _type_error(allowed: str, node: yaml.Node) -> ValueError:
    return ValueError(f"must be {allowed}, but is {shown(node)}")


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or is_null(node):
        raise _type_error("text", node)
    text = str(node.value)
    if _SURROGATE.search(text):
        raise _type_error("valid Unicode", node)
    return text


def _real(node: yaml.Node) -> float:
    if not _is_number(node):
        raise _type_error("a number", node)
    value = float(node.value)
    if not math.isfinite(value):
        raise _type_error("a finite number", node)
    return value


def _integer(node: yaml.Node) -> int:
    if not (_is_number(node) and _real(node).is_integer()):
        raise _type_error("a whole number", node)
    return int(float(node.value)) if set(node.value) & set(".eE") else int(node.value)


def _boolean(node: yaml.Node) -> bool:
    if not _is_plain(node) or node.value.casefold() not in _TRUE | _FALSE:
        raise _type_error("true or false", node)
    return node.value.casefold() in _TRUE


_READERS: Mapping[Any, Callable[[yaml.Node], Any]] = {str: _text, int: _integer, float: _real, bool: _boolean}
