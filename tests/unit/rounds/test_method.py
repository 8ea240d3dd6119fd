"""A method runs the hooks of its callbacks in order, and lets them find each other by type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worldlm.federation.messages import Download
from worldlm.rounds import Context, Method, RoundCallback, World
from worldlm.topology import Node, Settings, Topology

TOPOLOGY = Topology(
    name="star",
    root=Node(
        name="world",
        settings=Settings(num_local_steps=1),
        children=(Node(name="a", corpus="a", settings=Settings(num_local_steps=1)),),
    ),
)


class Append(RoundCallback):
    """Adds a letter to every message."""

    def __init__(self, letter: str) -> None:
        self.letter = letter

    def on_send(self, context: Context, receiver: Node, message: Any) -> Any:
        return message + self.letter

    def on_unpack(self, context: Context, sender: Node, message: Any) -> Any:
        return message + self.letter


class Last(RoundCallback):
    """Must be listed after every Append."""

    def must_follow(self, other: RoundCallback) -> str:
        return "list Last after Append" if isinstance(other, Append) else ""


def make_context(method: Method) -> Context:
    world = World(TOPOLOGY, {"w": "backbone"}, {"w": torch.zeros(1)})
    return method.context(world, "world")


def test_hooks_run_in_order_and_messages_are_unpacked_in_the_reverse() -> None:
    method = Method([Append("a"), Append("b"), Append("c")])
    context, child = make_context(method), TOPOLOGY.nodes["a"]
    message: Any = ""
    assert method.on_send(context, child, message) == "abc"
    assert method.on_unpack(context, child, message) == "cba"


def test_callbacks_find_each_other_by_type() -> None:
    first, last = Append("a"), Last()
    method = Method([first, object(), last])
    assert method.callbacks == (first, last)
    assert make_context(method).find(Last) is last
    assert make_context(method).find(Append) is first
    assert make_context(Method([first])).find(Last) is None


def test_a_callback_that_must_follow_another_is_rejected_before_it() -> None:
    Method([Append("a"), Last()]).check(TOPOLOGY)
    with pytest.raises(ValueError, match="^list Last after Append$"):
        Method([Last(), Append("a")]).check(TOPOLOGY)


def test_a_hook_of_the_former_signature_is_rejected_with_the_new_one() -> None:
    class Old(RoundCallback):
        def on_receive(self, trainer: Any, context: Context, download: Download) -> None:  # type: ignore[override]
            pass

    with pytest.raises(
        ValueError, match=r"Old\.on_receive expects a trainer.*write on_receive\(self, context, download\)"
    ):
        Method([Old()])


@pytest.mark.parametrize(
    ("old", "new"),
    [("on_arrive", "on_unpack"), ("on_emit", "after_aggregate"), ("honours", "enforces"), ("kept", "memory_schema")],
)
def test_a_former_name_is_rejected_with_the_new_one(old: str, new: str) -> None:
    kind = type("Old", (RoundCallback,), {old: None})
    with pytest.raises(ValueError, match=rf"^Old\.{old} is now called {new}: rename it$"):
        Method([kind()])


@pytest.mark.parametrize(("wrong", "right"), [("on_agregate", "on_aggregate"), ("on_sanitize", "on_sanitise")])
def test_a_misspelt_hook_is_rejected(wrong: str, right: str) -> None:
    kind = type("Mine", (RoundCallback,), {wrong: lambda self, context: None})
    with pytest.raises(ValueError, match=rf"^Mine\.{wrong} is not a hook .*did you mean '{right}'"):
        Method([kind()])


def test_other_methods_of_a_callback_are_no_misspelt_hooks() -> None:
    Method([type("Mine", (RoundCallback,), {"_on_send": lambda self: None, "aggregate": lambda self: None})()])


def test_metrics_are_dropped_without_a_trainer() -> None:
    context = make_context(Method([]))
    context.log({"world/loss": 1.0})
    context.log_text("note", "nothing happens")
