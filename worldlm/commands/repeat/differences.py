"""Differences between two records of a run: in its inputs, in its environment, in its settings, and in its results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from worldlm.runs.results import nodes_of

_MAX_SHOWN = 3
"""Differences that are printed; the others are counted."""
_INPUTS = ("seed", "rounds_wanted", "initial_weights", "noise_keys")
_MACHINE = ("platform", "device", "threads", "code")

Difference = tuple[tuple[str, ...], Any, Any]
"""The keys that lead to a value, and both values."""


def run_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the differences with which a repetition cannot match: in seed, noise key, rounds, nodes, text, batches or
    weights.

    Args:
        first: The results.json of the run that is repeated. What it lacks is not compared.
        second: That of the repetition, which need not have a round yet.
    """
    inputs = [({name: first.get(name)}, {name: second.get(name)}) for name in _INPUTS if name in first]
    nodes = (_nodes_by_name(first), _nodes_by_name(second))
    found = chain.from_iterable(_compare(*pair, ()) for pair in (*inputs, nodes, _texts(first, second)))
    return [_line(*difference) for difference in found]


def environment_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the differences that may change the results: in versions, code, device and threads."""
    starts = [record.get("last_start", {}) for record in (first, second)]
    machines = [{name: start[name] for name in _MACHINE if name in start} for start in starts]
    found = chain(_compare(first["versions"], second["versions"], ()), _compare(machines[0], machines[1], ()))
    return [_line(*difference) for difference in found]


def setting_changes(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Return the settings that differ, by their dotted names."""
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return [_line((name,), first.get(name, "not set"), second.get(name, "not set")) for name in names]


def compare_results(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[bool, str]:
    """Compare the results of two runs: the weights of every node, and the figures of every node and round.

    Args:
        first: The results.json of the run that is repeated. What it lacks is not compared.
        second: That of the repetition.

    Returns:
        Whether the results are the same, and a sentence about it; if not, with the first figure that differs.
    """
    figure = next(_compare_rounds(first, second), None)
    weights, other_weights = first.get("final_weights") or {}, second.get("final_weights") or {}
    differing = [name for name in weights if weights[name] != other_weights.get(name)]
    if figure is None and not differing:
        return True, _same(len(weights), len(first["rounds"]))
    parts = [] if figure is None else [_line(*figure)]
    if differing:
        number = f"the weights of {len(differing)} of {_count(len(weights), 'node')} differ"
        name = differing[0]
        digests = f", first those of {name}: digest {_value(weights[name])}, now {_value(other_weights.get(name))}"
        parts.append(number if parts else number + digests)
    elif weights:
        parts.append(f"the weights of all {_count(len(weights), 'node')} are the same")
    return False, "; ".join(parts)


def _compare_rounds(first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[Difference]:
    rounds = [{f"round {round_['round'] + 1}": round_ for round_ in record["rounds"]} for record in (first, second)]
    done = [{"rounds_done": record["rounds_done"]} for record in (first, second)]
    return chain(_compare(rounds[0], rounds[1], (), exactly=True), _compare(done[0], done[1], ()))


def _same(num_nodes: int, num_rounds: int) -> str:
    figures = f"every figure of {_count(num_rounds, 'round')}"
    if not num_nodes:
        return f"{figures} is the same; its weights were not recorded"
    return f"the weights of {_count(num_nodes, 'node')} and {figures} are the same"


def join_first(lines: Sequence[str]) -> str:
    """Join the first few lines, and say how many more there are."""
    more = f" (and {len(lines) - _MAX_SHOWN} more)" if len(lines) > _MAX_SHOWN else ""
    return "; ".join(lines[:_MAX_SHOWN]) + more


def _compare(first: Any, second: Any, path: tuple[str, ...], exactly: bool = False) -> Iterator[Difference]:
    """Yield the differences of two nested values; keys that the first one lacks count only if `exactly`."""
    if isinstance(first, dict) and isinstance(second, dict):
        for key in {**first, **second} if exactly else first:
            yield from _compare(first.get(key), second.get(key), (*path, str(key)), exactly)
    elif first != second:
        yield path, first, second


def _line(path: tuple[str, ...], first: Any, second: Any) -> str:
    return f"{', '.join(key for key in path if key != 'nodes')} was {_value(first)} and is now {_value(second)}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "nothing"
    return "nothing" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _nodes_by_name(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the recorded nodes by name, with the names of their children."""
    nodes = nodes_of(content["topology"]["root"])
    return {node["name"]: {**node, "children": [child["name"] for child in node["children"]]} for node in nodes}


def _texts(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the facts about every data node's text in two records.

    Where both records have digests of the tokens, the names of the packed texts are left out: the same tokens may be
    packed in another folder.
    """
    ours, theirs = ({name: dict(facts) for name, facts in record["data_nodes"].items()} for record in (first, second))
    for name, facts in ours.items():
        records = [facts, theirs[name]] if name in theirs else [facts]
        for text, tokens in (("text", "tokens_crc32"), ("held_out_text", "held_out_tokens_crc32")):
            by_tokens = all(record.get(tokens) for record in records)
            for record in records:
                record.pop(text if by_tokens else tokens, None)
    return ours, theirs
