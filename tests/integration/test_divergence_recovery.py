"""A node whose fit diverged takes part again, from its next download."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    Compression,
    DivergenceRecovery,
    ResidualExchange,
    UpdatePrivacy,
)
from worldlm.federation.parameters import PARTS, clone
from worldlm.storage.paged_store import Paging
from worldlm.storage.pages import fetch
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Diverge(Callback):
    """Sets all gradients of a node to NaN in one round, from a given batch on."""

    def __init__(self, node: str, round_: int = 1, batch: int = 0) -> None:
        self.where, self.batch = (node, round_), batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._spoils = (trainer.active_node, trainer.world.round) == self.where and batch_idx >= self.batch

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters() if self._spoils else ():
            parameter.grad.fill_(torch.nan)


def worldlm() -> list[Callback]:
    return [
        Averaging(leaf_download_rate=0.5),
        AttentionAggregation(leaf_download_rate=0.5),
        ResidualExchange(num_residuals=1),
    ]


METHODS: dict[str, Callable[[], list[Callback]]] = {
    "fedavg": lambda: [Averaging(PARTS)],
    "fedper": lambda: [Averaging()],
    "worldlm": worldlm,
    "compressed": lambda: [*worldlm(), Compression()],
}


def all_finite(trainer: Any, name: str) -> bool:
    moments = trainer.fit_loop.on_save_checkpoint()["optimizers"][name]["optimizer"]["state"]
    tensors = [*trainer.world.states[name].parameters.values(), *(moment["exp_avg"] for moment in moments.values())]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("method", METHODS)
def test_a_diverged_node_takes_part_again(
    method: str, batch: int, star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = fit(star("abc"), [*METHODS[method](), DivergenceRecovery(), Diverge("b", batch=batch)], max_epochs=4)
    assert trainer.world.states["world"].refused == {"b": 1}
    assert all_finite(trainer, "b")
    messages = [record.getMessage() for record in caplog.records if "restart" in record.getMessage()]
    assert messages == ["round 2: b diverged; it will restart from its next download"]


@pytest.mark.parametrize("method", ["fedavg", "worldlm"])
def test_without_recovery_a_diverged_node_stays_rejected(method: str, star: Make, fit: Make) -> None:
    trainer = fit(star("abc"), [*METHODS[method](), Diverge("b")], max_epochs=4)
    assert trainer.world.states["world"].refused == {"b": 3}


def test_a_diverged_node_restarts_from_its_download_with_new_moments(star: Make, fit: Make) -> None:
    """In the next round the node starts with its download, new moments, and the initial keys and values."""
    starts: dict[str, Any] = {}

    class Look(FederationCallback):
        def on_local_fit_start(self, context: Any, fit: Any) -> None:
            if context.node.name == "b":
                sent = context.state.download.parts["backbone"]
                expected = {**context.world.reference, **sent}
                same = all(torch.equal(tensor, expected[name]) for name, tensor in context.state.parameters.items())
                starts[context.round] = (same, len(fit.optimizers[0].state))

    method = [Averaging(), DivergenceRecovery(), Diverge("b"), Look()]
    number = len(dict(fit(star("abc"), method, max_epochs=4).lightning_module.named_parameters()))
    assert starts == {0: (True, 0), 1: (False, number), 2: (True, 0), 3: (False, number)}


def test_a_private_node_sends_noise_and_restarts(star: Make, fit: Make) -> None:
    private = star("abc", b="settings: {privacy: {clip_norm: 0.5, noise_multiplier: 0.1}}")
    trainer = fit(private, [Averaging(PARTS), UpdatePrivacy(), DivergenceRecovery(), Diverge("b")], max_epochs=4)
    assert trainer.world.states["world"].refused == {}
    assert all_finite(trainer, "b")


HOLDS_DATA = """
name: t
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  corpus: w
  children:
    - {name: q, corpus: q, children: [{name: a, corpus: a}]}
    - {name: b, corpus: b}
"""


@pytest.mark.parametrize("node", ["world", "q"])
def test_a_federation_continues_from_its_merged_weights(node: str, fit: Make) -> None:
    merged: dict[int, Any] = {}

    class Look(FederationCallback):
        def on_merged(self, context: Any) -> None:
            if context.node.name == node:
                merged[context.round] = clone(context.part("values"))

        def on_route(self, context: Any, download: Any) -> Any:
            if context.node.name == node:
                own = context.part("values")
                assert all(
                    torch.equal(own[name], tensor) for name, tensor in merged.get(context.round - 1, own).items()
                )
            return download

    soft = Averaging(PARTS, download_rate=0.5)
    trainer = fit(
        parse_topology(HOLDS_DATA, "t.yaml"), [soft, DivergenceRecovery(), Look(), Diverge(node)], max_epochs=4
    )
    assert trainer.world.states[node].refused == {node: 1}
    assert all_finite(trainer, node)
    assert len(merged) == 4


@pytest.mark.slow
def test_resume_from_every_step(star: Make, resume_from_all: Make) -> None:
    saved = resume_from_all(
        star("abc"),
        lambda: [*worldlm(), DivergenceRecovery(), Diverge("b", batch=1)],
        ["on_train_batch_end", "on_train_epoch_end"],
        max_epochs=4,
    )
    assert saved == 4 * (3 * 2 + 1)


def test_paging_does_not_change_the_result(star: Make, fit: Make, snapshot: Make, differences: Make) -> None:
    """Paging, also of the common initial weights, does not change the result."""

    def run(**options: Any) -> Any:
        method = [*METHODS["fedper"](), DivergenceRecovery(), Diverge("b")]
        return fetch(snapshot(fit(star("abc"), method, max_epochs=4, **options)))

    assert differences(run(paging=Paging(cache_gb=0.0)), run()) == []


def test_a_node_without_downloads_is_not_reset(single: Topology, fit: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A single node is plain training, also if it diverges; so is a node without downloads of parameters."""
    for topology, method in [(single, [Averaging(PARTS)]), (parse_topology(HOLDS_DATA, "t.yaml"), [])]:
        fit(topology, [*method, DivergenceRecovery(), Diverge(topology.data_nodes[0].name, 0)])
    assert [record for record in caplog.records if "restart" in record.getMessage()] == []
