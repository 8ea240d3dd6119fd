"""A model of its own for every participant: a mixture of all, in which the nearer weigh more."""

from collections.abc import Mapping

from torch import Tensor

from worldlm.federation.attention import softmax_weights
from worldlm.federation.parameters import distance


def mixture_weights(
    models: Mapping[str, Mapping[str, Tensor]], *, self_weight: float, sigma: float
) -> dict[str, dict[str, float]]:
    """Say how much of every model goes into the mixture of each (after FedAMP, arXiv 2007.03797).

    With `d_cj = |w_c - w_j|^2` over all tensors, and D the mean of d over all pairs: model c keeps `self_weight` of
    itself, and the others share the rest in proportion to `exp(-d_cj / (sigma D))`. That the weight of a model in
    its own mixture is set, and the others' normalised, is the paper's heuristic form; that distances are taken over
    their mean, so that sigma has no unit and does not depend on the model's size, is this project's.

    Args:
        models: By participant, the same names and shapes in each.
        self_weight: At least 0, below 1; a model alone keeps all of itself.
        sigma: Above 0; small takes the nearest alone, large all others alike.

    Returns:
        Weights by participant and by where the models come from; each row sums to 1.
    """
    names = list(models)
    squares: dict[frozenset[str], float] = {}
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            squares[frozenset((one, other))] = distance(models[one], models[other]) ** 2
    mean = sum(squares.values()) / max(len(squares), 1)
    weights = {}
    for name in names:
        others = [other for other in names if other != name]
        near = [-squares[frozenset((name, other))] / (mean or 1.0) for other in others]
        shares = softmax_weights(near, sigma) if others else []
        row = {other: (1.0 - self_weight) * share for other, share in zip(others, shares, strict=True)}
        row[name] = self_weight if others else 1.0
        weights[name] = {one: row[one] for one in names}
    return weights
