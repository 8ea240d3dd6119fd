"""Which uploads a federation takes in: what is broken, late or beyond measure is left out before it is merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from worldlm.federation.messages import Residual, Upload, joined
from worldlm.federation.parameters import Part, Tensors, distance

MAX_WEIGHT = 1e6
"""No weight of a language model, nor any noise on it that leaves it of use, comes near."""


@torch.no_grad()
def why_refused(
    upload: Upload, expected: Mapping[Part, Tensors], round: int, max_update_norm: float | None = None
) -> str:
    """Say why an upload must not be merged.

    Args:
        upload: What a participant sent, unpacked.
        expected: What the participants received, by part: every upload holds tensors of these names and shapes.
        round: Round of the world, from 0.
        max_update_norm: Largest L2 norm of `upload - expected`, all tensors taken as one vector; None: no limit.

    Returns:
        The first thing that is wrong with it; empty if nothing is.
    """
    return next(_wrongs(upload, expected, round, max_update_norm), "")


def _wrongs(
    upload: Upload, expected: Mapping[Part, Tensors], round: int, max_update_norm: float | None
) -> Iterator[str]:
    if upload.round != round:
        yield f"it is of round {upload.round}"
    if upload.num_tokens < 0:
        yield f"it counts {upload.num_tokens} tokens"
    for part in sorted(expected.keys() | upload.parts.keys()):
        yield from misfits(upload.parts.get(part, {}), expected.get(part, {}))
    yield from _wild(joined(upload.parts))
    for name, counts in upload.row_counts.items():
        if counts.dim() != 1 or not bool((counts >= 0).all()) or not bool(counts.isfinite().all()):
            yield f"its row counts of {name} are no counts"
    for residual in upload.residuals:
        yield from (f"the residual of {residual.origin}: {wrong}" for wrong in _wrong_residual(residual, expected))
    if max_update_norm is not None:
        norm = distance(joined(upload.parts), joined(expected))
        if not norm <= max_update_norm:
            yield f"its update has norm {norm:.4g}, and max_update_norm is {max_update_norm:g}"


def _wrong_residual(residual: Residual, expected: Mapping[Part, Tensors]) -> Iterator[str]:
    yield from misfits(residual.keys, expected.get("keys", {}))
    yield from misfits(residual.values, expected.get("values", {}))
    yield from _wild({**residual.keys, **residual.values})


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield in what tensors differ from those expected: in names, in shapes, or in that they hold no numbers."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"it lacks {name}"
        elif name not in expected:
            yield f"it holds {name}, which nobody asked for"
        elif found[name].shape != expected[name].shape:
            yield f"{name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}"
        elif not found[name].is_floating_point():
            yield f"{name} is of type {found[name].dtype}"


def _wild(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Look at every coordinate once: NaN makes its own way through the least and the largest."""
    for name, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        most = max(abs(float(one)) if math.isfinite(one) else math.inf for one in tensor.aminmax())
        if most == math.inf:
            yield f"{name} is not finite"
        elif most > MAX_WEIGHT:
            yield f"{name} holds {most:.1e}"
