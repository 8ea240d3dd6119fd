"""Where two records of a run differ: what makes it another run, what may change its figures, and what it came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from worldlm.runs.results import nodes_of

_MOST = 3
"""Differences that are told one by one."""
_SAME = ("seed", "rounds_wanted", "initial_weights")
_MACHINE = ("platform", "device", "threads", "code")


def another(first: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Tell what makes a repetition another run: its seed, rounds, tree, text, batches or first weights.

    Args:
        first: The results.json of the run that is repeated; what it does not say is not compared.
        here: That of the repetition, which need not have a round yet.
    """
    wanted = [({name: first.get(name)}, {name: here.get(name)}) for name in _SAME if name in first]
    trees, texts = [_by_name(one) for one in (first, here)], _texts(first, here)
    pairs = [*wanted, (trees[0], trees[1]), (texts[0], texts[1])]
    found = chain.from_iterable(_compare(*pair, ()) for pair in pairs)
    return [_told(*one) for one in found]


def surroundings(first: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Tell what else differs and may change figures: versions, code, device, threads."""
    starts = [one.get("last_start", {}) for one in (first, here)]
    machines = [{name: start[name] for name in _MACHINE if name in start} for start in starts]
    found = chain(_compare(first["versions"], here["versions"], ()), _compare(machines[0], machines[1], ()))
    return [_told(*one) for one in found]


def settings(first: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Tell which settings differ, by their dotted names."""
    names = [name for name in {**first, **here} if first.get(name) != here.get(name)]
    return [_told((name,), first.get(name, "not set"), here.get(name, "not set")) for name in names]


def outcome(first: Mapping[str, Any], here: Mapping[str, Any]) -> tuple[bool, str]:
    """Say whether two runs came to the same: weights of every node, and figures of every node and round.

    Args:
        first: The results.json of the run that is repeated; what it does not say is not compared.
        here: That of the repetition.

    Returns:
        Whether they did, and that in words; where not, the first figure that differs, with both values.
    """
    rounds = [{f"round {one['round'] + 1}": one for one in record["rounds"]} for record in (first, here)]
    done = [{"rounds_done": record["rounds_done"]} for record in (first, here)]
    found = chain(_compare(rounds[0], rounds[1], (), exactly=True), _compare(done[0], done[1], ()))
    figure = next(found, None)
    weights, ours = first.get("final_weights") or {}, here.get("final_weights") or {}
    differing = [name for name in weights if weights[name] != ours.get(name)]
    if figure is None and not differing:
        told = f"every figure of {_count(len(rounds[0]), 'round')}"
        none = f"{told}; its weights were not recorded"
        return True, f"the weights of {_count(len(weights), 'node')} and {told} are the same" if weights else none
    number = f"{len(differing)} of {_count(len(weights), 'node')}"
    parts = [] if figure is None else [_told(*figure)]
    if differing:
        name = differing[0]
        digests = _told((f"the weights of {name}",), weights[name], ours.get(name))
        parts.append(f"the weights of {number} differ" if parts else f"{digests}, and so are those of {number} in all")
    elif weights:
        parts.append(f"the weights of all {_count(len(weights), 'node')} are the same")
    return False, "; ".join(parts)


def in_a_line(found: Sequence[str]) -> str:
    """Tell the first few of some differences, and how many there are more."""
    more = f" (and {len(found) - _MOST} more)" if len(found) > _MOST else ""
    return "; ".join(islice(found, _MOST)) + more


def _compare(
    first: Any, here: Any, path: tuple[str, ...], exactly: bool = False
) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield where two nests differ: the way there, and both values; keys that the first one lacks only if `exactly`."""
    if isinstance(first, dict) and isinstance(here, dict):
        for key in {**first, **here} if exactly else first:
            yield from _compare(first.get(key), here.get(key), (*path, str(key)), exactly)
    elif first != here:
        yield path, first, here


def _told(path: tuple[str, ...], first: Any, here: Any) -> str:
    return f"{', '.join(one for one in path if one != 'nodes')} is {_value(first)} there and {_value(here)} here"


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "nothing"
    return "nothing" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _by_name(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the recorded nodes by name, with the names of their children."""
    nodes = nodes_of(content["topology"]["root"])
    return {one["name"]: {**one, "children": [child["name"] for child in one["children"]]} for one in nodes}


def _texts(*contents: Mapping[str, Any]) -> list[dict[str, dict[str, Any]]]:
    """Return what is recorded of every node's text: by its tokens where all know them, wherever they lay."""
    told = [{name: dict(facts) for name, facts in one["data_nodes"].items()} for one in contents]
    for name in told[0]:
        here = [one[name] for one in told if name in one]
        for text, tokens in (("text", "tokens_crc32"), ("held_out_text", "held_out_tokens_crc32")):
            by_tokens = all(facts.get(tokens) for facts in here)
            for facts in here:
                facts.pop(text if by_tokens else tokens, None)
    return told
