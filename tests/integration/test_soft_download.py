"""A soft download moves a node part of the way towards its parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.callbacks import AttentionAggregation, Averaging, UpdatePrivacy
from worldlm.federation.parameters import PARTS, clone
from worldlm.federation.schedule import in_round
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

PRIVATE = ("south", "c", "d")
"""A federation with noise, and its leaves: the noise changes their rates."""


class Recorder(FederationCallback):
    """Records a node's weights or its download in `on_receive`, and a federation's weights in `on_aggregate`."""

    def __init__(self, sent: bool = False) -> None:
        self.sent = sent
        self.seen: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.own: dict[tuple[int, str], float] = {}
        self.starts: dict[tuple[int, str], dict[str, Tensor]] = {}

    def on_receive(self, context: Any, download: Any) -> None:
        tensors = context.state.parameters
        if self.sent:
            tensors = {name: tensor for part in download.parts.values() for name, tensor in part.items()}
        self.seen[context.round, context.node.name] = clone(tensors)
        self.own[context.round, context.node.name] = download.own_weight

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        self.starts[context.round, context.node.name] = clone(context.state.parameters)


@pytest.mark.parametrize(("rate", "leaf_rate"), [(0.25, 1.0), (1.0, 0.5), (0.25, 0.5)], ids=str)
def test_weights_after_a_download(rate: float, leaf_rate: float, tree: Topology, fit: Make) -> None:
    before, sent, after = Recorder(), Recorder(sent=True), Recorder()
    averaging = Averaging(parts=PARTS, download_rate=rate, leaf_download_rate=leaf_rate)
    fit(tree, [before, sent, averaging, after, UpdatePrivacy()])
    moved = 0
    for (number, name), merged in after.seen.items():
        if name in PRIVATE:
            continue
        share = 1.0 if number == 0 else leaf_rate if name in "abcd" else rate  # the first download is copied
        for key, own in before.seen[number, name].items():
            expected = own + share * (sent.seen[number, name][key] - own)
            torch.testing.assert_close(merged[key], expected, rtol=1e-6, atol=1e-7)
            if share == 1.0:
                assert torch.equal(merged[key], sent.seen[number, name][key])
            moved += not torch.equal(merged[key], own)
    assert moved > 0


def test_a_federation_sends_and_starts_from_its_merged_weights(tree: Topology, fit: Make, differences: Make) -> None:
    sent, recorded = Recorder(sent=True), Recorder()
    fit(tree, [sent, Averaging(parts=PARTS, download_rate=0.25), recorded, UpdatePrivacy()])
    for child in "ab":
        assert differences(sent.seen[1, child], recorded.seen[1, "north"]) == []
    assert differences(sent.starts[1, "north"], recorded.seen[1, "north"]) == []
    assert differences(sent.seen[1, "north"], recorded.seen[1, "north"]) != []


def test_a_rate_of_one_is_the_default(
    tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    def hard() -> list[Any]:
        default, *others = whole_method()
        _, arguments = default.default_optimizer
        return [Averaging(arguments=arguments, download_rate=1.0, leaf_download_rate=1.0), *others]

    default, explicit = (snapshot(fit(tree, callbacks)) for callbacks in (whole_method(), hard()))
    assert differences(default, explicit) == []


def test_a_private_update_is_relative_to_the_download(tree: Topology, fit: Make, recorder: Any) -> None:
    """The difference that a soft download leaves is part of the update, and is clipped with it."""
    uploads: dict[str, Any] = {}

    class Last(FederationCallback):
        def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
            if context.round == 1 and context.node.name == "c":
                update = [
                    tensor - download.parts[part][name]
                    for part, tensors in upload.parts.items()
                    for name, tensor in tensors.items()
                ]
                uploads["norm"] = float(torch.cat([tensor.flatten() for tensor in update]).norm())
            return upload

    callbacks = [Averaging(parts=PARTS, leaf_download_rate=0.5), Last(), UpdatePrivacy()]
    fit(tree, callbacks, logger=recorder)
    assert recorder.last("c/update_norm") == pytest.approx(uploads["norm"], rel=1e-5)


def test_keys_and_values_move_part_of_the_way_too(tree: Topology, fit: Make) -> None:
    before, sent, after = Recorder(), Recorder(sent=True), Recorder()
    attention = AttentionAggregation(download_rate=(1.0, 0.5), leaf_download_rate=(0.5, 0.25))
    trainer = fit(tree, [before, sent, attention, after, UpdatePrivacy()])
    rates = {"federation": (1.0, 0.5), "leaf": (0.5, 0.25)}
    moved = 0
    for (number, name), own in before.seen.items():
        if name in PRIVATE:
            continue
        # the first download is copied; later a node keeps the weight of its own layers
        rate = rates["leaf" if name in "abcd" else "federation"][number] * (1 - sent.own[number, name]) if number else 1
        for key in (key for key, part in trainer.world.partition.items() if part != "backbone"):
            expected = own[key] + rate * (sent.seen[number, name][key] - own[key])
            torch.testing.assert_close(after.seen[number, name][key], expected, rtol=1e-5, atol=1e-6)
            moved += not torch.equal(after.seen[number, name][key], own[key])
    assert moved > 0
    assert 0 < sent.own[1, "a"] < 1


def test_a_changing_rate_needs_a_last_round(tree: Topology, fit: Make) -> None:
    with pytest.raises(ValueError, match=r"a rate of \[1.0, 0.1\] changes until the last round: .*max_epochs"):
        fit(tree, [Averaging(download_rate=(1.0, 0.1)), UpdatePrivacy()], max_epochs=-1)


def test_rates_of_rounds() -> None:
    assert [in_round((1.0, 0.1), number, 4) for number in range(4)] == pytest.approx([1.0, 0.7, 0.4, 0.1])
    assert in_round((1.0, 0.1), 0, 1) == 1.0
    assert in_round((1.0, 0.1), 9, 4) == pytest.approx(0.1)  # a run that is longer than planned
    assert in_round(0.3, 5, None) == 0.3
