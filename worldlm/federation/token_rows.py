"""Averaging by rows: a participant that read a token more often has more weight in its row of the embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_mean, weighted_sum
from worldlm.federation.parameters import Tensors

_SMOOTHING = 0.01
"""Part of the weight of a participant that all rows of a mixture share equally."""


@dataclass(slots=True)
class Tally:
    """Counts of each token in a fit; a resumed fit continues after its last finished optimizer step."""

    settled: Tensor
    """Counts of the finished optimizer steps, int64 [vocab]."""
    running: Tensor
    """Counts of the current optimizer step, int64 [vocab]."""
    start: int = 0
    """Position in the fit, in batches, at which the current optimizer step begins."""

    @classmethod
    def empty(cls, num_rows: int, device: torch.device | str = "cpu") -> "Tally":
        """Return a tally with all counts 0 for a vocabulary of `num_rows`."""
        settled, running = torch.zeros(2, num_rows, dtype=torch.int64, device=device).unbind()
        return cls(settled, running)

    @property
    def total(self) -> Tensor:
        """Counts so far, int64 [vocab]."""
        return self.settled + self.running

    def add_(self, tokens: Tensor, position: int, batches_per_step: int, counted: Tensor | None = None) -> None:
        """Count a batch, in place. If an optimizer step is repeated, its batches are counted once.

        Args:
            tokens: int64, any shape, each at least 0 and below the size of the vocabulary.
            position: The index of the batch in the fit, from 0.
            batches_per_step: Batches that an optimizer step accumulates.
            counted: Which of the tokens are counted, bool, same shape; by default all.
        """
        if position % batches_per_step == 0:
            if position > self.start:
                self.settled.add_(self.running)
            self.running.zero_()
            self.start = position
        flat = tokens.flatten()
        amounts = torch.ones_like(flat) if counted is None else counted.flatten().to(flat.dtype)
        # integers are exact in any order, and a GPU need not synchronise
        self.running.scatter_add_(0, flat, amounts)

    def to(self, device: torch.device | str) -> "Tally":
        """Return the tally on a device."""
        return Tally(self.settled.to(device), self.running.to(device), self.start)


def row_shares(counts: Tensor | None, num_rows: int) -> Tensor:
    """Return how the weight of a participant is distributed over the rows.

    Args:
        counts: How often each token occurred, [vocab]; None if the counts are unknown, for equal shares.
        num_rows: The size of the vocabulary.

    Returns:
        float64 [vocab], summing to 1; all 0 if all counts are 0.
    """
    if counts is None:
        return torch.full((num_rows,), 1.0 / num_rows, dtype=torch.float64)
    exact = counts.to("cpu", torch.float64)
    return exact / exact.sum().clamp(min=1e-300)


def smoothed(shares: Tensor) -> Tensor:
    """Return row shares for a mixture, in which also a participant that never read a token has a little weight.

    Otherwise an unrelated node would decide alone about a row that no related node has read.

    Args:
        shares: The result of `row_shares`.

    Returns:
        float32 [vocab], summing to 1, each above 0.
    """
    return ((1.0 - _SMOOTHING) * shares + _SMOOTHING / len(shares)).float()


@torch.no_grad()
def mean_of_rows(
    tensors: Sequence[Tensor], weights: Sequence[Tensor], start: Tensor, noise: Sequence[float] | None = None
) -> Tensor:
    """Average row by row, `mean[r] = sum_i weights_i[r] tensors_i[r] / sum_i weights_i[r]`, summed in the given order.

    Args:
        tensors: One per participant, [vocab, ...].
        weights: One per participant, float64 [vocab], not negative.
        start: The federation's own tensor, which supplies the rows whose weights are all 0.
        noise: One per participant: the expected squared norm of the noise in its update, as a multiple of that of the
            update without noise. A row moves from `start` to its mean by `1 / (1 + sum_i shares_i[r]^2 noise_i)`. By
            default there is no noise.

    Returns:
        A new tensor. There is one accumulator for all participants.
    """
    weights = [weight.to(start.device) for weight in weights]
    total = torch.stack(weights).sum(dim=0)
    seen = total > 0
    mean = torch.zeros_like(start)
    noise_of_mean = torch.zeros_like(total)
    for i, (tensor, weight) in enumerate(zip(tensors, weights, strict=True)):
        share = torch.where(seen, weight / total.where(seen, torch.ones_like(total)), 0.0)
        mean.addcmul_(tensor, _by_row(share, start))
        if noise is not None:
            noise_of_mean += share**2 * noise[i]
    mean[~seen] = start[~seen]
    return mean if noise is None else torch.lerp(start, mean, _by_row(1 / (1 + noise_of_mean), start))


@torch.no_grad()
def sum_of_rows(
    models: Sequence[Mapping[str, Tensor]], name: str, shares: Sequence[Mapping[str, Tensor]], weights: Sequence[float]
) -> Tensor:
    """Return `sum_i weights_i shares_i[r] x_i[r] / sum_i weights_i shares_i[r]` for every row r of one tensor.

    Args:
        models: Tensors x_i by name, [vocab, ...]. That of a model is read, added and released before the next one.
        name: The tensor.
        shares: Row shares of every model by the name of the tensor, float32 [vocab].
        weights: One per model.

    Returns:
        A new tensor. There is one accumulator for all models.
    """
    total, mixed = weighted_sum(shares, name, weights), None
    for model, share, weight in zip(models, shares, weights, strict=True):
        mixed = _add_rows(mixed, model[name], weight * share[name] / total)
    assert mixed is not None, "there is at least one model"
    return mixed


def _add_rows(total: Tensor | None, tensor: Tensor, factors: Tensor) -> Tensor:
    by_row = _by_row(factors, tensor)
    return tensor * by_row if total is None else total.addcmul_(tensor, by_row)


@torch.no_grad()
def own_row_weights(own_weight: float, own: Tensor, others: Tensor) -> Tensor:
    """Return the weight of a node's own rows beside those of a mixture.

    Args:
        own_weight: The node's own weight, from 0 to 1; the mixture has the rest.
        own: The node's row shares, float32 [vocab].
        others: The row shares of the mixture.

    Returns:
        float32 [vocab], from 0 to 1.
    """
    return own_weight * own / (own_weight * own + (1.0 - own_weight) * others)


@torch.no_grad()
def move_rows_towards_(target: Tensor, source: Tensor, rates: Tensor) -> None:
    """Move the rows of `target`, in place: `target[r] <- (1 - rates[r]) target[r] + rates[r] source[r]`.

    Args:
        target: [vocab, ...].
        source: The tensor to move towards.
        rates: float32 [vocab], each from 0 to 1; at 1 the row becomes an exact copy.
    """
    target.copy_(torch.lerp(target, source, _by_row(rates, target)))


def _by_row(factors: Tensor, like: Tensor) -> Tensor:
    """Return one factor per row in a shape that multiplies a tensor with these rows."""
    return factors.to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))


def weighted_mean_by_rows(
    models: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    shares: Sequence[Mapping[str, Tensor]],
    start: Mapping[str, Tensor],
    noise: Sequence[float] | None = None,
) -> Tensors:
    """Return the weighted mean of models, with some tensors averaged by rows.

    The weight of a row is the weight of the model times the share of the row. A row without weight is taken from the
    federation's own tensor. If all models have the same shares, none of them 0, this equals `weighted_mean`.

    Args:
        models: Tensors by name, the same names and shapes in each.
        weights: One per model, not negative, not all 0.
        shares: One mapping per model: name of a tensor that is averaged by rows -> its `row_shares`.
        start: The federation's own tensors, by name.
        noise: As in `mean_of_rows`, for the tensors that are averaged by rows.

    Returns:
        New tensors, in the order of the models' names.

    Raises:
        ValueError: As `weighted_mean`.
    """
    by_rows = shares[0].keys()
    mean = weighted_mean(
        [{name: tensor for name, tensor in model.items() if name not in by_rows} for model in models], weights
    )
    for name in by_rows:
        tensors = [model[name] for model in models]
        row_weights = [share[name] * weight for share, weight in zip(shares, weights, strict=True)]
        mean[name] = mean_of_rows(tensors, row_weights, start[name], noise)
    return {name: mean[name] for name in models[0]}
