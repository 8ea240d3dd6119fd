"""Token-aware embedding rows: against a loop written by hand, up the tree, and in private."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.callbacks import Averaging, ExamplePrivacy, NodeMetrics, TokenRows, UpdatePrivacy
from worldlm.data import BlockBatchSampler
from worldlm.federation.parameters import PARTS
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
VOCAB_SIZE = 32
ROWS = "model.transformer.wte.weight"


class Tap(FederationCallback):
    """Remembers the uploads as they leave, by round and sender."""

    def __init__(self) -> None:
        self.uploads: list[tuple[int, str, Any]] = []

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        self.uploads.append((context.round, upload.node, upload))
        return upload

    def counts(self, number: int, name: str) -> Tensor:
        (found,) = [one for at, node, one in self.uploads if (at, node) == (number, name)]
        counts: Tensor = found.row_counts[ROWS]
        return counts


def counted(make_data: Make, corpus: str, batch_size: int, start: int, stop: int, name: str | None = None) -> Tensor:
    """Tokens of a node's batches from `start` to `stop`, one by one."""
    blocks = make_data().blocks(corpus, "train")
    sampler = BlockBatchSampler(len(blocks), batch_size, 7, name or corpus)
    sampler.start, sampler.length = start, stop - start
    counts = torch.zeros(VOCAB_SIZE)
    for indices in sampler:
        for token in blocks.__getitems__(indices).flatten().tolist():
            counts[token] += 1
    return counts


def rows_by_hand(models: list[Tensor], says: list[Tensor], start: Tensor) -> Tensor:
    rows = []
    for r in range(VOCAB_SIZE):
        total = sum(float(say[r]) for say in says)
        parts = [model[r] * (float(say[r]) / total) for model, say in zip(models, says, strict=True) if total]
        rows.append(torch.stack(parts).sum(0) if total else start[r])
    return torch.stack(rows)


# ---------------------------------------------------------------------- one round


@pytest.mark.parametrize(
    ("weights", "own", "says"),
    [("num_tokens", {}, (2, 4, 3)), ("uniform", {}, (1, 1, 1)), ("num_tokens", {"a": "weight: 96"}, (96, 64, 48))],
    ids=["num_tokens", "uniform", "weight"],
)
def test_a_round_by_hand(
    weights: Any, own: dict[str, str], says: tuple[int, ...], star: Make, fit: Make, make_module: Make, make_data: Make
) -> None:
    sizes = {"a": 2, "b": 4, "c": 3}
    settings = {name: f"settings: {{batch_size: {size}}}" for name, size in sizes.items()}
    both = {name: ", ".join(filter(None, (settings[name], own.get(name)))) for name in sizes}
    trainer = fit(star("abc", **both), [TokenRows(), Averaging(parts=PARTS, weights=weights)], max_epochs=1)
    states = trainer.world.states
    counts = [counted(make_data, name, size, 0, 2) for name, size in sizes.items()]
    assert [float(one.sum()) for one in counts] == [2 * size * 9 for size in sizes.values()]
    spread = [say * one / one.sum() for say, one in zip(says, counts, strict=True)]
    start = dict(make_module().named_parameters())[ROWS].detach()
    leaves = [states[name].parameters[ROWS] for name in sizes]
    found = states["world"].parameters[ROWS]
    torch.testing.assert_close(found, rows_by_hand(leaves, spread, start), rtol=1e-6, atol=1e-6)
    unseen = sum(counts) == 0
    assert 0 < int(unseen.sum()) < VOCAB_SIZE
    assert torch.equal(found[unseen], start[unseen])


def test_all_other_tensors_are_averaged_as_without_it(star: Make, fit: Make) -> None:
    topology = star("ab", b="settings: {batch_size: 4}")
    with_rows, without = (
        fit(topology, [Averaging(parts=PARTS), *rows], max_epochs=1).world.states["world"].parameters
        for rows in ([TokenRows()], [])
    )
    differ = [name for name in without if not torch.equal(with_rows[name], without[name])]
    assert differ == [ROWS]


def test_rows_go_through_the_outer_optimizer(star: Make, fit: Make, make_module: Make, make_data: Make) -> None:
    nesterov = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
    callbacks = [Averaging(parts=PARTS, arguments=nesterov), TokenRows()]
    states = fit(star("ab"), callbacks, max_epochs=1).world.states
    start = dict(make_module().named_parameters())[ROWS].detach()
    counts = [counted(make_data, name, 2, 0, 2) for name in "ab"]
    mean = rows_by_hand([states[name].parameters[ROWS] for name in "ab"], counts, start)
    expected = start + 0.7 * 1.9 * (mean - start)
    torch.testing.assert_close(states["world"].parameters[ROWS], expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- counts on their way up


def _public(tree: Topology) -> Topology:
    text = """
name: public
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  children:
    - name: north
      corpus: e
      settings: {num_subrounds: 2}
      children: [{name: a, corpus: a}, {name: b, corpus: b}]
    - {name: c, corpus: c, settings: {num_local_steps: 3}}
"""
    return parse_topology(text, "public.yaml")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_federation_sends_the_sum_since_its_last_upload(
    accumulate: int, tree: Topology, fit: Make, make_data: Make
) -> None:
    tap = Tap()
    fit(_public(tree), [Averaging(), TokenRows(), tap], accumulate_grad_batches=accumulate)
    for number in range(2):
        first = number * 2 * accumulate  # two sub-rounds of one step a round
        expected = sum(counted(make_data, name, 2, first, first + 2 * accumulate) for name in "ab")
        expected = expected + counted(make_data, "e", 2, first, first + 2 * accumulate, "north")
        assert torch.equal(tap.counts(number, "north"), expected)
        begin = number * 3 * accumulate
        leaf = counted(make_data, "c", 2, begin, begin + 3 * accumulate)
        assert torch.equal(tap.counts(number, "c"), leaf)
    assert all(one.row_counts[ROWS].dtype == torch.float32 for _, _, one in tap.uploads)


def test_a_federation_merges_its_own_fit_by_its_own_counts(tree: Topology, fit: Make, make_data: Make) -> None:
    kept: dict[str, Tensor] = {}

    class Keep(FederationCallback):
        def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "north" and "start" not in kept:
                kept["start"] = context.state.parameters[ROWS].clone()
                kept.update({one.node: one.parts["backbone"][ROWS].clone() for one in uploads})

        def after_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "north":
                kept.setdefault("merged", context.state.parameters[ROWS].clone())

    fit(_public(tree), [Keep(), Averaging(), TokenRows()], max_epochs=1)
    corpora = {"a": "a", "b": "b", "north": "e"}
    counts = [counted(make_data, corpus, 2, 0, 1, name) for name, corpus in corpora.items()]
    expected = rows_by_hand([kept[name] for name in corpora], counts, kept["start"])
    torch.testing.assert_close(kept["merged"], expected, rtol=1e-6, atol=1e-6)


def test_a_parent_of_listeners_sends_its_own_counts(fit: Make, make_data: Make) -> None:
    text = """
name: listeners
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - {name: a, corpus: a, children: [{name: c, corpus: c, settings: {num_local_steps: 0}}]}
    - {name: b, corpus: b}
"""
    tap = Tap()
    fit(parse_topology(text, "listeners.yaml"), [Averaging(), TokenRows(), tap])
    for number in range(2):
        assert torch.equal(tap.counts(number, "a"), counted(make_data, "a", 2, 2 * number, 2 * number + 2))


def test_who_takes_no_part_has_no_say(star: Make, fit: Make, make_data: Make) -> None:
    class Absent(FederationCallback):
        def participates(self, context: Any) -> bool:
            return not (context.node.name == "b" and context.round == 0)

    tap = Tap()
    fit(star("ab"), [Averaging(), TokenRows(), Absent(), tap])
    assert [(number, name) for number, name, _ in tap.uploads] == [(0, "a"), (1, "a"), (1, "b")]
    assert torch.equal(tap.counts(1, "a"), counted(make_data, "a", 2, 2, 4))
    assert torch.equal(tap.counts(1, "b"), counted(make_data, "b", 2, 0, 2))


def test_bytes_are_the_parts_and_four_a_row(star: Make, fit: Make) -> None:
    plain, rows = (fit(star("ab"), [Averaging(), *more]).world.states for more in ([], [TokenRows()]))
    for name in "ab":
        assert rows[name].bytes_down == plain[name].bytes_down
        assert rows[name].bytes_up == plain[name].bytes_up + 2 * 4 * VOCAB_SIZE


# ---------------------------------------------------------------------- privacy


def test_counts_stay_where_updates_are_private(
    tree: Topology, fit: Make, make_data: Make, caplog: pytest.LogCaptureFixture
) -> None:
    tap, kept = Tap(), {}

    class Keep(FederationCallback):
        def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "world" and not kept:
                kept.update({one.node: one for one in uploads}, start=context.state.parameters[ROWS].clone())
                kept["parts"] = {one.node: one.parts["backbone"][ROWS].clone() for one in uploads}

        def after_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "world":
                kept.setdefault("merged", context.state.parameters[ROWS].clone())

    with caplog.at_level(logging.INFO, "worldlm"):
        fit(tree, [Keep(), Averaging(), TokenRows(), UpdatePrivacy(), tap])
    assert {name for _, name, one in tap.uploads if one.row_counts} == {"a", "b", "north"}
    for name in ("south", "c", "d"):
        told = [record for record in caplog.messages if record.startswith(f"{name}: its privacy keeps its token")]
        assert len(told) == 1
    north, south = (kept["parts"][name] for name in ("north", "south"))
    counts = counted(make_data, "a", 2, 0, 2) + counted(make_data, "b", 2, 0, 1)
    tokens = {name: kept[name].num_tokens for name in ("north", "south")}
    assert tokens == {"north": 48, "south": 48}
    says = [tokens["north"] * counts / counts.sum(), torch.full((VOCAB_SIZE,), tokens["south"] / VOCAB_SIZE)]
    expected = rows_by_hand([north, south], says, kept["start"])
    torch.testing.assert_close(kept["merged"], expected, rtol=1e-6, atol=1e-6)


def test_a_federation_counts_private_children_as_if_they_read_all_tokens_alike(fit: Make, make_data: Make) -> None:
    text = """
name: mixed
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  children:
    - name: north
      children:
        - {name: a, corpus: a}
        - {name: b, corpus: b, settings: {privacy: {clip_norm: 0.5}}}
"""
    tap = Tap()
    fit(parse_topology(text, "mixed.yaml"), [Averaging(), TokenRows(), UpdatePrivacy(), tap])
    expected = counted(make_data, "a", 2, 0, 1) + 16 / VOCAB_SIZE
    assert torch.equal(tap.counts(0, "north"), expected)


def test_text_under_example_privacy_is_not_counted(fit: Make, caplog: pytest.LogCaptureFixture) -> None:
    text = """
name: mixed
settings: {num_local_steps: 1, batch_size: 2, example_privacy: {clip_norm: 1.0, noise_multiplier: 1.0}}
root:
  name: world
  children:
    - name: north
      corpus: e
      children: [{name: a, corpus: a}, {name: b, corpus: b}]
"""
    tap, rows = Tap(), TokenRows()
    with caplog.at_level(logging.INFO, "worldlm"):
        callbacks = [Averaging(), rows, ExamplePrivacy(), NodeMetrics(), tap]
        world = fit(parse_topology(text, "mixed.yaml"), callbacks).world
    assert not any(one.row_counts for _, _, one in tap.uploads)
    assert rows.state_dict() == {"tally": None}
    assert not any(rows.memory(state) for state in world.states.values())
    assert sum("keeps its token counts at home" in message for message in caplog.messages) == 3
