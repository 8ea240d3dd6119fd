"""Downloads that a node must not merge."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldlm.federation.admission import why_download_refused
from worldlm.federation.messages import Download, Residual
from worldlm.federation.parameters import Part, Tensors

EXPECTED: dict[Part, Tensors] = {"keys": {"k": torch.ones(2)}, "values": {"v": torch.ones(3, 2)}}
ROWS = {"v": torch.tensor([0.2, 0.3, 0.5])}
ANSWER = Residual(
    keys={"k": torch.ones(2)}, values={"v": torch.ones(3, 2)}, origin="x", federation="f", jurisdiction=None, round=1
)
DOWNLOAD = Download(
    round=1, parts=EXPECTED, own_weight=0.5, row_shares=ROWS, own_row_weights=ROWS, num_nodes=3.0, scale=1.0,
    residuals=(ANSWER,),
)  # fmt: skip


def test_a_valid_download() -> None:
    assert why_download_refused(DOWNLOAD, EXPECTED, 1) == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"round": 2}, "belongs to round 3"),
        ({"parts": {"keys": EXPECTED["keys"]}}, "lacks v"),
        ({"parts": {**EXPECTED, "backbone": {"b": torch.ones(1)}}}, "unexpected tensor b"),
        ({"parts": {**EXPECTED, "keys": {"k": torch.ones(3)}}}, "k has shape [3], not [2]"),
        ({"parts": {**EXPECTED, "keys": {"k": torch.tensor([1.0, math.nan])}}}, "k is not finite"),
        ({"parts": {**EXPECTED, "keys": {"k": torch.tensor([1.0, 1e9])}}}, "k has a weight of 1.0e+09"),
        ({"own_weight": 1.5}, "own_weight is 1.5"),
        ({"own_weight": math.nan}, "own_weight is nan"),
        ({"reliability": -0.1}, "reliability is -0.1"),
        ({"num_nodes": math.inf}, "number of nodes or its scale"),
        ({"scale": -1.0}, "number of nodes or its scale"),
        ({"row_shares": {"v": torch.ones(2)}}, "row shares of v are invalid"),
        ({"own_row_weights": {"z": torch.ones(3)}}, "own row weights of z are invalid"),
        ({"own_row_weights": {"v": torch.tensor([0.1, -0.1, 0.1])}}, "own row weights of v are invalid"),
        ({"residuals": (replace(ANSWER, keys={"k": torch.full((2,), math.inf)}),)}, "the answer to x: k is not finite"),
    ],
)
def test_invalid_downloads(changes: dict[str, Any], reason: str) -> None:
    assert reason in why_download_refused(replace(DOWNLOAD, **changes), EXPECTED, 1)
