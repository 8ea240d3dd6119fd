"""Whether a value is of the type that an annotation declares, at any depth: files of strangers may hold anything."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def check_fields(one: Any) -> None:
    """Check that the fields of a dataclass hold what it declares.

    Raises:
        TypeError: Names a field that does not.
    """
    for name, hint in _hints(type(one)).items():
        if not matches_type(getattr(one, name), hint):
            raise TypeError(f"{name} is not as declared: {str(getattr(one, name))[:100]}")


def matches_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a type: a class, Any, or made of Union, Literal, tuple, list, dict, TypedDict, dataclasses.

    Of a TypedDict the keys that it does not name may hold anything: nobody reads them.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(matches_type(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str | int) and value in inner
    if is_dataclass(hint):
        return isinstance(value, hint) and all(  # type: ignore[arg-type]
            matches_type(getattr(value, name), of) for name, of in _hints(hint).items()
        )
    if is_typeddict(hint):
        return isinstance(value, dict) and all(
            matches_type(value[key], of) if key in value else key in hint.__optional_keys__
            for key, of in get_type_hints(hint).items()
        )
    if origin is None:
        return isinstance(value, (int, float) if hint is float else hint)
    if not isinstance(value, origin):
        return False
    if issubclass(origin, Mapping):
        return all(matches_type(key, inner[0]) and matches_type(one, inner[1]) for key, one in value.items())
    return all(matches_type(one, inner[0]) for one in value)  # a list, or a tuple of any length


def _hints(of: Any) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {one.name: hints[one.name] for one in fields(of)}
