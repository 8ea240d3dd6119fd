"""What a federation remembers of the layers of other nodes, for the callbacks that attend over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from worldlm.callbacks.noise import Weighed, num_merged
from worldlm.federation.attention import Source, mean_scale, mixed_layers
from worldlm.federation.messages import Residual, Upload
from worldlm.federation.parameters import Tensors, clone, distance
from worldlm.federation.token_rows import smoothed
from worldlm.rounds import Context

OTHERS = "(others)"
"""The name of a source that is the average of several participants. No node has it."""

_MAX_SHOWN = 16
"""Number of sources of a mixture whose weights are recorded one by one."""


class SavedSource(TypedDict):
    """The plain form of a `Source`."""

    keys: Tensors
    values: Tensors
    row_shares: Tensors
    num_nodes: float
    scale: float


def saved_uploads(
    context: Context, uploads: Sequence[Upload], weighed: Weighed, row_shares: Sequence[Tensors]
) -> dict[str, SavedSource]:
    """Return the keys and values of a federation's uploads, copied, by the name of the participant.

    Args:
        context: The federation.
        uploads: The uploads of its participants.
        weighed: Their weights.
        row_shares: Their smoothed row shares.
    """
    reference = {name: context.world.reference[name] for name in context.part("keys")}
    return {
        upload.node: SavedSource(
            keys=clone(upload.parts["keys"]),
            values=clone(upload.parts["values"]),
            row_shares={**shares},
            num_nodes=trust * num_merged(upload, context),
            scale=upload.scale or distance(upload.parts["keys"], reference),
        )
        for upload, trust, shares in zip(uploads, weighed.trust, row_shares, strict=True)
    }


def average_of(sources: Sequence[Source]) -> SavedSource:
    """Return the average of sources, each weighted by the number of its nodes."""
    total = sum(source.num_nodes for source in sources)
    layers = mixed_layers(sources, [source.num_nodes / total for source in sources])
    return SavedSource(
        keys=layers["keys"],
        values=layers["values"],
        row_shares=layers["row_shares"],
        num_nodes=total,
        scale=mean_scale(sources),
    )


def source_of(residual: Residual) -> Source:
    """Return a residual, or an answer, as something to attend to."""
    return Source(
        keys=residual.keys,
        values=residual.values,
        row_shares=residual.row_shares,
        num_nodes=residual.num_nodes,
        scale=residual.scale,
    )


def largest(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the largest weights of a mixture, and the sum of the others under the name `OTHERS`."""
    names = sorted(weights.keys() - {OTHERS}, key=lambda name: (-weights[name], name))
    shown = {name: weights[name] for name in names[:_MAX_SHOWN]}
    others = sum(weights[name] for name in names[_MAX_SHOWN:]) + weights.get(OTHERS, 0.0)
    return {**shown, OTHERS: others} if others else shown


def smoothed_rows(row_shares: Sequence[Tensors]) -> list[Tensors]:
    """Smooth the row shares of several uploads."""
    return [{name: smoothed(shares) for name, shares in each.items()} for each in row_shares]
