"""Validation of weights, memories and messages in a checkpoint."""

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
    ("saved", "message"),
    [
        ({"a": torch.ones(2, 3)}, r"weights b of leaf are missing in the checkpoint, but float32 \[4\] in this"),
        ({**MODEL, "c": torch.ones(1)}, r"weights c of leaf are float32 \[1\] in the checkpoint, but missing in"),
        ({**MODEL, "b": torch.ones(5)}, r"b of leaf are float32 \[5\] in the checkpoint, but float32 \[4\]"),
        ({**MODEL, "b": torch.ones(4, dtype=torch.bfloat16)}, r"b of leaf are bfloat16 \[4\] in the checkpoint"),
    ],
)
def test_weights_of_another_model_are_named(saved: dict[str, torch.Tensor], message: str) -> None:
    check_weights("of leaf", {name: torch.ones_like(tensor) for name, tensor in MODEL.items()}, MODEL)
    with pytest.raises(ValueError, match=message):
        check_weights("of leaf", saved, MODEL)


class Memory(TypedDict, total=False):
    counts: dict[str, int]
    models: dict[str, dict[str, torch.Tensor]]


class Piece(FederationCallback):
    memory_schema = Memory


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ([3], "the memory of Piece at leaf does not have its declared type"),
        ({"counts": {"x": 1.5}}, "the memory of Piece at leaf does not have its declared type"),
        ({"models": {"x": MODEL["b"]}}, "the memory of Piece at leaf does not have its declared type"),
        (
            {"models": {"x": {"b": torch.ones(5)}}},
            r"b in the memory of Piece at leaf is float32 \[5\] in .*, but float32 \[4\]",
        ),
    ],
)
def test_a_memory_of_the_wrong_type_is_named(memory: Any, message: str) -> None:
    valid: Any = {"counts": {"x": 1}, "models": {"x": MODEL}, "of another version": 3}
    for memories in ({}, {Piece().state_key: valid}):
        check_memories({"leaf": NodeState(parameters=MODEL, memory=memories)}, [Piece()], MODEL)
    with pytest.raises(ValueError, match=message):
        check_memories({"leaf": NodeState(parameters=MODEL, memory={Piece().state_key: memory})}, [Piece()], MODEL)


def residual(**changes: Any) -> Residual:
    origin: dict[str, Any] = {"origin": "leaf", "federation": "north", "jurisdiction": None, "round": 0}
    return Residual(**{"keys": {"a": MODEL["a"]}, "values": {"b": MODEL["b"]}, **origin, **changes})


def waiting(residual: Residual, parts: dict[Part, dict[str, torch.Tensor]], where: str) -> NodeState:
    """Return a node at which a residual, or a message with it and the parts, waits at the given place."""
    upload = Upload(node="leaf", round=0, parts=parts, num_tokens=1, residuals=(residual,))
    if where == "download":
        return NodeState(parameters=MODEL, download=Download(round=0, parts=parts, residuals=(residual,)))
    if where == "upload":
        return NodeState(parameters=MODEL, uploads={"leaf": upload})
    return NodeState(parameters=MODEL, memory={"x": {"outbox": {"leaf": [message_state(residual)]}}})


PARTS: dict[Part, dict[str, torch.Tensor]] = {"backbone": {}, "keys": {"a": MODEL["a"]}, "values": {"b": MODEL["b"]}}


@pytest.mark.parametrize("where", ["download", "upload", "memory"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": {}}, "it lacks a"),
        ({"values": {"b": torch.ones(5)}}, r"b has shape \[5\], not \[4\]"),
        ({"values": {"b": MODEL["b"], "c": MODEL["b"]}}, "it has an unexpected tensor c"),
    ],
)
def test_a_residual_for_another_model_is_named(where: str, changes: dict[str, Any], message: str) -> None:
    check_messages({"north": waiting(residual(), PARTS, where)}, PARTS, frozenset(PARTS))
    with pytest.raises(ValueError, match=f"a message at north in the checkpoint does not fit this model: {message}"):
        check_messages({"north": waiting(residual(**changes), PARTS, where)}, PARTS, frozenset(PARTS))


@pytest.mark.parametrize("where", ["download", "upload"])
def test_a_message_for_another_model_is_named(where: str) -> None:
    parts: dict[Part, dict[str, torch.Tensor]] = {**PARTS, "keys": {"a": torch.ones(2)}}
    with pytest.raises(ValueError, match=r"a message at north .* a has shape \[2\], not \[2, 3\]"):
        check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset())


@pytest.mark.parametrize("where", ["download", "upload"])
def test_a_message_without_a_part_that_is_merged_is_named(where: str) -> None:
    parts: dict[Part, dict[str, torch.Tensor]] = {"values": PARTS["values"]}
    check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset(parts))
    with pytest.raises(
        ValueError,
        match=r"a message at north in the checkpoint lacks backbone, keys, which the method of this run merges",
    ):
        check_messages({"north": waiting(residual(), parts, where)}, PARTS, frozenset(PARTS))
