"""Messages from other organisations that claim what their sender may not claim."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from worldlm.federation.messages import Download, Residual, Upload, message_state
from worldlm.organisations.check_message import why_invalid
from worldlm.rounds.transport import Kind, MessageKey
from worldlm.topology import parse_topology

TOPOLOGY = parse_topology(
    """
name: t
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - {name: a, settings: {jurisdiction: eu}, children: [{name: x, corpus: x}]}
    - {name: b, corpus: b}
""",
    "t.yaml",
)
RESIDUAL = Residual(
    keys={"k": torch.ones(2)},
    values={"v": torch.ones(2)},
    origin="x",
    federation="a",
    jurisdiction="eu",
    round=3,
    scale=1.0,
)
UPLOAD = Upload(
    node="a", round=3, parts={"keys": {"k": torch.ones(2)}, "values": {"v": torch.ones(2)}}, num_tokens=4,
    residuals=(RESIDUAL,),
)  # fmt: skip


def problem(content: Any, kind: Kind = "up") -> str:
    return why_invalid(MessageKey(child="a", kind=kind, round=3, subround=0), content, TOPOLOGY)


def test_valid_messages() -> None:
    assert problem(message_state(UPLOAD)) == ""
    assert problem(None) == ""
    assert problem(True, "ready") == ""
    assert problem(message_state(Download(round=3, parts={}, residuals=(RESIDUAL,))), "down") == ""


@pytest.mark.parametrize(
    ("upload", "reason"),
    [
        (replace(UPLOAD, node="b"), "in the name of 'b'"),
        (replace(UPLOAD, round=2), "belongs to round 3"),
        (replace(UPLOAD, residuals=(replace(RESIDUAL, origin="b"),)), "'b', which is not below a"),
        (replace(UPLOAD, residuals=(replace(RESIDUAL, origin="nobody"),)), "which is not below a"),
        (replace(UPLOAD, residuals=(replace(RESIDUAL, jurisdiction="us"),)), "another jurisdiction"),
        (replace(UPLOAD, residuals=(replace(RESIDUAL, federation="z"),)), "unknown federation 'z'"),
        (replace(UPLOAD, num_tokens="many"), "not those of a message"),
        (replace(UPLOAD, parts={"keys": {"k": "text"}}), "not those of a message"),
    ],
)
def test_false_claims(upload: Upload, reason: str) -> None:
    assert reason in problem(message_state(upload))


@pytest.mark.parametrize("content", [{}, [], 7, "x", {"node": "a"}, {"residuals": 3}, {"residuals": [{}]}])
def test_anything_else(content: Any) -> None:
    assert "not those of a message" in problem(content)
    assert "not those of a message" in problem(content, "down")
    assert "whether the node takes part" in problem(content, "ready")
