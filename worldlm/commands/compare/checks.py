"""Checks whether runs are comparable: the same initial weights, text, batches and tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.runs.results import RunRecord


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check."""

    good: bool
    """Whether the runs are comparable in this respect."""
    text: str
    """What was checked, and which runs differ."""

    def __str__(self) -> str:
        return f"{'yes' if self.good else 'NO '}  {self.text}"


def check(records: Sequence[RunRecord]) -> list[Finding]:
    """Check that runs differ in their method only.

    Centralised runs train on other nodes than those on which they are evaluated. They are left out of the checks of
    batches and tokens by node, and each method has a line of its own.
    """
    nodes = common_nodes(records)
    centralised = [record for record in records if not _trains_at(record, nodes)]
    federated = [record for record in records if record not in centralised]
    findings = [
        _seeds(records),
        _same("initial weights", records, lambda record: record.content["initial_weights"], per_seed=True),
        _same(
            "held-out text at every node",
            records,
            lambda record: _facts(record, nodes, "held_out_text", "held_out_blocks"),
        ),
        _same("training text of all nodes together", records, _all_text),
        _same("rounds", records, lambda record: record.content["rounds_done"]),
        _same("versions", records, lambda record: _hashable(record.content["versions"])),
    ]
    if any(record.changes for record in records):
        findings.append(_same("topology changes between rounds", records, lambda record: _hashable(record.changes)))
    if federated:
        findings += [
            _same("batches in the same order at every node", federated, lambda record: _batches(record, nodes), True),
            _same("tokens at every node", federated, lambda record: tuple(record.tokens(name) for name in nodes)),
        ]
    findings += [_centralised(group[0], federated, nodes) for group in by_method(centralised).values()]
    return findings


def _trains_at(record: RunRecord, nodes: Sequence[str]) -> bool:
    return all(record.tokens(name) > 0 for name in nodes)


def _same(
    name: str, records: Sequence[RunRecord], key: Callable[[RunRecord], Hashable], per_seed: bool = False
) -> Finding:
    """Check that all runs, or all of one seed, have the same key, and that none is unknown."""
    differing, unknown = list[str](), list[str]()
    for seed in sorted({record.seed for record in records}) if per_seed else [None]:
        keys: dict[Hashable, list[str]] = {}
        for record in records:
            if seed is not None and record.seed != seed:
                continue
            if _is_known(found := key(record)):
                keys.setdefault(found, []).append(record.title if seed is None else record.method)
            else:
                unknown.append(record.title)
        if len(keys) > 1:
            sides = " | ".join(", ".join(titles) for titles in keys.values())
            differing.append(sides if seed is None else f"seed {seed}: {sides}")
    if differing:
        return Finding(False, f"same {name}: these differ: {'; '.join(differing)}")
    if unknown:
        return Finding(False, f"same {name}: not recorded for {', '.join(unknown)}")
    return Finding(True, f"same {name}")


def _is_known(key: Hashable) -> bool:
    return key is not None and not (isinstance(key, tuple) and any(not _is_known(part) for part in key))


def _facts(record: RunRecord, nodes: Sequence[str], *names: str) -> Hashable:
    facts: dict[str, dict[str, Any]] = record.content["data_nodes"]
    return tuple(tuple(_hashable(facts.get(node, {}).get(name)) for name in names) for node in nodes)


def _batches(record: RunRecord, nodes: Sequence[str]) -> Hashable:
    """Return the text and the number of batches of a round. Several short fits of a round read consecutive batches."""
    facts: dict[str, dict[str, Any]] = record.content["data_nodes"]
    counts = tuple(facts.get(node, {}).get("steps", 0) * facts.get(node, {}).get("fits", 0) for node in nodes)
    return (_facts(record, nodes, "text", "blocks", "batch_size"), counts)


def _all_text(record: RunRecord) -> Hashable:
    """Return the packed texts on which any node trains, each once."""
    trained = [facts for facts in record.content["data_nodes"].values() if facts.get("fits")]
    texts = [facts["text"] for facts in trained]
    return None if None in texts else tuple(sorted({part for text in texts for part in text}))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _hashable(entry)) for name, entry in sorted(value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _seeds(records: Sequence[RunRecord]) -> Finding:
    seeds = {method: sorted(record.seed for record in group) for method, group in by_method(records).items()}
    if len({tuple(each) for each in seeds.values()}) == 1:
        (shared, *_) = seeds.values()
        return Finding(True, f"same seeds: {', '.join(map(str, shared))}")
    return Finding(False, "same seeds: " + "; ".join(f"{name} {', '.join(map(str, s))}" for name, s in seeds.items()))


def _centralised(record: RunRecord, federated: Sequence[RunRecord], nodes: Sequence[str]) -> Finding:
    own, others = all_tokens(record), sorted({all_tokens(other) for other in federated})
    text = f"{record.method} does not train on the nodes on which it is evaluated: {own:,} tokens in total"
    if others:
        text += f", the other runs {', '.join(f'{number:,}' for number in others)}"
    return Finding(not others or others == [own], text)


def all_tokens(record: RunRecord) -> int:
    """Return the number of tokens that all nodes of a run trained on."""
    return sum(record.tokens(name) for name in record.data_nodes)
