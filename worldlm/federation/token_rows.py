"""Averaging row by row: who read a token more often says more about its row of the embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.parameters import Tensors


@dataclass(slots=True)
class Tally:
    """How often each token occurred in a fit, which may be taken up again after its last finished optimizer step."""

    settled: Tensor
    """Counts of the optimizer steps before the running one, int64 [vocab]."""
    running: Tensor
    """Counts of the running optimizer step, int64 [vocab]."""
    start: int = 0
    """Position in the fit, in batches, at which the running optimizer step begins."""

    @classmethod
    def empty(cls, num_rows: int, device: torch.device | str = "cpu") -> "Tally":
        """Return a tally of nothing for a vocabulary of `num_rows`."""
        settled, running = torch.zeros(2, num_rows, dtype=torch.int64, device=device).unbind()
        return cls(settled, running)

    @property
    def total(self) -> Tensor:
        """Counts so far, int64 [vocab]."""
        return self.settled + self.running

    def add_(self, tokens: Tensor, position: int, batches_per_step: int) -> None:
        """Count a batch, in place. Batches of an optimizer step that is begun anew are counted once.

        Args:
            tokens: int64, any shape, each at least 0 and below the size of the vocabulary.
            position: The batch's place in the fit, from 0.
            batches_per_step: Batches that one optimizer step accumulates.
        """
        if position % batches_per_step == 0:
            if position > self.start:
                self.settled.add_(self.running)
            self.running.zero_()
            self.start = position
        flat = tokens.flatten()
        self.running.scatter_add_(0, flat, torch.ones_like(flat))  # integers: exact in any order, and no wait on a GPU

    def to(self, device: torch.device | str) -> "Tally":
        """Return the tally on a device."""
        return Tally(self.settled.to(device), self.running.to(device), self.start)


def row_shares(counts: Tensor | None, num_rows: int) -> Tensor:
    """Return how one participant's say is spread over the rows.

    Args:
        counts: How often each token occurred, [vocab]; None where that is not told, and all rows get alike.
        num_rows: The size of the vocabulary.

    Returns:
        float64 [vocab], summing to 1; all 0 where nothing was counted.
    """
    if counts is None:
        return torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)
    exact = counts.to("cpu", torch.float64)
    return exact / exact.sum().clamp(min=1e-300)


@torch.no_grad()
def mean_of_rows(tensors: Sequence[Tensor], weights: Sequence[Tensor], start: Tensor) -> Tensor:
    """Average row by row, `mean[r] = sum_i weights_i[r] tensors_i[r] / sum_i weights_i[r]`, in the order given.

    Args:
        tensors: One per participant, [vocab, ...].
        weights: One per participant, float64 [vocab], not negative.
        start: The federation's own tensor, whose rows stay where all weights are 0.

    Returns:
        A new tensor: one accumulator, whatever the number of participants.
    """
    weights = [weight.to(start.device) for weight in weights]
    total = torch.stack(weights).sum(dim=0)
    seen = total > 0
    mean = torch.zeros_like(start)
    for tensor, weight in zip(tensors, weights, strict=True):
        share = torch.where(seen, weight / total.where(seen, torch.ones_like(total)), 0.0)
        mean.addcmul_(tensor, share.to(start.dtype).view(-1, *[1] * (start.dim() - 1)))
    mean[~seen] = start[~seen]
    return mean


def weighted_mean_by_rows(
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    shares: Sequence[Mapping[str, Tensor]],
    start: Mapping[str, Tensor],
) -> Tensors:
    """Return the weighted mean of models, of which some tensors are averaged row by row.

    A row's weight is the model's weight times the share that the row has in it; a row without weight stays the
    federation's. Where all models have the same shares, none 0, this is `weighted_mean`.

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, not negative, not all 0.
        shares: One mapping per model: `row_shares` by the name of a tensor to be averaged by rows.
        start: The federation's own tensors, by name.

    Returns:
        New tensors, in the order of the models' names.

    Raises:
        ValueError: As `weighted_mean`.
    """
    by_rows = shares[0].keys()
    mean = weighted_mean([{n: t for n, t in model.items() if n not in by_rows} for model in models], weights)
    for name in by_rows:
        tensors = [model[name] for model in models]
        of_rows = [share[name] * weight for share, weight in zip(shares, weights, strict=True)]
        mean[name] = mean_of_rows(tensors, of_rows, start[name])
    return {name: mean[name] for name in models[0]}
