"""Admission of messages: invalid, outdated and too large ones are rejected before they are merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from worldlm.federation.messages import Download, Residual, Upload, joined
from worldlm.federation.parameters import Part, Tensors, distance

MAX_WEIGHT = 1e6
"""Largest absolute weight allowed, far above the weights of a usable language model with or without noise."""


@torch.no_grad()
def why_refused(
    upload: Upload, expected: Mapping[Part, Tensors], round: int, max_update_norm: float | None = None
) -> str:
    """Return why an upload must be rejected.

    Args:
        upload: The upload of a participant, unpacked.
        expected: The tensors that the participants received, by part; an upload must have these names and shapes.
        round: Round of the world, from 0.
        max_update_norm: Largest L2 norm of `upload - expected`, all tensors taken as one vector; None sets no limit.

    Returns:
        The first problem; empty if the upload is valid.
    """
    return next(_problems(upload, expected, round, max_update_norm), "")


@torch.no_grad()
def why_download_refused(download: Download, expected: Mapping[Part, Tensors], round: int) -> str:
    """Return why a download must be rejected.

    Args:
        download: What a parent sent, unpacked.
        expected: The receiver's own tensors, by part; a download must have these names and shapes.
        round: Round of the world, from 0.

    Returns:
        The first problem; empty if the download is valid.
    """
    return next(_download_problems(download, expected, round), "")


def _download_problems(download: Download, expected: Mapping[Part, Tensors], round: int) -> Iterator[str]:
    if download.round != round:
        yield f"it belongs to round {download.round + 1}"
    for part in sorted(expected.keys() | download.parts.keys()):
        yield from misfits(download.parts.get(part, {}), expected.get(part, {}))
    yield from _not_in_range(joined(download.parts))
    for name, value in (("reliability", download.reliability), ("own_weight", download.own_weight)):
        if not 0 <= value <= 1:
            yield f"its {name} is {value}"
    if not (0 <= download.num_nodes < math.inf and 0 <= download.scale < math.inf):
        yield "its number of nodes or its scale is invalid"
    for field, rows in (("row shares", download.row_shares), ("own row weights", download.own_row_weights)):
        for name, numbers in rows.items():
            if not _has_one_per_row(numbers, expected.get("values", {}).get(name)) or bool((numbers < 0).any()):
                yield f"its {field} of {name} are invalid"
    for answer in download.residuals:
        yield from (f"the answer to {answer.origin}: {problem}" for problem in _residual_problems(answer, expected))


def _problems(
    upload: Upload, expected: Mapping[Part, Tensors], round: int, max_update_norm: float | None
) -> Iterator[str]:
    if upload.round != round:
        yield f"it belongs to round {upload.round + 1}"
    if upload.num_tokens < 0:
        yield f"it reports {upload.num_tokens} tokens"
    for part in sorted(expected.keys() | upload.parts.keys()):
        yield from misfits(upload.parts.get(part, {}), expected.get(part, {}))
    yield from _not_in_range(joined(upload.parts))
    for name, counts in upload.row_counts.items():
        if not _has_one_per_row(counts, joined(expected).get(name)) or bool((counts < 0).any()):
            yield f"its row counts of {name} are invalid"
    if not all(0 <= variance < math.inf for variance in upload.noise_variance.values()):
        yield "its noise variances are invalid"
    if not all(0 < share <= 1 for share in upload.reliability.values()):
        yield "its reliabilities are invalid"
    for residual in upload.residuals:
        yield from (
            f"the residual of {residual.origin}: {problem}" for problem in _residual_problems(residual, expected)
        )
    if max_update_norm is not None:
        norm = distance(joined(upload.parts), joined(expected))
        if not norm <= max_update_norm:
            yield f"its update has norm {norm:.4g}, but max_update_norm is {max_update_norm:g}"


def _residual_problems(residual: Residual, expected: Mapping[Part, Tensors]) -> Iterator[str]:
    yield from misfits(residual.keys, expected.get("keys", {}))
    yield from misfits(residual.values, expected.get("values", {}))
    yield from _not_in_range({**residual.keys, **residual.values})
    for name, shares in residual.row_shares.items():
        if not _has_one_per_row(shares, expected.get("values", {}).get(name)) or bool((shares <= 0).any()):
            yield f"its row shares of {name} are invalid"


def _has_one_per_row(numbers: Tensor, tensor: Tensor | None) -> bool:
    """Return whether a vector has one finite number for every row of a tensor; never if there is no such tensor."""
    return tensor is not None and numbers.shape == tensor.shape[:1] and bool(numbers.isfinite().all())


def misfits(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the differences from the expected tensors: in names, shapes, or a type that is not floating point."""
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors:
            yield f"it lacks {name}"
        elif name not in expected:
            yield f"it has an unexpected tensor {name}"
        elif tensors[name].shape != expected[name].shape:
            yield f"{name} has shape {list(tensors[name].shape)}, not {list(expected[name].shape)}"
        elif not tensors[name].is_floating_point():
            yield f"{name} is of type {tensors[name].dtype}"


def _not_in_range(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the tensors that are not finite or too large. Each coordinate is read once; aminmax propagates NaN."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        largest = max(abs(float(bound)) if math.isfinite(bound) else math.inf for bound in tensor.aminmax())
        if largest == math.inf:
            yield f"{name} is not finite"
        elif largest > MAX_WEIGHT:
            yield f"{name} has a weight of {largest:.1e}"
