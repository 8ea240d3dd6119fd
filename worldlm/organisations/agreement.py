"""What all organisations of a world must agree on, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

Agreement: TypeAlias = Mapping[str, str]
"""What is agreed on -> its value, or a digest of it."""

_MAX_CHARACTERS = 200
_MAX_LINES = 20


def differences(ours: Agreement, theirs: Any, us: str, them: str) -> list[str]:
    """Return how two agreements differ, one line each.

    Args:
        ours: Of this node.
        theirs: What another node sent; it may be anything.
        us: Name of this node.
        them: Name of the other node.
    """
    if not isinstance(theirs, dict):
        return [f"{them} sent no agreement"]
    lines = []
    for key in [*ours, *(str(key)[:_MAX_CHARACTERS] for key in theirs if key not in ours)]:
        mine, other = ours.get(key, "nothing"), str(theirs.get(key, "nothing"))
        if mine != other:
            lines.append(f"{us} and {them} differ in {key}: {_short(mine)} and {_short(other)}")
    return lines[:_MAX_LINES]


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def digest_of(content: Any) -> str:
    """Return a digest of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]


def plain(attributes: Mapping[str, Any]) -> str:
    """Return the public attributes that are plain values, as text."""
    found = {name: value for name, value in attributes.items() if not name.startswith("_")}
    return json.dumps({name: _as_json(value) for name, value in found.items() if _is_plain(value)}, sort_keys=True)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_as_json(item) for item in value] if isinstance(value, list | tuple) else value
