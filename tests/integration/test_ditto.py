"""Ditto, compared with local steps written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tested_family import EMBEDDING
from torch import Tensor

from worldlm.callbacks import Averaging, Ditto, ExamplePrivacy, TokenRows, UpdatePrivacy
from worldlm.data import BlockBatchSampler
from worldlm.federation.parameters import PARTS, clone
from worldlm.federation.token_rows import row_shares, weighted_mean_by_rows
from worldlm.models.module import warmup_cosine
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class MessageRecorder(FederationCallback):
    """Records messages and the weights of leaves, by round and node."""

    def __init__(self) -> None:
        self.down: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.merged: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.fitted: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.up: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.counts: dict[tuple[int, str], Tensor] = {}

    def on_receive(self, context: Any, download: Any) -> None:
        self.down[context.round, context.node.name] = clone(flat(download.parts))

    def on_merged(self, context: Any) -> None:
        self.merged[context.round, context.node.name] = clone(context.state.parameters)

    def on_local_fit_end(self, context: Any) -> None:
        self.fitted[context.round, context.node.name] = clone(context.state.parameters)

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        for upload in uploads:
            self.up.setdefault((context.round, upload.node), clone(flat(upload.parts)))  # a parent's own fit first
            self.counts[context.round, upload.node] = upload.row_counts.get(EMBEDDING, torch.ones(1))


def leaves(star: Make, names: str, num_local_steps: int, settings: str = "") -> Topology:
    """Return a star whose leaves have this number of local steps."""
    topology: Topology = star(
        names, settings, **dict.fromkeys(names, f"settings: {{num_local_steps: {num_local_steps}}}")
    )
    return topology


def flat(parts: Mapping[Any, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


def assert_models(actual: dict[str, Tensor], expected: Mapping[str, Tensor], atol: float = 1e-6) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value.detach(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("accumulate", "clip"), [(1, None), (2, 0.5)])
def test_two_rounds_equal_steps_by_hand(
    accumulate: int, clip: float | None, star: Make, fit: Make, make_module: Make, make_data: Make
) -> None:
    """Of five steps, two train the shared model and three the personal one, with one optimizer and one schedule."""
    mu, steps, rounds = 3.0, 5, 2
    messages = MessageRecorder()
    options = {"max_epochs": rounds, "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    fit(leaves(star, "ab", steps), [Ditto(mu), messages], **options)

    module = make_module()
    live = dict(module.named_parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    blocks = make_data().blocks("a", "train")
    sampler = BlockBatchSampler(len(blocks), 2, 7, "a")
    sampler.length = rounds * steps * accumulate
    batches = iter([blocks.__getitems__(indices) for indices in sampler])

    def load(weights: Mapping[str, Tensor]) -> None:
        for name, value in live.items():
            value.data.copy_(weights[name])

    def step(number: int, anchor: Mapping[str, Tensor] | None) -> None:
        optimizer.param_groups[0]["lr"] = 1e-2 * warmup_cosine(number, 1, rounds * steps, 0.1)
        optimizer.zero_grad()
        loss = torch.stack([module.loss(next(batches)) for _ in range(accumulate)]).mean()
        if anchor is not None:
            loss = loss + mu / 2 * sum((value - anchor[name]).square().sum() for name, value in live.items())
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()

    personal = clone(live)
    for round_ in range(rounds):
        download = messages.down[round_, "a"]
        assert_models(messages.merged[round_, "a"], personal, 1e-5)
        load(download)
        for i in range(2):
            step(round_ * steps + i, None)
        assert_models(messages.up[round_, "a"], live, 1e-5)
        load(personal)
        for i in range(2, steps):
            step(round_ * steps + i, download)
        personal = clone(live)
        assert_models(messages.fitted[round_, "a"], personal, 1e-5)
    mean = {name: (messages.up[0, "a"][name] + messages.up[0, "b"][name]) / 2 for name in live}
    assert_models(messages.down[1, "b"], mean)


def test_rows_of_the_shared_model_are_weighted_by_token_counts(star: Make, fit: Make) -> None:
    messages, rows = MessageRecorder(), EMBEDDING
    merged = fit(star("ab"), [TokenRows(), Ditto(), messages], max_epochs=1).world.states["world"].parameters
    up, start = [messages.up[0, name] for name in "ab"], messages.down[0, "a"]
    shares = [{rows: row_shares(messages.counts[0, name], 32)} for name in "ab"]
    assert_models(merged, weighted_mean_by_rows(up, [1, 1], shares, start))
    assert not torch.allclose(merged[rows], (up[0][rows] + up[1][rows]) / 2)


def test_a_strong_pull_keeps_the_personal_model_at_the_shared_one(star: Make, fit: Make) -> None:
    moved = {}
    for mu in (0.0, 1000.0):
        messages = MessageRecorder()
        fit(leaves(star, "ab", 6), [Ditto(mu), messages], max_epochs=3)
        personal, shared = messages.fitted[2, "a"], messages.down[2, "a"]
        moved[mu] = sum(float((personal[name] - shared[name]).square().sum()) for name in personal)
    assert moved[1000.0] < 0.5 * moved[0.0]


def test_a_rate_moves_the_personal_model(star: Make, fit: Make) -> None:
    messages = MessageRecorder()
    fit(star("ab"), [Ditto(leaf_download_rate=(1.0, 0.25)), messages])
    for name in "ab":
        personal, shared = messages.fitted[0, name], messages.down[1, name]
        assert_models(messages.merged[1, name], {key: 0.75 * personal[key] + 0.25 * shared[key] for key in shared})


TREE = """
name: tree
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - {name: north, corpus: n, children: [{name: a, corpus: a}, {name: b, corpus: b}]}
    - {name: c, corpus: c}
    - {name: listener, corpus: l, settings: {num_local_steps: 0}}
"""


def test_federations_average_the_shared_model_on_a_tree(fit: Make) -> None:
    """A federation that holds data trains the shared model alone, and a listener follows it."""
    messages = MessageRecorder()
    states = fit(parse_topology(TREE, "tree.yaml"), [Ditto(), messages]).world.states
    up = messages.up
    for round_ in (0, 1):
        own = [up[round_, name] for name in ("a", "b", "north")]
        north = {name: torch.stack([model[name] for model in own]).mean(0) for name in own[0]}
        assert_models(messages.merged[round_, "north"], north)
        weighted = {name: 0.75 * north[name] + 0.25 * up[round_, "c"][name] for name in north}
        assert_models(messages.merged[round_, "world"], weighted)
    assert_models(states["listener"].parameters, messages.merged[0, "world"])
    assert not torch.equal(up[1, "a"][EMBEDDING], states["a"].parameters[EMBEDDING])


def test_a_single_node_trains_as_without_ditto(single: Topology, fit: Make) -> None:
    ditto, plain = (fit(single, callbacks).world.states["alone"] for callbacks in ([Ditto()], [Averaging(PARTS)]))
    assert all(torch.equal(value, ditto.parameters[name]) for name, value in plain.parameters.items())


def test_the_shared_model_alone_is_clipped(star: Make, fit: Make) -> None:
    messages = MessageRecorder()
    topology = star("ab", "privacy: {clip_norm: 0.05, noise_multiplier: 0.0}")
    fit(topology, [UpdatePrivacy(), Ditto(), messages])
    for name in "ab":
        update = [messages.up[1, name][key] - value for key, value in messages.down[1, name].items()]
        assert float(torch.cat([tensor.flatten() for tensor in update]).norm()) == pytest.approx(0.05, rel=1e-3)
        assert any(
            not torch.equal(messages.merged[1, name][key], value) for key, value in messages.down[1, name].items()
        )


def test_the_term_is_added_to_the_noised_gradient(star: Make, fit: Make) -> None:
    terms: list[float] = []

    class Watched(Ditto):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            before = {name: value.grad.clone() for name, value in pl_module.named_parameters()}
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            terms.append(max(float((value.grad - before[n]).abs().max()) for n, value in pl_module.named_parameters()))

    settings = "example_privacy: {clip_norm: 1.0, noise_multiplier: 1.0}"
    fit(leaves(star, "a", 4, settings), [ExamplePrivacy(), Watched(0.5)], limit_val_batches=0)
    assert [term > 0 for term in terms] == [False, False, False, True, False, False, True, True]


def test_too_few_steps_are_rejected(star: Make, fit: Make) -> None:
    message = r"^star\.yaml:\d+: a has 2 local steps, of which a shared_steps of 0\.4 leaves none .* at least 3$"
    with pytest.raises(ValueError, match=message):
        fit(star("ab"), [Ditto(shared_steps=0.4)])
