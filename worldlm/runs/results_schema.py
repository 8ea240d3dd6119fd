"""Checks that a results.json has the form that worldlm writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from worldlm.runs.results import read_results
from worldlm.topology.errors import UserError

Check = Callable[[Any, str], Iterator[str]]
"""Takes a value and its place in the file, and yields its mistakes."""

_MAX_NUMBER = 1e305  # perplexities are at most exp(700), and the sum of many must be finite


def mistakes(content: object) -> Iterator[str]:
    """Yield the mistakes of a results.json, such as `rounds[0].nodes.a.tokens: must be a number, but is 'x'`.

    Keys that older versions did not write may be missing, and unknown keys are allowed.

    Args:
        content: The content, read as JSON.
    """
    yield from _RECORD(content, "")


def read_valid_results(path: Path) -> dict[str, Any]:
    """Read a results.json that has the form that worldlm writes.

    Raises:
        UserError: With the first mistake, if it is not as worldlm writes it.
    """
    try:
        content = read_results(path)
        mistake = next(mistakes(content), None)
    except RecursionError:
        raise UserError([f"{path}: no record of a run: it is nested too deeply"]) from None
    if mistake is not None:
        raise UserError([f"{path}: not as worldlm writes it: {mistake}"])
    return content


def _number(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -_MAX_NUMBER < value < _MAX_NUMBER:
        yield f"{where}: must be a number, but is {_short(value)}"


def _above_zero(value: Any, where: str) -> Iterator[str]:
    mistakes = list(_number(value, where))
    yield from mistakes or ([] if value > 0 else [f"{where}: must be above 0, but is {value!r}"])


def _count(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        yield f"{where}: must be a whole number of at least 0, but is {_short(value)}"


def _flag(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"{where}: must be true or false, but is {_short(value)}"


def _text(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{where}: must be text, but is {_short(value)}"


def _unit(value: Any, where: str) -> Iterator[str]:
    if value not in ("block", "document", "person"):
        yield f"{where}: must be block, document or person, but is {_short(value)}"


def _or_null(check: Check) -> Check:
    return lambda value, where: iter(()) if value is None else check(value, where)


def _list(check: Check) -> Check:
    def inner(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, list):
            yield f"{where}: must be a list, but is {_short(value)}"
            return
        for i, item in enumerate(value):
            yield from check(item, f"{where}[{i}]")

    return inner


def _table(check: Check) -> Check:
    def inner(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where}: must be an object, but is {_short(value)}"
            return
        for name, entry in value.items():
            yield from check(entry, f"{where}.{name}".removeprefix("."))

    return inner


def _object(required: Mapping[str, Check], other: Mapping[str, Check]) -> Check:
    def inner(value: Any, where: str) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{where or 'the file'}: must be an object, but is {_short(value)}"
            return
        for name, check in {**required, **other}.items():
            path = f"{where}.{name}".removeprefix(".")
            if name in value:
                yield from check(value[name], path)
            elif name in required:
                yield f"{path}: is missing"

    return inner


def _node(value: Any, where: str) -> Iterator[str]:
    yield from _NODE(value, where)


def _routes(value: Any, where: str) -> Iterator[str]:
    yield from (mistakes := list(_table(_count)(value, where)))
    if not mistakes and (other := [path for path in value if " > " not in path]):
        yield f"{where}: must name routes as 'origin > home', but has {_short(other[0])}"


def _weights(value: Any, where: str) -> Iterator[str]:
    yield from _table(_number)(value, where)
    if value == {}:
        yield f"{where}: must have a weight, but is {{}}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_PRIVACY = ("noise_multiplier", "clip_norm", "delta", "max_epsilon")
_EXAMPLE_PRIVACY = ("example_noise_multiplier", "example_clip_norm", "example_delta", "max_example_epsilon")

_NODE = _object(
    {"name": _text, "corpus": _or_null(_text), "children": _list(_node)},
    {"told": _list(_text), **dict.fromkeys((*_PRIVACY, *_EXAMPLE_PRIVACY), _or_null(_number)), "example_unit": _unit},
)
_SCORE = _object({"perplexity": _or_null(_above_zero)}, {"bits_per_byte": _or_null(_number)})
_FIGURES = _object(
    {},
    {
        **dict.fromkeys(("before", "received", "after_merge", "after_fit"), _SCORE),
        **dict.fromkeys(("tokens", "bytes_down", "bytes_up", "missed", "refused"), _count),
        "passes": _number,
        **dict.fromkeys(("epsilon", "example_epsilon"), _or_null(_number)),
    },
)
_TEXTS = ("text", "held_out_text", "tokens_crc32", "held_out_tokens_crc32")
_FACTS = _object(
    {},
    {
        **dict.fromkeys(_TEXTS, _or_null(_list(_text))),
        **dict.fromkeys(("blocks", "batch_size", "steps", "fits", "held_out_blocks"), _or_null(_count)),
    },
)
_START = _object(
    {}, {"command": _text, "platform": _text, "device": _text, "written": _text, "code": _table(_text),
         **dict.fromkeys(("processors", "processes", "threads"), _or_null(_count))}
)  # fmt: skip
_ROUND = _object(
    {
        "round": _count,
        "nodes": _table(_FIGURES),
        "routes": _routes,
    },
    {"mixtures": _table(_table(_weights))},
)
_RECORD = _object(
    {
        "finished": _flag,
        "rounds_done": _count,
        "seed": _count,
        "topology": _object({"name": _text, "root": _node}, {}),
        "data_nodes": _table(_FACTS),
        "versions": _table(_text),
        "seconds": _number,
        "rounds": _list(_ROUND),
    },
    {
        "rounds_wanted": _or_null(_count),
        "initial_weights": _or_null(_text),
        "final_weights": _or_null(_table(_text)),
        "last_start": _START,
        "noise_keys": _list(_object({"round": _count, "fingerprint": _text}, {})),
    },
)
