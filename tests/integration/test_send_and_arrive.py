"""The last hook at a sender and the first at a receiver: who is asked, in which order, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from worldlm.callbacks import Averaging
from worldlm.federation.parameters import PARTS
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Wraps(FederationCallback):
    """Puts one byte more around every message, and takes it off."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        self.told.append(f"{self.name}: {context.node.name} sends {receiver.name} a {type(message).__name__}")
        backbone = {**message.parts["backbone"], self.name: torch.zeros(1, dtype=torch.int8)}
        return replace(message, parts={**message.parts, "backbone": backbone})

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        self.told.append(f"{self.name}: {context.node.name} hears {sender.name}'s {type(message).__name__}")
        *own, last = message.parts["backbone"]
        assert last == self.name  # whoever wrapped last is asked first
        backbone = {name: message.parts["backbone"][name] for name in own}
        return replace(message, parts={**message.parts, "backbone": backbone})

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        assert set(download.parts["backbone"]) == set(upload.parts["backbone"])
        self.told.append(f"{self.name}: {context.node.name} sanitises")
        return upload


def test_messages_are_packed_last_and_unpacked_first(star: Make, fit: Make, differences: Make) -> None:
    told: list[str] = []
    wrapped = fit(star("a"), [Wraps("inner", told), Averaging(PARTS), Wraps("outer", told)], max_epochs=1)
    assert told == [
        "inner: world sends a a Download",
        "outer: world sends a a Download",
        "outer: a hears world's Download",
        "inner: a hears world's Download",
        "inner: a sanitises",
        "outer: a sanitises",
        "inner: a sends world a Upload",
        "outer: a sends world a Upload",
        "outer: world hears a's Upload",
        "inner: world hears a's Upload",
    ]
    plain = fit(star("a"), [Averaging(PARTS)], max_epochs=1)
    for trainer, more in ((wrapped, 2), (plain, 0)):
        size = sum(4 * one.numel() for one in trainer.world.states["a"].parameters.values())
        assert (trainer.world.states["a"].bytes_down, trainer.world.states["a"].bytes_up) == (size + more, size + more)
    weights = [{name: one.parameters for name, one in trainer.world.states.items()} for trainer in (wrapped, plain)]
    assert differences(*weights) == []
