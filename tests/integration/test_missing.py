"""A node that misses a sub-round is left out of it, spends no budget, and later sends what it could not send."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tested_family import own_model_only
from torch import Tensor

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    Compression,
    NodeMetrics,
    Record,
    ResidualExchange,
    Summary,
    TokenRows,
    Traffic,
    UpdatePrivacy,
)
from worldlm.federation.parameters import PARTS, clone, num_bytes
from worldlm.federation.participation import is_dropped
from worldlm.federation.seeds import derive_seed
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Tap(FederationCallback):
    """Records sent and missed uploads, trained weights and the root's models. It must be the last callback."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, str], Any] = {}
        self.missed: dict[tuple[int, str], Any] = {}
        self.trained: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.roots: list[dict[str, Tensor]] = []

    def on_local_fit_end(self, context: Any) -> None:
        self.trained[context.round, context.node.name] = clone(context.state.parameters)

    def on_missed(self, context: Any, upload: Any) -> None:
        self.missed[context.round, upload.node] = upload

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        self.sent[context.round, upload.node] = upload
        return upload

    def on_merged(self, context: Any) -> None:
        if context.node.name == "world":
            self.roots.append(clone(context.state.parameters))


def _dropped(name: str, rounds: int, dropout: float = 0.5) -> list[int]:
    return [r for r in range(rounds) if is_dropped(dropout, derive_seed(7, name, r, 0, "dropout"))]


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_node_that_drops_out_is_left_out_of_the_average_and_returns(star: Make, fit: Make) -> None:
    rounds = _dropped("b", 6)
    assert any(r + 1 not in rounds for r in rounds if r < 5)
    tap, privacy = Tap(), UpdatePrivacy()
    topology = star("ab", "privacy: {clip_norm: 1.0, noise_multiplier: 0.1}", b="settings: {dropout: 0.5}")
    trainer = fit(topology, [Averaging(parts=PARTS), privacy, tap], max_epochs=6, limit_val_batches=0)
    state, size = trainer.world.states["b"], num_bytes(trainer.world.states["b"].parameters)
    assert sorted(tap.missed) == [(r, "b") for r in rounds]
    assert state.num_missed == len(rounds)
    assert trainer.world.states["a"].num_missed == 0
    assert state.num_visits == 6  # it received and trained in every round
    assert (state.bytes_down, state.bytes_up) == (6 * size, (6 - len(rounds)) * size)
    assert state.num_messages == 12 - len(rounds)
    assert privacy.ledger(state).history == [(0.1, 1.0, 6 - len(rounds))]
    assert privacy.ledger(trainer.world.states["a"]).history == [(0.1, 1.0, 6)]
    waiting = 0
    for r in range(6):  # 2 steps of 2 sequences of 8 tokens
        waiting += 32
        if r not in rounds:
            assert tap.sent[r, "b"].num_tokens == waiting
            waiting = 0
        assert tap.sent[r, "a"].num_tokens == 32
    assert state.unsent_tokens == waiting


def test_the_weights_of_the_uploads_that_arrive_are_renormalised(star: Make, fit: Make) -> None:
    tap = Tap()
    fit(star("ab", b="weight: 7, settings: {dropout: 0.5}"), [Averaging(parts=PARTS), tap], max_epochs=4)
    rounds = _dropped("b", 4)
    assert 0 < len(rounds) < 4
    for r in range(4):
        a, b = tap.trained[r, "a"], tap.trained[r, "b"]
        if r in rounds:
            assert all(torch.allclose(tap.roots[r][name], a[name], atol=1e-7) for name in a)
        else:
            mean = {name: (32 * a[name] + 7 * b[name]) / 39 for name in a}
            assert all(torch.allclose(tap.roots[r][name], mean[name], atol=1e-6) for name in a)


def test_token_counts_of_a_missed_upload_are_sent_with_the_next(star: Make, fit: Make) -> None:
    tap = Tap()
    fit(star("ab", b="settings: {dropout: 0.5}"), [TokenRows(), Averaging(parts=PARTS), tap], max_epochs=6)
    waiting = torch.zeros(32)
    for r in range(6):
        upload = tap.sent.get((r, "b")) or tap.missed[r, "b"]
        (counts,) = upload.row_counts.values()
        assert float(counts.sum()) == pytest.approx(upload.num_tokens * 9 / 8, rel=0.3)  # inputs and targets, each once
        assert bool((counts >= waiting).all())
        waiting = counts if (r, "b") in tap.missed else torch.zeros(32)
    assert tap.missed


TREE = """
name: deep
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: north
      settings: {SETTINGS}
      children:
        - {name: a, corpus: a, settings: {LEAF}}
        - {name: b, corpus: b, settings: {LEAF}}
        - {name: d, corpus: d, settings: {LEAF}}
    - {name: south, corpus: c}
"""


def _deep(settings: str, leaf: str = "") -> Topology:
    text = TREE.replace("{SETTINGS}", "{" + settings + "}").replace("{LEAF}", "{" + leaf + "}")
    return parse_topology(text, "deep.yaml")


def test_an_upload_after_a_missed_one_has_new_residuals(fit: Make) -> None:
    tap = Tap()
    topology = _deep("dropout: 0.6, participation: 0.6", leaf="dropout: 0")
    callbacks = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1), tap]
    fit(topology, callbacks, max_epochs=12, limit_val_batches=0)
    found = [(r, residual.round) for (r, name), upload in tap.sent.items() for residual in upload.residuals]
    assert all(number == r for r, number in found)
    assert 0 < len(found) == len({r for r, _ in found})  # one in an upload
    assert tap.missed


def test_a_federation_without_uploads_sends_nothing(fit: Make, caplog: pytest.LogCaptureFixture) -> None:
    tap, topology = Tap(), _deep("privacy: {clip_norm: 1.0, noise_multiplier: 0.3}, dropout: 0.7")
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(topology, [Averaging(parts=PARTS), UpdatePrivacy(), tap], max_epochs=8, limit_val_batches=0)
    alone = [r for r in range(8) if not any((r, name) in tap.sent for name in "abd")]
    assert alone
    assert f"round {alone[0] + 1}: no node took part in north" in caplog.text
    num_tokens = 0
    for r in range(8):
        num_tokens += sum(tap.sent[r, name].num_tokens for name in "abd" if (r, name) in tap.sent)
        if (r, "north") in tap.sent:
            assert tap.sent[r, "north"].num_tokens == num_tokens > 0
            num_tokens = 0
    assert trainer.world.states["north"].num_missed == 8 - sum(name == "north" for _, name in tap.sent)


@own_model_only("the deadline depends on its size")
def test_a_node_that_would_be_late_misses_the_sub_round(star: Make, fit: Make, recorder: Any) -> None:
    size = 4 * 32 * 16 + 2 * 4 * (16 + 3 * 256 + 256 + 16 + 2 * 1024) + 4 * 16
    link = "link: {bandwidth_mbps: 8, latency_ms: 10"  # one byte per microsecond
    both = 2 * (0.01 + size / 1e6)
    slow = {"b": "settings: {" + link.replace("8", "7.9") + "}}"}
    unsteady = {"c": "settings: {" + link + ", jitter: 0.5}}"}
    topology = star("abc", f"deadline_seconds: {both + 1e-6}, {link}}}", **slow, **unsteady)
    tap = Tap()
    callbacks = [Averaging(parts=PARTS), Traffic(), tap]
    states = fit(topology, callbacks, max_epochs=10, limit_val_batches=0, logger=recorder).world.states
    assert num_bytes(states["a"].parameters) == size
    assert (states["a"].num_missed, states["b"].num_missed) == (0, 10)
    assert states["b"].bytes_up == 0
    assert 0 < states["c"].num_missed < 10
    assert recorder.last("a/link_seconds") == pytest.approx(both)
    assert recorder.last("b/missed") == 10
    assert not any(tag == "a/missed" for tag, _, _ in recorder.scalars)
    seconds = {step - 1: value for tag, value, step in recorder.scalars if tag == "c/link_seconds"}
    assert all((seconds[r] <= both + 1e-6) for r in range(10) if (r, "c") in tap.sent)
    assert all((2 * seconds[r] > both) for r in range(10) if (r, "c") in tap.missed)  # the download alone


@own_model_only("the deadline depends on its size")
def test_a_deadline_counts_packed_bytes(star: Make, fit: Make) -> None:
    """A node that misses the deadline has not rounded its upload, and has spent no budget."""
    link = "link: {bandwidth_mbps: 8, latency_ms: 10"  # one byte per microsecond
    sizes = [512, *2 * [16, 768, 256, 16, 1024, 1024], 16]  # the tensors of two blocks
    down, up = 2 * sum(sizes), sum(size + 4 * -(-size // 256) for size in sizes)
    both = 2 * 0.01 + (down + up) / 1e6
    settings = f"deadline_seconds: {both + 1e-6}, {link}}}, privacy: {{clip_norm: 1.0, noise_multiplier: 0.1}}"
    topology = star("ab", settings, b="settings: {" + link.replace("8", "7.9") + "}}")
    tap, privacy, packing = Tap(), UpdatePrivacy(), Compression("bf16", "int8")
    trainer = fit(topology, [Averaging(parts=PARTS), privacy, packing, tap], max_epochs=3, limit_val_batches=0)
    a, b = trainer.world.states["a"], trainer.world.states["b"]
    assert (a.num_missed, a.bytes_down, a.bytes_up) == (0, 3 * down, 3 * up)
    assert a.link_seconds == pytest.approx(3 * both)
    assert a.download_seconds == pytest.approx(0.01 + down / 1e6)
    assert (b.num_missed, b.bytes_down, b.bytes_up) == (3, 3 * down, 0)
    assert "error" in packing.memory(a)
    assert "error" not in packing.memory(b)
    assert (privacy.ledger(a).history, privacy.ledger(b).history) == ([(0.1, 1.0, 3)], [])
    assert b.unsent_tokens == 3 * 32


def test_a_poisson_draw_without_participants_does_not_change_the_model(
    star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    tap, privacy = Tap(), UpdatePrivacy()
    topology = star("ab", "participation: 0.4, privacy: {clip_norm: 1.0, noise_multiplier: 0.1}")
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(topology, [Averaging(parts=PARTS), privacy, tap], max_epochs=20, limit_val_batches=0)
    drawn = [[name for name in "ab" if (r, name) in tap.sent] for r in range(20)]
    assert {len(names) for names in drawn} == {0, 1, 2}
    assert caplog.text.count("no node took part in world") == drawn.count([])
    for name in "ab":
        uploads = sum(name in names for names in drawn)
        assert privacy.ledger(trainer.world.states[name]).history == [(0.1, 1.0, uploads)]  # no amplification


def test_missed_sub_rounds_are_reported_for_the_nodes_that_have_any(
    star: Make, fit: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record()
    fit(star("ab", b="settings: {dropout: 0.9}"), [Averaging(), NodeMetrics(), record, Summary()], max_epochs=3)
    assert "missed: sub-rounds in which the node took part" in capsys.readouterr().out
    nodes = record.rounds[-1]["nodes"]
    assert nodes["b"]["missed"] == len(_dropped("b", 3, 0.9)) > 0
    assert "missed" not in nodes["a"]
