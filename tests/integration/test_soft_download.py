"""A soft download moves a node part of the way towards its parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.callbacks import Averaging, UpdatePrivacy
from worldlm.federation.parameters import PARTS, clone
from worldlm.loop import FederationCallback
from worldlm.topology import Topology

Make = Callable[..., Any]


class Around(FederationCallback):
    """Remembers a node's weights, or what it is sent, at a receive; and a federation's at an aggregate."""

    def __init__(self, sent: bool = False) -> None:
        self.sent = sent
        self.seen: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.starts: dict[tuple[int, str], dict[str, Tensor]] = {}

    def on_receive(self, trainer: Any, context: Any, download: Any) -> None:
        tensors = context.state.parameters
        if self.sent:
            tensors = {name: one for part in download.parts.values() for name, one in part.items()}
        self.seen[context.round, context.node.name] = clone(tensors)

    def on_aggregate(self, trainer: Any, context: Any, uploads: list[Any]) -> None:
        self.starts[context.round, context.node.name] = clone(context.state.parameters)


@pytest.mark.parametrize(("rate", "leaf_rate"), [(0.25, 1.0), (1.0, 0.5), (0.25, 0.5)], ids=str)
def test_what_a_node_holds_after_a_download(rate: float, leaf_rate: float, tree: Topology, fit: Make) -> None:
    before, sent, after = Around(), Around(sent=True), Around()
    averaging = Averaging(parts=PARTS, download_rate=rate, leaf_download_rate=leaf_rate)
    fit(tree, [before, sent, averaging, after, UpdatePrivacy()])
    moved = 0
    for (number, name), found in after.seen.items():
        share = leaf_rate if name in "abcd" else rate
        for key, own in before.seen[number, name].items():
            expected = own + share * (sent.seen[number, name][key] - own)
            torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=1e-7)
            if share == 1.0:
                assert torch.equal(found[key], sent.seen[number, name][key])
            moved += not torch.equal(found[key], own)
    assert moved > 0


def test_a_federation_hands_on_and_starts_from_what_it_mixed(tree: Topology, fit: Make, differences: Make) -> None:
    sent, around = Around(sent=True), Around()
    fit(tree, [sent, Averaging(parts=PARTS, download_rate=0.25), around, UpdatePrivacy()])
    for child in "ab":
        assert differences(sent.seen[1, child], around.seen[1, "north"]) == []
    assert differences(sent.starts[1, "north"], around.seen[1, "north"]) == []
    assert differences(sent.seen[1, "north"], around.seen[1, "north"]) != []


def test_a_rate_of_one_is_the_default(
    tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    def hard() -> list[Any]:
        default, *others = whole_method()
        _, arguments = default.default
        return [Averaging(arguments=arguments, download_rate=1.0, leaf_download_rate=1.0), *others]

    default, explicit = (snapshot(fit(tree, callbacks)) for callbacks in (whole_method(), hard()))
    assert differences(default, explicit) == []


def test_a_private_update_is_counted_from_what_the_parent_sent(tree: Topology, fit: Make, recorder: Any) -> None:
    """What a node kept of its own is part of its update, and is clipped with it."""
    uploads: dict[str, Any] = {}

    class Last(FederationCallback):
        def on_sanitise(self, trainer: Any, context: Any, upload: Any, download: Any) -> Any:
            if context.round == 1 and context.node.name == "c":
                update = [
                    tensor - download.parts[part][name]
                    for part, tensors in upload.parts.items()
                    for name, tensor in tensors.items()
                ]
                uploads["norm"] = float(torch.cat([one.flatten() for one in update]).norm())
            return upload

    callbacks = [Averaging(parts=PARTS, leaf_download_rate=0.5), Last(), UpdatePrivacy()]
    fit(tree, callbacks, logger=recorder)
    assert recorder.last("c/update_norm") == pytest.approx(uploads["norm"], rel=1e-5)
