"""Averaging of embedding rows: compared with a loop written by hand, in deep trees, and with privacy."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tested_family import EMBEDDING as ROWS
from torch import Tensor

from worldlm.callbacks import Averaging, ExamplePrivacy, NodeMetrics, TokenRows, UpdatePrivacy
from worldlm.data import BlockBatchSampler
from worldlm.federation.messages import joined
from worldlm.federation.parameters import PARTS
from worldlm.topology import Node, Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
VOCAB_SIZE = 32


class UploadRecorder(FederationCallback):
    """Records the sent uploads, by round and sender."""

    def __init__(self) -> None:
        self.uploads: list[tuple[int, str, Any]] = []

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        self.uploads.append((context.round, upload.node, upload))
        return upload

    def counts(self, number: int, name: str) -> Tensor:
        (upload,) = [upload for at, node, upload in self.uploads if (at, node) == (number, name)]
        counts: Tensor = upload.row_counts[ROWS]
        return counts


def counted(make_data: Make, corpus: str, batch_size: int, start: int, stop: int, name: str | None = None) -> Tensor:
    """Count the tokens of a node's batches from `start` to `stop`."""
    blocks = make_data().blocks(corpus, "train")
    sampler = BlockBatchSampler(len(blocks), batch_size, 7, name or corpus)
    sampler.start, sampler.length = start, stop - start
    counts = torch.zeros(VOCAB_SIZE)
    for indices in sampler:
        for token in blocks.__getitems__(indices).flatten().tolist():
            counts[token] += 1
    return counts


def rows_by_hand(models: list[Tensor], shares: list[Tensor], start: Tensor) -> Tensor:
    rows = []
    for r in range(VOCAB_SIZE):
        total = sum(float(share[r]) for share in shares)
        parts = [model[r] * (float(share[r]) / total) for model, share in zip(models, shares, strict=True) if total]
        rows.append(torch.stack(parts).sum(0) if total else start[r])
    return torch.stack(rows)


# ---------------------------------------------------------------------- one round


@pytest.mark.parametrize(
    ("weights", "own", "shares"),
    [("num_tokens", {}, (2, 4, 3)), ("uniform", {}, (1, 1, 1)), ("num_tokens", {"a": "weight: 96"}, (96, 64, 48))],
    ids=["num_tokens", "uniform", "weight"],
)
def test_a_round_equals_a_computation_by_hand(
    weights: Any,
    own: dict[str, str],
    shares: tuple[int, ...],
    star: Make,
    fit: Make,
    make_module: Make,
    make_data: Make,
) -> None:
    sizes = {"a": 2, "b": 4, "c": 3}
    settings = {name: f"settings: {{batch_size: {size}}}" for name, size in sizes.items()}
    both = {name: ", ".join(filter(None, (settings[name], own.get(name)))) for name in sizes}
    trainer = fit(star("abc", **both), [TokenRows(), Averaging(parts=PARTS, weights=weights)], max_epochs=1)
    states = trainer.world.states
    counts = [counted(make_data, name, size, 0, 2) for name, size in sizes.items()]
    assert [float(tokens.sum()) for tokens in counts] == [2 * size * 9 for size in sizes.values()]
    spread = [share * tokens / tokens.sum() for share, tokens in zip(shares, counts, strict=True)]
    start = dict(make_module().named_parameters())[ROWS].detach()
    leaves = [states[name].parameters[ROWS] for name in sizes]
    actual = states["world"].parameters[ROWS]
    torch.testing.assert_close(actual, rows_by_hand(leaves, spread, start), rtol=1e-6, atol=1e-6)
    unseen = sum(counts) == 0
    assert 0 < int(unseen.sum()) < VOCAB_SIZE
    assert torch.equal(actual[unseen], start[unseen])


def test_other_tensors_are_averaged_as_without_token_rows(star: Make, fit: Make) -> None:
    topology = star("ab", b="settings: {batch_size: 4}")
    with_rows, without = (
        fit(topology, [Averaging(parts=PARTS), *rows], max_epochs=1).world.states["world"].parameters
        for rows in ([TokenRows()], [])
    )
    differ = [name for name in without if not torch.equal(with_rows[name], without[name])]
    assert differ == [ROWS]


def test_the_outer_optimizer_steps_the_rows(star: Make, fit: Make, make_module: Make, make_data: Make) -> None:
    nesterov = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
    callbacks = [Averaging(parts=PARTS, arguments=nesterov), TokenRows()]
    states = fit(star("ab"), callbacks, max_epochs=1).world.states
    start = dict(make_module().named_parameters())[ROWS].detach()
    counts = [counted(make_data, name, 2, 0, 2) for name in "ab"]
    mean = rows_by_hand([states[name].parameters[ROWS] for name in "ab"], counts, start)
    expected = start + 0.7 * 1.9 * (mean - start)
    torch.testing.assert_close(states["world"].parameters[ROWS], expected, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------- counts in deep trees


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
    recorder = UploadRecorder()
    fit(_public(tree), [Averaging(PARTS), TokenRows(), recorder], accumulate_grad_batches=accumulate)
    for number in range(2):
        first = number * 2 * accumulate  # two sub-rounds of one step per round
        expected = sum(counted(make_data, name, 2, first, first + 2 * accumulate) for name in "ab")
        expected = expected + counted(make_data, "e", 2, first, first + 2 * accumulate, "north")
        assert torch.equal(recorder.counts(number, "north"), expected)
        begin = number * 3 * accumulate
        leaf = counted(make_data, "c", 2, begin, begin + 3 * accumulate)
        assert torch.equal(recorder.counts(number, "c"), leaf)
    assert all(upload.row_counts[ROWS].dtype == torch.float32 for _, _, upload in recorder.uploads)


def test_a_federation_merges_its_own_fit_by_its_own_counts(tree: Topology, fit: Make, make_data: Make) -> None:
    seen: dict[str, Tensor] = {}

    class MergeRecorder(FederationCallback):
        def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "north" and "start" not in seen:
                seen["start"] = context.state.parameters[ROWS].clone()
                seen.update({upload.node: joined(upload.parts)[ROWS].clone() for upload in uploads})

        def after_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "north":
                seen.setdefault("merged", context.state.parameters[ROWS].clone())

    fit(_public(tree), [MergeRecorder(), Averaging(PARTS), TokenRows()], max_epochs=1)
    corpora = {"a": "a", "b": "b", "north": "e"}
    counts = [counted(make_data, corpus, 2, 0, 1, name) for name, corpus in corpora.items()]
    expected = rows_by_hand([seen[name] for name in corpora], counts, seen["start"])
    torch.testing.assert_close(seen["merged"], expected, rtol=1e-6, atol=1e-6)


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
    recorder = UploadRecorder()
    fit(parse_topology(text, "listeners.yaml"), [Averaging(PARTS), TokenRows(), recorder])
    for number in range(2):
        assert torch.equal(recorder.counts(number, "a"), counted(make_data, "a", 2, 2 * number, 2 * number + 2))


def test_absent_nodes_are_not_counted(star: Make, fit: Make, make_data: Make) -> None:
    class Absent(FederationCallback):
        def participates(self, context: Any) -> bool:
            return not (context.node.name == "b" and context.round == 0)

    recorder = UploadRecorder()
    fit(star("ab"), [Averaging(PARTS), TokenRows(), Absent(), recorder])
    assert [(number, name) for number, name, _ in recorder.uploads] == [(0, "a"), (1, "a"), (1, "b")]
    assert torch.equal(recorder.counts(1, "a"), counted(make_data, "a", 2, 2, 4))
    assert torch.equal(recorder.counts(1, "b"), counted(make_data, "b", 2, 0, 2))


def test_counts_add_four_bytes_per_row(star: Make, fit: Make) -> None:
    plain, rows = (fit(star("ab"), [Averaging(PARTS), *more]).world.states for more in ([], [TokenRows()]))
    for name in "ab":
        assert rows[name].bytes_down == plain[name].bytes_down
        assert rows[name].bytes_up == plain[name].bytes_up + 2 * 4 * VOCAB_SIZE


# ---------------------------------------------------------------------- privacy


def _without_noise(node: Node) -> Node:
    privacy = node.settings.privacy and replace(node.settings.privacy, noise_multiplier=0.0)
    settings = replace(node.settings, privacy=privacy)
    return replace(node, settings=settings, children=tuple(map(_without_noise, node.children)))


def test_private_nodes_do_not_send_counts(
    tree: Topology, fit: Make, make_data: Make, caplog: pytest.LogCaptureFixture
) -> None:
    recorder, seen = UploadRecorder(), {}

    class MergeRecorder(FederationCallback):
        def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "world" and not seen:
                seen.update({upload.node: upload for upload in uploads}, start=context.state.parameters[ROWS].clone())
                seen["parts"] = {upload.node: joined(upload.parts)[ROWS].clone() for upload in uploads}

        def after_aggregate(self, context: Any, uploads: list[Any]) -> None:
            if context.node.name == "world":
                seen.setdefault("merged", context.state.parameters[ROWS].clone())

    with caplog.at_level(logging.INFO, "worldlm"):
        topology = replace(tree, root=_without_noise(tree.root))  # noise would lower the weight of south
        fit(topology, [MergeRecorder(), Averaging(PARTS), TokenRows(), UpdatePrivacy(), recorder])
    assert {name for _, name, upload in recorder.uploads if upload.row_counts} == {"a", "b", "north"}
    for name in ("south", "c", "d"):
        messages = [text for text in caplog.messages if text.startswith(f"{name} is private and does not send token")]
        assert len(messages) == 1
    north, south = (seen["parts"][name] for name in ("north", "south"))
    counts = counted(make_data, "a", 2, 0, 2) + counted(make_data, "b", 2, 0, 1)
    tokens = {name: seen[name].num_tokens for name in ("north", "south")}
    assert tokens == {"north": 48, "south": 48}
    shares = [tokens["north"] * counts / counts.sum(), torch.full((VOCAB_SIZE,), tokens["south"] / VOCAB_SIZE)]
    expected = rows_by_hand([north, south], shares, seen["start"])
    torch.testing.assert_close(seen["merged"], expected, rtol=1e-6, atol=1e-6)


def test_private_children_count_equally_for_all_tokens(fit: Make, make_data: Make) -> None:
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
    recorder = UploadRecorder()
    fit(parse_topology(text, "mixed.yaml"), [Averaging(PARTS), TokenRows(), UpdatePrivacy(), recorder])
    expected = counted(make_data, "a", 2, 0, 1) + 16 / VOCAB_SIZE
    assert torch.equal(recorder.counts(0, "north"), expected)


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
    recorder, rows = UploadRecorder(), TokenRows()
    with caplog.at_level(logging.INFO, "worldlm"):
        callbacks = [Averaging(PARTS), rows, ExamplePrivacy(), NodeMetrics(), recorder]
        world = fit(parse_topology(text, "mixed.yaml"), callbacks).world
    assert not any(upload.row_counts for _, _, upload in recorder.uploads)
    assert rows.state_dict() == {"tally": None}
    assert not any(rows.memory(state) for state in world.states.values())
    assert sum("does not send token counts" in message for message in caplog.messages) == 3
