"""Clusters of participants whose updates are similar."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from worldlm.federation.parameters import chunks


@torch.no_grad()
def update_similarities(models: Sequence[Mapping[str, Tensor]], start: Mapping[str, Tensor]) -> list[list[float]]:
    """Return the cosines between the updates of models, `model - start`, all tensors taken as one vector.

    Args:
        models: Tensors by name, the same names and shapes in each.
        start: The tensors that the updates are relative to; other names are ignored.

    Returns:
        [model][model], each in [-1, 1]; 0 if one of the updates is 0.
    """
    products = torch.zeros(len(models), len(models), dtype=torch.float64)
    for name in models[0]:
        for before, *after in zip(
            *(chunks(tensor) for tensor in (start[name], *(m[name] for m in models))), strict=True
        ):
            updates = torch.stack([chunk - before for chunk in after]).double()
            products += (updates @ updates.T).cpu()
    norms = products.diagonal().sqrt()
    cosines: list[list[float]] = (products / torch.outer(norms, norms).clamp(min=1e-300)).clamp(-1, 1).tolist()
    return cosines


def agglomerate(similarities: Sequence[Sequence[float]], min_similarity: float) -> list[int]:
    """Cluster items bottom-up by average linkage, as FL+HC clusters updates (Briggs et al., arXiv 2004.11791).

    Each item begins as a cluster. The two clusters with the largest mean similarity between their items are merged, as
    long as it is at least `min_similarity`. Of equal pairs, the first in order of the clusters' first items is merged.

    Args:
        similarities: [item][item], symmetric.
        min_similarity: If small, all items are in one cluster; if large, each is alone.

    Returns:
        The cluster of each item: numbers from 0, in order of the clusters' first items.
    """
    means = torch.tensor(similarities, dtype=torch.float64).fill_diagonal_(-math.inf)  # between clusters
    clusters = [[item] for item in range(len(similarities))]
    while True:
        first, second = divmod(int(means.argmax()), len(means))
        if not means[first, second] >= min_similarity:
            break
        sizes = len(clusters[first]), len(clusters[second])
        merged = (sizes[0] * means[first] + sizes[1] * means[second]) / sum(sizes)
        means[first], means[:, first] = merged, merged
        means[second], means[:, second], means[first, first] = -math.inf, -math.inf, -math.inf
        clusters[first], clusters[second] = clusters[first] + clusters[second], []
    numbers = {item: number for number, items in enumerate(filter(None, clusters)) for item in items}
    return [numbers[item] for item in range(len(similarities))]
