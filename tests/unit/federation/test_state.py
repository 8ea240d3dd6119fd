"""All that a node is: it survives a checkpoint whole."""

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
        attention={"it": 0.25, "fr": 0.75},
        inbox=[residual("it"), residual("fr")],
        memory={"Piece": {"optimizer": {0: {"step": torch.ones(1)}}}},
    )


def test_survives_a_checkpoint(tmp_path) -> None:
    torch.save(state().state_dict(), tmp_path / "state.pt")
    found = NodeState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(found.parameters, state().parameters, rtol=0, atol=0)
    tensors = ("parameters", "start", "download", "uploads", "inbox", "memory")
    for name in [one.name for one in fields(NodeState) if one.name not in tensors]:
        assert getattr(found, name) == getattr(state(), name) != getattr(NodeState(parameters={}), name)
    assert [one.origin for one in found.inbox] == ["it", "fr"]
    assert found.inbox[0].keys["attn"].tolist() == [1.0, 1.0]
    assert all(isinstance(one, Residual) for one in found.inbox)
    assert found.start is not None
    assert found.start["embed"].tolist() == [1.0, 1.0]
    assert found.memory["Piece"]["optimizer"][0]["step"].tolist() == [1.0]


def test_a_checkpoint_of_before_nodes_could_miss_a_round_is_read() -> None:
    before = {name: value for name, value in state().state_dict().items() if name not in ("num_missed", "link_seconds")}
    found = NodeState.from_state_dict(before)
    assert (found.num_missed, found.link_seconds, found.num_messages) == (0, 0.0, 9)


def test_messages_under_way_survive_a_checkpoint(tmp_path) -> None:
    torch.save(state().state_dict(), tmp_path / "state.pt")
    found = NodeState.from_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert found.download is not None
    assert found.download.parts["keys"]["attn"].tolist() == [7.0, 7.0]
    assert found.download.residuals[0].origin == "bg"
    assert [(name, one.node, one.num_tokens) for name, one in found.uploads.items()] == [
        ("uk", "uk", 3),
        ("bg", "bg", 3),
    ]
    assert found.uploads["bg"].row_counts["wte"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_the_state_does_not_copy_the_weights() -> None:
    one = state()
    assert one.state_dict()["parameters"]["embed"] is one.parameters["embed"]


def test_a_part_is_its_names_in_order_and_shares_memory() -> None:
    one = state()
    assert list(one.part("values", PARTITION)) == ["head", "ffn"]
    assert one.part("keys", PARTITION)["attn"] is one.parameters["attn"]


def test_parts_come_in_the_order_backbone_keys_values() -> None:
    found = state().parts(frozenset({"values", "keys", "backbone"}), PARTITION)
    assert {part: list(tensors) for part, tensors in found.items()} == {
        "backbone": ["embed"],
        "keys": ["attn"],
        "values": ["head", "ffn"],
    }
    assert list(found) == ["backbone", "keys", "values"]


@pytest.mark.parametrize("wanted", [set(), {"keys"}, {"backbone", "values"}])
def test_only_wanted_parts_are_given(wanted) -> None:
    assert set(state().parts(frozenset(wanted), PARTITION)) == wanted


def test_nodes_share_no_inbox() -> None:
    first, second = NodeState(parameters={}), NodeState(parameters={})
    first.inbox.append(residual("it"))
    first.attention["it"] = 1.0
    assert (second.inbox, second.attention) == ([], {})
