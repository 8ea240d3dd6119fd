"""Whether a run can go on from what a checkpoint holds."""

from typing import Any, TypedDict

import pytest
import torch

from worldlm.checkpoint.validate import check_memories, check_messages, check_weights
from worldlm.federation.messages import Download, Residual, Upload, message_state
from worldlm.federation.parameters import Part
from worldlm.federation.state import NodeState
from worldlm.trainer import FederationCallback

MODEL = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        ({"a": torch.ones(2, 3)}, r"weights b of leaf are missing in the checkpoint, and float32 \[4\] in this"),
        ({**MODEL, "c": torch.ones(1)}, r"weights c of leaf are float32 \[1\] in the checkpoint, and missing in"),
        ({**MODEL, "b": torch.ones(5)}, r"b of leaf are float32 \[5\] in the checkpoint, and float32 \[4\]"),
        ({**MODEL, "b": torch.ones(4, dtype=torch.bfloat16)}, r"b of leaf are bfloat16 \[4\] in the checkpoint"),
    ],
)
def test_weights_of_another_model_are_named(saved: dict[str, torch.Tensor], told: str) -> None:
    check_weights("of leaf", {name: torch.ones_like(one) for name, one in MODEL.items()}, MODEL)
    with pytest.raises(ValueError, match=told):
        check_weights("of leaf", saved, MODEL)


class Kept(TypedDict, total=False):
    counts: dict[str, int]
    models: dict[str, dict[str, torch.Tensor]]


class Piece(FederationCallback):
    memory_schema = Kept


@pytest.mark.parametrize(
    ("memory", "told"),
    [
        ([3], "what Piece keeps at leaf is not what it would have written"),
        ({"counts": {"x": 1.5}}, "what Piece keeps at leaf is not what it would have written"),
        ({"models": {"x": MODEL["b"]}}, "what Piece keeps at leaf is not what it would have written"),
        (
            {"models": {"x": {"b": torch.ones(5)}}},
            r"Piece keeps at leaf of b is float32 \[5\] in .*, and float32 \[4\]",
        ),
    ],
)
def test_what_a_piece_would_not_keep_is_named(memory: Any, told: str) -> None:
    sound: Any = {"counts": {"x": 1}, "models": {"x": MODEL}, "of another version": 3}
    for kept in ({}, {Piece().state_key: sound}):
        check_memories({"leaf": NodeState(parameters=MODEL, memory=kept)}, [Piece()], MODEL)
    with pytest.raises(ValueError, match=told):
        check_memories({"leaf": NodeState(parameters=MODEL, memory={Piece().state_key: memory})}, [Piece()], MODEL)


def residual(**changes: Any) -> Residual:
    origin: dict[str, Any] = {"origin": "leaf", "federation": "north", "jurisdiction": None, "round": 0}
    return Residual(**{"keys": {"a": MODEL["a"]}, "values": {"b": MODEL["b"]}, **origin, **changes})


def waiting(one: Residual, parts: dict[Part, dict[str, torch.Tensor]], where: str) -> NodeState:
    """A node at which a residual, or a part of a message, waits in one of the places where it can."""
    upload = Upload(node="leaf", round=0, parts=parts, num_tokens=1, residuals=(one,))
    if where == "download":
        return NodeState(parameters=MODEL, download=Download(round=0, parts=parts, residuals=(one,)))
    if where == "upload":
        return NodeState(parameters=MODEL, uploads={"leaf": upload})
    if where == "inbox":
        return NodeState(parameters=MODEL, inbox=[one])
    return NodeState(parameters=MODEL, memory={"x": {"outbox": {"leaf": [message_state(one)]}}})


PARTS: dict[Part, dict[str, torch.Tensor]] = {"backbone": {}, "keys": {"a": MODEL["a"]}, "values": {"b": MODEL["b"]}}


@pytest.mark.parametrize("where", ["download", "upload", "inbox", "memory"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keys": {}}, "it lacks a"),
        ({"values": {"b": torch.ones(5)}}, r"b has shape \[5\], not \[4\]"),
        ({"values": {"b": MODEL["b"], "c": MODEL["b"]}}, "it has an unexpected tensor c"),
    ],
)
def test_what_waits_for_another_model_is_named(where: str, changes: dict[str, Any], told: str) -> None:
    check_messages({"north": waiting(residual(), PARTS, where)}, PARTS, frozenset(PARTS))
    with pytest.raises(ValueError, match=f"what waits at north in the checkpoint is not for this model: {told}"):
        check_messages({"north": waiting(residual(**changes), PARTS, where)}, PARTS, frozenset(PARTS))


@pytest.mark.parametrize("where", ["download", "upload"])
def test_a_message_for_another_model_is_named(where: str) -> None:
    parts: dict[Part, dict[str, torch.Tensor]] = {**PARTS, "keys": {"a": torch.ones(2)}}
    with pytest.raises(ValueError, match=r"what waits at north .* a has shape \[2\], not \[2, 3\]"):
        check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset())


@pytest.mark.parametrize("where", ["download", "upload"])
def test_a_message_without_what_travels_is_named(where: str) -> None:
    parts: dict[Part, dict[str, torch.Tensor]] = {"values": PARTS["values"]}
    check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset(parts))
    with pytest.raises(
        ValueError, match=r"what waits at north in the checkpoint is without backbone, keys, which travel"
    ):
        check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset(PARTS))
