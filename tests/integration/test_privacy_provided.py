"""Privacy in the topology that no callback, or more than one, enforces is an error before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    Compression,
    ExamplePrivacy,
    Record,
    ResidualExchange,
    UpdatePrivacy,
)
from worldlm.data import BlockBatchSampler
from worldlm.topology import Node, Privacy, PrivacyOfExamples, Settings, Topology
from worldlm.trainer.method_checks import check_listed_once

Make = Callable[..., Any]

CALLBACKS: dict[str, type[Callback]] = {"privacy": UpdatePrivacy, "example_privacy": ExamplePrivacy}
APPLIES_TO: dict[str, tuple[str, ...]] = {"world": ("world", "south", "c", "d"), "south": ("south", "c"), "c": ("c",)}
"""The node that sets privacy, and the nodes to which it then applies."""


class Steps(Callback):
    """Counts local steps."""

    def __init__(self) -> None:
        self.number = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.number += 1


def _demanding(kind: str, where: str, **demand: float) -> Topology:
    """A tree of three levels in which a node and all nodes below it require one kind of privacy."""

    def node(name: str, *children: Node) -> Node:
        setting = PrivacyOfExamples if kind == "example_privacy" else Privacy
        privacy = {kind: setting(**{"clip_norm": 0.5, **demand})} if name in APPLIES_TO[where] else {}
        own = Settings(num_local_steps=2, batch_size=2, **privacy)  # type: ignore[arg-type]
        return Node(name=name, corpus=None if children else name, settings=own, children=children)

    return Topology(name="three", root=node("world", node("south", node("c")), node("d")))


@pytest.mark.parametrize("where", APPLIES_TO)
@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("demand", [{}, {"noise_multiplier": 1.0}, {"noise_multiplier": 1.0, "max_epsilon": 8.0}])
def test_privacy_without_a_callback_is_an_error(
    kind: str, where: str, demand: dict[str, float], trainer_for: Make
) -> None:
    (other,) = CALLBACKS.keys() - {kind}
    names, needed = ", ".join(APPLIES_TO[where]), CALLBACKS[kind].__name__
    message = f"asks for {kind} at {names}, and no callback provides it: add .*{needed} to"
    for callbacks in ([Averaging()], [Averaging(), CALLBACKS[other]()]):
        with pytest.raises(ValueError, match=message):
            trainer_for(_demanding(kind, where, **demand), callbacks)
    trainer_for(_demanding(kind, where, **demand), [Averaging(), CALLBACKS[kind]()])


def test_a_single_node_can_require_privacy(trainer_for: Make) -> None:
    own = Settings(num_local_steps=2, example_privacy=PrivacyOfExamples(clip_norm=0.5, noise_multiplier=1.0))
    alone = Topology(name="single", root=Node(name="alone", corpus="a", settings=own))
    with pytest.raises(ValueError, match="asks for example_privacy at alone"):
        trainer_for(alone, [])


@pytest.mark.parametrize("kind", CALLBACKS)
def test_the_callback_is_removed_before_the_fit(
    kind: str, trainer_for: Make, make_module: Make, make_data: Make
) -> None:
    callback, steps = CALLBACKS[kind](), Steps()
    trainer = trainer_for(_demanding(kind, "c"), [Averaging(), callback, steps], limit_val_batches=0, max_epochs=1)
    trainer.callbacks.remove(callback)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"asks for {kind} at c, and no callback provides it"):
            trainer.fit(make_module(warmup_steps=0), datamodule=make_data())
    assert steps.number == 0
    trainer.callbacks.append(callback)
    trainer.fit(make_module(warmup_steps=0), datamodule=make_data())
    assert steps.number == 4


def test_a_resumed_run_needs_the_callback_too(fit: Make, save_everywhere: Make) -> None:
    saver, topology = save_everywhere("on_train_epoch_end"), _demanding("privacy", "south", noise_multiplier=1.0)
    fit(topology, [Averaging(), UpdatePrivacy(), saver], limit_val_batches=0)
    with pytest.raises(ValueError, match="asks for privacy at south, c"):
        fit(topology, [Averaging(), ExamplePrivacy()], resume=saver.saved[0], limit_val_batches=0)


# ---------------------------------------------------------------------- twice, or in another order


class Mine(UpdatePrivacy):
    """A callback of a user."""


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([UpdatePrivacy, UpdatePrivacy], "UpdatePrivacy is among trainer.callbacks more than once"),
        ([ExamplePrivacy, ExamplePrivacy], "ExamplePrivacy is among trainer.callbacks more than once"),
        ([UpdatePrivacy, Mine], "UpdatePrivacy and Mine both provide privacy: list only one of them"),
        ([Record, Record], "Record is among trainer.callbacks more than once"),
    ],
)
def test_a_callback_listed_twice_is_an_error(callbacks: list[type[Callback]], message: str, trainer_for: Make) -> None:
    with pytest.raises(ValueError, match=message):
        trainer_for(_demanding("privacy", "c"), [Averaging(), *(cls() for cls in callbacks)])


def test_both_kinds_can_be_combined(trainer_for: Make) -> None:
    trainer_for(_demanding("privacy", "c"), [Averaging(), UpdatePrivacy(), ExamplePrivacy()])
    check_listed_once(UpdatePrivacy())  # Lightning also accepts a single callback


def test_the_order_of_the_callbacks_does_not_matter(
    tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    """The hooks fix the order: messages are clipped, then noised, then rounded, wherever a callback is listed."""

    def pieces() -> list[Callback]:
        residuals = ResidualExchange(num_residuals=1)
        return [Averaging(), AttentionAggregation(temperature=0.5), residuals, UpdatePrivacy(), Compression()]

    def run(order: tuple[int, ...]) -> Any:
        ours = pieces()
        return snapshot(fit(tree, [ours[i] for i in order], limit_val_batches=0))["world"]["states"]

    first, *others = list(permutations(range(5)))[::29]
    expected = run(first)
    assert all(differences(run(order), expected) == [] for order in others)


# ---------------------------------------------------------------------- settings that break the accounting


def test_batches_that_are_not_poisson_sampled_are_rejected(fit: Make, make_data: Any) -> None:
    class Shuffled(make_data):  # type: ignore[misc]
        def train_loader(self, node: Node) -> DataLoader[Tensor]:
            loader: DataLoader[Tensor] = super().train_loader(node)
            if node.name != "d":
                return loader
            sampler = BlockBatchSampler(len(loader.dataset), 2, 7, node.name)  # type: ignore[arg-type]
            return DataLoader(loader.dataset, batch_sampler=sampler, collate_fn=lambda batch: batch)

    steps = Steps()
    for demand in ({}, {"noise_multiplier": 1.0, "max_epsilon": 8.0}):
        with pytest.raises(ValueError, match="example_privacy at d needs .* use worldlm.data.PoissonBatchSampler"):
            fit(
                _demanding("example_privacy", "world", **demand),
                [Averaging(), ExamplePrivacy(), steps],
                data=Shuffled(),
            )
    assert steps.number == 0


# ---------------------------------------------------------------------- other shapes


def test_flattening_a_private_federation_logs_a_warning(trainer_for: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer_for(_demanding("privacy", "south"), [Averaging(), UpdatePrivacy()])
        trainer_for(_demanding("privacy", "c"), [Averaging(), UpdatePrivacy()], shape="star")
        assert caplog.messages == []
        trainer_for(_demanding("privacy", "south"), [Averaging(), UpdatePrivacy()], shape="star")
    message = (
        "shape star removes south, whose privacy protected all nodes below it as a unit; "
        "now only the privacy of each node holds"
    )
    assert caplog.messages == [message]
