"""Clustered averaging: what every child receives, compared with a computation by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from tested_family import EMBEDDING as ROWS
from torch import Tensor

from worldlm.callbacks import Averaging, ClusteredAveraging, TokenRows, UpdatePrivacy
from worldlm.federation.parameters import PARTS, clone
from worldlm.federation.token_rows import row_shares, weighted_mean_by_rows
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class MessageRecorder(FederationCallback):
    """Records messages by round and node; keeps some nodes from taking part in some rounds."""

    def __init__(self, absent: str = "", rounds: tuple[int, ...] = ()) -> None:
        self.absent, self.rounds = absent, rounds
        self.down: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.up: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.counts: dict[tuple[int, str], Tensor] = {}
        self.own: list[dict[str, Tensor]] = []
        """The root's model after each round."""

    def participates(self, context: Any) -> bool:
        return not (context.round in self.rounds and context.node.name in self.absent)

    def on_receive(self, context: Any, download: Any) -> None:
        self.down[context.round, context.node.name] = clone(flat(download.parts))

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        self.own.append(clone(context.state.parameters))
        for upload in uploads:
            self.up[context.round, upload.node] = clone(flat(upload.parts))
            self.counts[context.round, upload.node] = upload.row_counts.get(ROWS, torch.ones(1))


def flat(parts: Mapping[Any, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


def mean(*models: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}


def assert_models(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6)


PAIRS = """
name: pairs
settings: {num_local_steps: 2, batch_size: 6SETTINGS}
root:
  name: world
  children:
    - {name: a, corpus: a}
    - {name: b, corpus: a}
    - {name: c, corpus: c}
    - {name: d, corpus: c}
"""


def pairs(settings: str = "") -> Topology:
    """Return a star of two pairs. The members of a pair have the same text, in another order."""
    return parse_topology(PAIRS.replace("SETTINGS", settings and f", {settings}"), "pairs.yaml")


def test_every_child_gets_the_average_of_its_cluster(fit: Make, recorder: Any) -> None:
    messages = MessageRecorder()
    method = [ClusteredAveraging(min_similarity=0.2), messages]
    trainer = fit(pairs(), method, logger=recorder, max_epochs=3)
    state = trainer.world.states["world"]
    memory = state.memory[method[0].state_key]
    assert memory["clusters"] == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert [recorder.last(f"{name}/cluster") for name in "abcd"] == [0, 0, 1, 1]
    assert recorder.last("a/similarity/b") > 0.2 > recorder.last("a/similarity/c")
    for round_ in (0, 1):
        up = {name: messages.up[round_, name] for name in "abcd"}
        for one, two in ("ab", "cd"):
            for name in (one, two):
                assert_models(messages.down[round_ + 1, name], mean(up[one], up[two]))
        assert_models(messages.own[round_], mean(*up.values()))
    total = 3 * sum(4 * value.numel() for value in state.parameters.values())
    assert {(trainer.world.states[name].bytes_down, trainer.world.states[name].bytes_up) for name in "abcd"} == {
        (total, total)
    }


@pytest.mark.parametrize(("options", "rounds"), [({"min_similarity": -1.0}, 3), ({"after_round": 2}, 2)])
def test_one_cluster_is_fedavg(options: dict[str, Any], rounds: int, star: Make, fit: Make) -> None:
    """So are the rounds until the one that is clustered."""
    rates = {"leaf_download_rate": 0.5}
    clustered, plain = (
        fit(star("abc"), [TokenRows(), averaging], max_epochs=rounds).world.states
        for averaging in (ClusteredAveraging(**options, **rates), Averaging(PARTS, **rates))
    )
    for name, state in plain.items():
        assert_models(clustered[name].parameters, state.parameters)


def test_rows_are_weighted_by_token_counts_within_a_cluster(fit: Make) -> None:
    """A row that no member read keeps the value that it had in the cluster's own model."""
    messages = MessageRecorder()
    fit(pairs(), [ClusteredAveraging(min_similarity=0.2), TokenRows(), messages], max_epochs=3)
    for one, two in ("ab", "cd"):
        for round_ in (0, 1):
            up = [messages.up[round_, name] for name in (one, two)]
            shares = [{ROWS: row_shares(messages.counts[round_, name], 32)} for name in (one, two)]
            start = messages.down[round_, one]
            assert_models(messages.down[round_ + 1, one], weighted_mean_by_rows(up, [1, 1], shares, start))
    unread = (messages.counts[1, "a"] + messages.counts[1, "b"]) == 0
    assert unread.any()
    assert torch.equal(messages.down[2, "a"][ROWS][unread], messages.down[1, "a"][ROWS][unread])


def test_a_late_child_enters_the_cluster_that_its_update_resembles(fit: Make) -> None:
    messages = MessageRecorder(absent="d", rounds=(0,))
    method = [ClusteredAveraging(min_similarity=0.2), messages]
    states = fit(pairs(), method, max_epochs=3).world.states
    assert_models(messages.down[1, "d"], messages.own[0])
    assert states["world"].memory[method[0].state_key]["clusters"] == {"a": 0, "b": 0, "c": 1, "d": 1}
    assert_models(messages.down[2, "d"], mean(messages.up[1, "c"], messages.up[1, "d"]))


def test_a_cluster_without_participants_keeps_its_model(fit: Make) -> None:
    messages = MessageRecorder(absent="cd", rounds=(1,))
    fit(pairs(), [ClusteredAveraging(min_similarity=0.2), messages], max_epochs=3)
    assert_models(messages.down[2, "c"], mean(messages.up[0, "c"], messages.up[0, "d"]))
    assert_models(messages.own[1], mean(messages.up[1, "a"], messages.up[1, "b"]))


def test_a_private_update_is_relative_to_the_model_of_the_cluster(fit: Make) -> None:
    messages = MessageRecorder()
    topology = pairs("privacy: {clip_norm: 0.25, noise_multiplier: 0.0}")
    fit(topology, [ClusteredAveraging(min_similarity=0.2), UpdatePrivacy(), messages])
    for name in "abcd":
        update = [messages.up[1, name][key] - messages.down[1, name][key] for key in messages.up[1, name]]
        assert float(torch.cat([tensor.flatten() for tensor in update]).norm()) == pytest.approx(0.25, rel=1e-4)
