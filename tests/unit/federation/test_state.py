"""The state of a node survives a checkpoint."""

from dataclasses import fields

import pytest
import torch

from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.state import NodeState

PARTITION = {"head": "values", "attn": "keys", "embed": "backbone", "ffn": "values"}


def residual(origin: str) -> Residual:
    tensors = {"attn": torch.ones(2)}
    return Residual(keys=tensors, values={}, origin=origin, federation="south", jurisdiction=None, round=1)


def upload(node: str) -> Upload:
    return Upload(node=node, round=1, parts={}, num_tokens=3, row_counts={"wte": torch.arange(4.0)})


def state() -> NodeState:
    return NodeState(
        parameters={name: torch.full((2,), float(i)) for i, name in enumerate(PARTITION)},
        num_visits=1,
        num_steps=2,
        num_batches=3,
        num_tokens=4,
        fit_tokens=5,
        unsent_tokens=6,
        bytes_down=7,
        bytes_up=8,
        num_messages=9,
        num_missed=10,
        refused={"fr": 2},
        link_seconds=0.5,
        download_seconds=0.25,
        extra_steps=-2,
        takes_part=True,
        participants=("fr", "it"),
        start={"embed": torch.ones(2)},
        download=Download(round=1, parts={"keys": {"attn": torch.full((2,), 7.0)}}, residuals=(residual("bg"),)),
        uploads={"uk": upload("uk"), "bg": upload("bg")},
        attention={"it": {"it": 0.25, "fr": 0.75}},
        memory={"Piece": {"optimizer": {0: {"step": torch.ones(1)}}}},
    )


def test_survives_a_checkpoint(tmp_path) -> None:
    torch.save(state().state_dict(), tmp_path / "state.pt")
    result = NodeState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(result.parameters, state().parameters, rtol=0, atol=0)
    tensors = ("parameters", "start", "download", "uploads", "memory")
    for name in [entry.name for entry in fields(NodeState) if entry.name not in tensors]:
        assert getattr(result, name) == getattr(state(), name) != getattr(NodeState(parameters={}), name)
    assert result.start is not None
    assert result.start["embed"].tolist() == [1.0, 1.0]
    assert result.memory["Piece"]["optimizer"][0]["step"].tolist() == [1.0]


def test_a_checkpoint_of_a_version_without_mixtures_is_read() -> None:
    before = {**state().state_dict(), "inbox": [], "attention": {"it": 0.25, "fr": 0.75}}
    assert NodeState.from_state_dict(before).attention == {}


def test_a_checkpoint_without_newer_counters_is_read() -> None:
    before = {name: value for name, value in state().state_dict().items() if name not in ("num_missed", "link_seconds")}
    result = NodeState.from_state_dict(before)
    assert (result.num_missed, result.link_seconds, result.num_messages) == (0, 0.0, 9)


def test_pending_messages_survive_a_checkpoint(tmp_path) -> None:
    torch.save(state().state_dict(), tmp_path / "state.pt")
    result = NodeState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert result.download is not None
    assert result.download.parts["keys"]["attn"].tolist() == [7.0, 7.0]
    assert result.download.residuals[0].origin == "bg"
    assert [(name, entry.node, entry.num_tokens) for name, entry in result.uploads.items()] == [
        ("uk", "uk", 3),
        ("bg", "bg", 3),
    ]
    assert result.uploads["bg"].row_counts["wte"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_state_does_not_copy_the_weights() -> None:
    entry = state()
    assert entry.state_dict()["parameters"]["embed"] is entry.parameters["embed"]


def test_a_part_is_its_names_in_order_and_shares_memory() -> None:
    entry = state()
    assert list(entry.part("values", PARTITION)) == ["head", "ffn"]
    assert entry.part("keys", PARTITION)["attn"] is entry.parameters["attn"]


def test_parts_come_in_the_order_backbone_keys_values() -> None:
    result = state().parts(frozenset({"values", "keys", "backbone"}), PARTITION)
    assert {part: list(tensors) for part, tensors in result.items()} == {
        "backbone": ["embed"],
        "keys": ["attn"],
        "values": ["head", "ffn"],
    }
    assert list(result) == ["backbone", "keys", "values"]


@pytest.mark.parametrize("names", [set(), {"keys"}, {"backbone", "values"}])
def test_only_requested_parts_are_returned(names) -> None:
    assert set(state().parts(frozenset(names), PARTITION)) == names


def test_nodes_have_separate_inboxes() -> None:
    first, second = NodeState(parameters={}), NodeState(parameters={})
    first.attention["it"] = {"fr": 1.0}
    assert second.attention == {}
