"""Whether runs may be compared: same start, same text, same batches, same tokens, and if not, where not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from worldlm.commands.compare.records import by_method, common_nodes
from worldlm.runs.results import RunRecord


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found."""

    good: bool
    """Whether nothing stands against a comparison."""
    text: str
    """What was checked, and where it does not hold."""

    def __str__(self) -> str:
        return f"{'yes' if self.good else 'NO '}  {self.text}"


def check(records: Sequence[RunRecord]) -> list[Finding]:
    """Check that methods differ in their method alone.

    Runs that train on other nodes than those they are measured on (centralised ones) are left out of the checks
    of batches and of tokens by node, and told of.
    """
    nodes = common_nodes(records)
    pooled = [one for one in records if not _trains_where_measured(one, nodes)]
    federated = [one for one in records if one not in pooled]
    findings = [
        _seeds(records),
        _same("initial weights", records, lambda one: one.content["initial_weights"], per_seed=True),
        _same(
            "held-out text at every node", records, lambda one: _facts(one, nodes, "held_out_text", "held_out_blocks")
        ),
        _same("training text of all nodes together", records, _all_text),
        _same("rounds", records, lambda one: one.content["rounds_done"]),
        _same("versions", records, lambda one: _frozen(one.content["versions"])),
    ]
    if any(one.changes for one in records):
        findings.append(_same("changes of the topology on the way", records, lambda one: _frozen(one.changes)))
    if federated:
        findings += [
            _same("batches in the same order at every node", federated, lambda one: _batches(one, nodes), True),
            _same("tokens at every node", federated, lambda one: tuple(one.tokens(name) for name in nodes)),
        ]
    findings += [_exception(group[0], federated, nodes) for group in by_method(pooled).values()]
    return findings


def _trains_where_measured(record: RunRecord, nodes: Sequence[str]) -> bool:
    return all(record.tokens(name) > 0 for name in nodes)


def _same(
    what: str, records: Sequence[RunRecord], key: Callable[[RunRecord], Hashable], per_seed: bool = False
) -> Finding:
    """Check that runs (of one seed) agree, that is that they have one key, and that it is known."""
    differing, unknown = list[str](), list[str]()
    for seed in sorted({one.seed for one in records}) if per_seed else [None]:
        group = [one for one in records if seed is None or one.seed == seed]
        keys: dict[Hashable, list[str]] = {}
        for one in group:
            if _is_known(found := key(one)):
                keys.setdefault(found, []).append(one.title if seed is None else one.method)
            else:
                unknown.append(one.title)
        if len(keys) > 1:
            sides = " | ".join(", ".join(titles) for titles in keys.values())
            differing.append(sides if seed is None else f"seed {seed}: {sides}")
    if differing:
        return Finding(False, f"same {what}: differing are {'; '.join(differing)}")
    if unknown:
        return Finding(False, f"same {what}: nothing is known of {', '.join(unknown)}")
    return Finding(True, f"same {what}")


def _is_known(key: Hashable) -> bool:
    return key is not None and not (isinstance(key, tuple) and any(not _is_known(one) for one in key))


def _facts(record: RunRecord, nodes: Sequence[str], *names: str) -> Hashable:
    facts: dict[str, dict[str, Any]] = record.content["data_nodes"]
    return tuple(tuple(_frozen(facts.get(node, {}).get(name)) for name in names) for node in nodes)


def _batches(record: RunRecord, nodes: Sequence[str]) -> Hashable:
    """Tell what is drawn from in a round, and how much: several short fits read on where the one before stopped."""
    facts: dict[str, dict[str, Any]] = record.content["data_nodes"]
    counts = tuple(facts.get(node, {}).get("steps", 0) * facts.get(node, {}).get("fits", 0) for node in nodes)
    return (_facts(record, nodes, "text", "blocks", "batch_size"), counts)


def _all_text(record: RunRecord) -> Hashable:
    """Return the packed texts that anybody trains on, each once."""
    trained = [facts for facts in record.content["data_nodes"].values() if facts.get("fits")]
    texts = [facts["text"] for facts in trained]
    return None if None in texts else tuple(sorted({part for text in texts for part in text}))


def _frozen(value: Any) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _frozen(one)) for name, one in sorted(value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _seeds(records: Sequence[RunRecord]) -> Finding:
    seeds = {method: sorted(one.seed for one in group) for method, group in by_method(records).items()}
    if len({tuple(each) for each in seeds.values()}) == 1:
        (shared, *_) = seeds.values()
        return Finding(True, f"same seeds: {', '.join(map(str, shared))}")
    return Finding(False, "same seeds: " + "; ".join(f"{name} {', '.join(map(str, s))}" for name, s in seeds.items()))


def _exception(record: RunRecord, federated: Sequence[RunRecord], nodes: Sequence[str]) -> Finding:
    own, others = all_tokens(record), sorted({all_tokens(one) for one in federated})
    told = f"{record.method} does not train where it is measured: {own:,} tokens in all"
    if others:
        told += f", the others {', '.join(f'{one:,}' for one in others)}"
    return Finding(not others or others == [own], told)


def all_tokens(record: RunRecord) -> int:
    """Return the tokens that all nodes of a run trained on."""
    return sum(record.tokens(name) for name in record.data_nodes)
