"""Personalised models: each participant gets a mixture of all models, weighted by distance."""

from collections.abc import Mapping

from torch import Tensor

from worldlm.federation.attention import softmax_weights
from worldlm.federation.parameters import distance


def mixture_weights(
    models: Mapping[str, Mapping[str, Tensor]], *, self_weight: float, sigma: float
) -> dict[str, dict[str, float]]:
    """Return the weights of all models in the mixture of each participant (after FedAMP, arXiv 2007.03797).

    Let `d_cj = |w_c - w_j|^2` over all tensors, and D the mean of d over all pairs. In the mixture of c, model c has
    the weight `self_weight`. The others share the rest in proportion to `exp(-d_cj / (sigma D))`. The fixed weight
    of a model in its own mixture, and the normalised weights of the others, are the heuristic form of the paper. The
    division by the mean distance is this project's choice: sigma has no unit and does not depend on the size of the
    model.

    Args:
        models: Participant -> its tensors, with the same names and shapes.
        self_weight: At least 0, below 1; a single model has the weight 1.
        sigma: Above 0; if small, only the nearest model counts, if large, all others count equally.

    Returns:
        Participant -> origin of a model -> its weight; the weights of a participant sum to 1.
    """
    names = list(models)
    squares: dict[frozenset[str], float] = {}
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            squares[frozenset((first, second))] = distance(models[first], models[second]) ** 2
    mean = sum(squares.values()) / max(len(squares), 1)
    weights = {}
    for name in names:
        others = [other for other in names if other != name]
        scores = [-squares[frozenset((name, other))] / (mean or 1.0) for other in others]
        shares = softmax_weights(scores, sigma) if others else []
        row = {other: (1.0 - self_weight) * share for other, share in zip(others, shares, strict=True)}
        row[name] = self_weight if others else 1.0
        weights[name] = {origin: row[origin] for origin in names}
    return weights
