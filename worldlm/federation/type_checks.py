"""Checks of values against type annotations at any depth, for files from untrusted sources."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def check_fields(instance: Any) -> None:
    """Check that the fields of a dataclass instance have their declared types.

    Raises:
        TypeError: If a field does not; the message contains its name.
    """
    for name, hint in _hints(type(instance)).items():
        if not matches_type(getattr(instance, name), hint):
            raise TypeError(f"{name} does not have its declared type: {str(getattr(instance, name))[:100]}")


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value has a type.

    A type is a class, Any, or a combination of Union, Literal, tuple, list, dict, TypedDict and dataclasses. Undeclared
    keys of a TypedDict may have any value, because they are not used.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(matches_type(value, option) for option in inner)
    if origin is Literal:
        return isinstance(value, str | int) and value in inner
    if is_dataclass(hint):
        return isinstance(value, hint) and all(  # type: ignore[arg-type]
            matches_type(getattr(value, name), declared) for name, declared in _hints(hint).items()
        )
    if is_typeddict(hint):
        return isinstance(value, dict) and all(
            matches_type(value[key], declared) if key in value else key in hint.__optional_keys__
            for key, declared in get_type_hints(hint).items()
        )
    if origin is None:
        return isinstance(value, (int, float) if hint is float else hint)
    if not isinstance(value, origin):
        return False
    if issubclass(origin, Mapping):
        return all(matches_type(key, inner[0]) and matches_type(entry, inner[1]) for key, entry in value.items())
    return all(matches_type(item, inner[0]) for item in value)  # a list, or a tuple of any length


def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}
