"""A parent or a child that sends what it must not: it is rejected in one line, and the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from worldlm.federation.messages import Download, MessageT, Upload
from worldlm.rounds import Context
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


def broken(message: MessageT) -> MessageT:
    return replace(message, parts={part: {name: t * torch.nan for name, t in tensors.items()}
                                   for part, tensors in message.parts.items()})  # fmt: skip


class Hostile(FederationCallback):
    """Breaks what a node sends in one round."""

    def __init__(self, node: str, receiver: str, change: Callable[[Any], Any]) -> None:
        self._names, self._change = (node, receiver), change

    def on_send(self, context: Context, receiver: Node, message: MessageT) -> MessageT:
        if (context.node.name, receiver.name) == self._names and context.round == 1:
            return self._change(message)  # type: ignore[no-any-return]
        return message


@pytest.fixture
def run(star: Make, at_home: Make, one_node: Make, whole_method: Make, tmp_path: Path) -> Make:
    """Return a function that runs a star with a hostile node, and returns the fits of each node, and the log."""

    def build(node: str, receiver: str, change: Callable[[Any], Any]) -> tuple[dict[str, int], str]:
        topology: Topology = star("abc")

        def job(organisation: Any, folder: Path) -> Any:
            logging.basicConfig(filename=folder / "log", format="%(message)s", force=True)
            return one_node(topology, lambda: [*whole_method(), Hostile(node, receiver, change)], max_epochs=3)(
                organisation, folder
            )

        found = at_home(topology, job)
        visits = {name: state["state"]["num_visits"] for name, state in found.items()}
        return visits, next(tmp_path.glob(f"*/{receiver}/log")).read_text()

    return build


def test_a_parent_that_sends_nan(run: Make) -> None:
    visits, log = run("world", "a", broken)
    assert visits == {"world": 0, "a": 2, "b": 3, "c": 3}
    assert "round 2: a rejected the download of world: " in log
    assert "is not finite" in log


def test_a_child_that_sends_nan(run: Make) -> None:
    visits, log = run("a", "world", broken)
    assert visits == {"world": 0, "a": 3, "b": 3, "c": 3}
    assert "round 2: world rejected the upload of a: " in log


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda upload: replace(upload, node="b"), "in the name of 'b'"),
        (lambda upload: replace(upload, round=7), "belongs to round 8"),
        (lambda upload: replace(upload, num_tokens=[]), "not those of a message"),
        (lambda upload: Download(round=1, parts={}), "not those of a message"),
    ],
)
def test_a_child_that_claims_something_false(change: Callable[[Upload], Any], reason: str, run: Make) -> None:
    visits, log = run("a", "world", change)
    assert visits == {"world": 0, "a": 3, "b": 3, "c": 3}
    assert "round 2: rejected a message from a: it" in log
    assert reason in log
