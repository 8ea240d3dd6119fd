"""Uploads that are rejected, and the reasons."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.federation.admission import why_refused
from worldlm.federation.messages import Residual, Upload

EXPECTED: Any = {"backbone": {"w": torch.zeros(2, 3)}, "keys": {"k": torch.zeros(2)}, "values": {"v": torch.zeros(1)}}


def parts(**changed: Tensor) -> Any:
    return {
        part: {name: changed.get(name, tensor) for name, tensor in tensors.items()}
        for part, tensors in EXPECTED.items()
    }


GOOD = Upload(node="a", round=3, parts=parts(w=torch.full((2, 3), 0.5)), num_tokens=7)
RESIDUAL = Residual(
    keys={"k": torch.ones(2)}, values={"v": torch.ones(1)}, origin="b", federation="f", jurisdiction=None, round=1
)


def reason(upload: Upload, **options: Any) -> str:
    return why_refused(upload, EXPECTED, 3, **options)


def test_a_valid_upload_is_accepted() -> None:
    assert reason(replace(GOOD, residuals=(RESIDUAL,), row_counts={"w": torch.tensor([0.0, 2.0])})) == ""
    assert reason(replace(GOOD, parts=parts(k=torch.ones(2, dtype=torch.bfloat16)))) == ""
    assert reason(replace(GOOD, residuals=(replace(RESIDUAL, row_shares={"v": torch.ones(1)}),))) == ""


@pytest.mark.parametrize(
    ("upload", "expected"),
    [
        (replace(GOOD, round=2), "it belongs to round 3"),
        (replace(GOOD, num_tokens=-1), "it reports -1 tokens"),
        (replace(GOOD, parts=parts(k=torch.tensor([0.0, torch.nan]))), "k is not finite"),
        (replace(GOOD, parts=parts(v=torch.tensor([-torch.inf]))), "v is not finite"),
        (replace(GOOD, parts=parts(w=torch.full((2, 3), -2e6))), "w has a weight of 2.0e+06"),
        (replace(GOOD, parts=parts(w=torch.zeros(3, 2))), "w has shape [3, 2], not [2, 3]"),
        (replace(GOOD, parts=parts(k=torch.zeros(2, dtype=torch.int64))), "k is of type torch.int64"),
        (replace(GOOD, parts={**EXPECTED, "keys": {}}), "it lacks k"),
        (replace(GOOD, parts={"backbone": EXPECTED["backbone"]}), "it lacks k"),
        (
            replace(GOOD, parts={**EXPECTED, "values": {"v": torch.zeros(1), "x": torch.zeros(1)}}),
            "it has an unexpected tensor x",
        ),
        (replace(GOOD, row_counts={"w": torch.tensor([-1.0, 0.0])}), "its row counts of w are invalid"),
        (replace(GOOD, row_counts={"w": torch.tensor([torch.nan, 0.0])}), "its row counts of w are invalid"),
        (replace(GOOD, row_counts={"w": torch.tensor([1.0, 0.0, 2.0])}), "its row counts of w are invalid"),
        (replace(GOOD, row_counts={"x": torch.tensor([1.0, 0.0])}), "its row counts of x are invalid"),
        (
            replace(GOOD, residuals=(replace(RESIDUAL, keys={"k": torch.tensor([0.0, torch.nan])}),)),
            "the residual of b: k is not finite",
        ),
        (replace(GOOD, residuals=(replace(RESIDUAL, values={}),)), "the residual of b: it lacks v"),
        *(
            (
                replace(GOOD, residuals=(replace(RESIDUAL, row_shares=shares),)),
                f"the residual of b: its row shares of {next(iter(shares))} are invalid",
            )
            for shares in (
                {"v": torch.tensor([0.5, 0.5])},
                {"v": torch.tensor([0.0])},
                {"v": torch.tensor([torch.nan])},
                {"w": torch.tensor([0.5, 0.5])},
            )
        ),
    ],
)
def test_the_first_problem_is_reported(upload: Upload, expected: str) -> None:
    assert reason(upload).startswith(expected)


def test_an_update_norm_above_the_limit() -> None:
    moved = 0.5 * 6**0.5
    assert reason(GOOD, max_update_norm=moved + 1e-6) == ""
    assert reason(GOOD, max_update_norm=moved - 1e-6).startswith(
        "its update has norm 1.225, but max_update_norm is 1.2"
    )
