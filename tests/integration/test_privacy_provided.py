"""Privacy that a topology demands, and that nobody keeps, or two keep, is an error before the first step."""

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
from worldlm.topology import Node, Privacy, Settings, Topology
from worldlm.trainer.method_checks import check_listed_once

Make = Callable[..., Any]

KEEPERS: dict[str, type[Callback]] = {"privacy": UpdatePrivacy, "example_privacy": ExamplePrivacy}
HELD: dict[str, tuple[str, ...]] = {"world": ("world", "south", "c", "d"), "south": ("south", "c"), "c": ("c",)}
"""Where something is demanded, and where it then holds."""


class Steps(Callback):
    """Counts local steps."""

    def __init__(self) -> None:
        self.number = 0

    def on_train_batch_start(self, *args: Any) -> None:
        self.number += 1


def _demanding(kind: str, where: str, **demand: float) -> Topology:
    """A tree of three levels in which a node, and what is below it, asks for privacy of a kind."""

    def node(name: str, *children: Node) -> Node:
        asked = {kind: Privacy(**{"clip_norm": 0.5, **demand})} if name in HELD[where] else {}
        own = Settings(num_local_steps=2, batch_size=2, **asked)  # type: ignore[arg-type]
        return Node(name=name, corpus=None if children else name, settings=own, children=children)

    return Topology(name="three", root=node("world", node("south", node("c")), node("d")))


@pytest.mark.parametrize("where", HELD)
@pytest.mark.parametrize("kind", KEEPERS)
@pytest.mark.parametrize("demand", [{}, {"noise_multiplier": 1.0}, {"noise_multiplier": 1.0, "max_epsilon": 8.0}])
def test_nobody_keeps_it(kind: str, where: str, demand: dict[str, float], trainer_for: Make) -> None:
    (other,) = KEEPERS.keys() - {kind}
    told = (
        f"asks for {kind} at {', '.join(HELD[where])}, and no callback provides it: add .*{KEEPERS[kind].__name__} to"
    )
    for callbacks in ([Averaging()], [Averaging(), KEEPERS[other]()]):
        with pytest.raises(ValueError, match=told):
            trainer_for(_demanding(kind, where, **demand), callbacks)
    trainer_for(_demanding(kind, where, **demand), [Averaging(), KEEPERS[kind]()])


def test_a_single_node_asks_too(trainer_for: Make) -> None:
    own = Settings(num_local_steps=2, example_privacy=Privacy(clip_norm=0.5, noise_multiplier=1.0))
    alone = Topology(name="single", root=Node(name="alone", corpus="a", settings=own))
    with pytest.raises(ValueError, match="asks for example_privacy at alone"):
        trainer_for(alone, [])


@pytest.mark.parametrize("kind", KEEPERS)
def test_it_is_taken_away_before_the_fit(kind: str, trainer_for: Make, make_module: Make, make_data: Make) -> None:
    keeper, steps = KEEPERS[kind](), Steps()
    trainer = trainer_for(_demanding(kind, "c"), [Averaging(), keeper, steps], limit_val_batches=0, max_epochs=1)
    trainer.callbacks.remove(keeper)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"asks for {kind} at c, and no callback provides it"):
            trainer.fit(make_module(warmup_steps=0), datamodule=make_data())
    assert steps.number == 0
    trainer.callbacks.append(keeper)
    trainer.fit(make_module(warmup_steps=0), datamodule=make_data())
    assert steps.number == 4


def test_a_resumed_run_needs_it_too(fit: Make, save_everywhere: Make) -> None:
    saver, topology = save_everywhere("on_train_epoch_end"), _demanding("privacy", "south", noise_multiplier=1.0)
    fit(topology, [Averaging(), UpdatePrivacy(), saver], limit_val_batches=0)
    with pytest.raises(ValueError, match="asks for privacy at south, c"):
        fit(topology, [Averaging(), ExamplePrivacy()], resume=saver.saved[0], limit_val_batches=0)


# ---------------------------------------------------------------------- twice, or in another order


class Mine(UpdatePrivacy):
    """A user's own."""


@pytest.mark.parametrize(
    ("callbacks", "told"),
    [
        ([UpdatePrivacy, UpdatePrivacy], "UpdatePrivacy is among trainer.callbacks more than once"),
        ([ExamplePrivacy, ExamplePrivacy], "ExamplePrivacy is among trainer.callbacks more than once"),
        ([UpdatePrivacy, Mine], "privacy is kept by UpdatePrivacy and by Mine too: let one callback keep it"),
        ([Record, Record], "Record is among trainer.callbacks more than once"),
    ],
)
def test_it_is_listed_twice(callbacks: list[type[Callback]], told: str, trainer_for: Make) -> None:
    with pytest.raises(ValueError, match=told):
        trainer_for(_demanding("privacy", "c"), [Averaging(), *(one() for one in callbacks)])


def test_both_kinds_stand_beside_each_other(trainer_for: Make) -> None:
    trainer_for(_demanding("privacy", "c"), [Averaging(), UpdatePrivacy(), ExamplePrivacy()])
    check_listed_once(UpdatePrivacy())  # as Lightning, one that is no list


def test_no_order_of_the_pieces_is_a_wrong_one(tree: Topology, fit: Make, snapshot: Make, differences: Make) -> None:
    """Hooks say what comes when: what is sent is clipped, then noised, then rounded, wherever a piece is listed."""

    def pieces() -> list[Callback]:
        residuals = ResidualExchange(min_similarity=-2.0)
        return [Averaging(), AttentionAggregation(temperature=0.5), residuals, UpdatePrivacy(), Compression()]

    def run(order: tuple[int, ...]) -> Any:
        ours = pieces()
        return snapshot(fit(tree, [ours[i] for i in order], limit_val_batches=0))["world"]["states"]

    first, *others = list(permutations(range(5)))[::29]
    expected = run(first)
    assert all(differences(run(order), expected) == [] for order in others)


# ---------------------------------------------------------------------- what the account does not hold for


def test_batches_that_are_not_poisson_sampled(fit: Make, make_data: Any) -> None:
    class Shuffled(make_data):  # type: ignore[misc]
        def train_loader(self, node: Node) -> DataLoader[Tensor]:
            loader: DataLoader[Tensor] = super().train_loader(node)
            if node.name != "d":
                return loader
            sampler = BlockBatchSampler(len(loader.dataset), 2, 7, node.name)  # type: ignore[arg-type]
            return DataLoader(loader.dataset, batch_sampler=sampler, collate_fn=lambda batch: batch)

    steps = Steps()
    for demand in ({}, {"noise_multiplier": 1.0, "max_epsilon": 8.0}):
        with pytest.raises(ValueError, match="example_privacy is asked for at d, .* use worldlm.data.PoissonBatchSamp"):
            fit(
                _demanding("example_privacy", "world", **demand),
                [Averaging(), ExamplePrivacy(), steps],
                data=Shuffled(),
            )
    assert steps.number == 0


# ---------------------------------------------------------------------- other shapes


def test_a_star_tells_of_a_federation_that_was_private_as_one(
    trainer_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer_for(_demanding("privacy", "south"), [Averaging(), UpdatePrivacy()])
        trainer_for(_demanding("privacy", "c"), [Averaging(), UpdatePrivacy()], shape="star")
        assert caplog.messages == []
        trainer_for(_demanding("privacy", "south"), [Averaging(), UpdatePrivacy()], shape="star")
    told = "shape star has no south, whose privacy held for all below it as one: what is left is that of every node"
    assert caplog.messages == [told]
