"""The proximal term of FedProx."""

from collections.abc import Mapping

import torch
from torch import Tensor


@torch.no_grad()
def add_proximal_gradient_(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor], mu: float
) -> None:
    """Add the gradient of `mu / 2 * |w - anchor|^2`, that is `mu * (w - anchor)`, in place (arXiv 1812.06127).

    Args:
        gradients: By name; overwritten. Parameters without a gradient are skipped.
        parameters: The weights w, by name.
        anchor: The weights that w is pulled towards, by name.
        mu: Strength of the pull, at least 0.
    """
    for name, gradient in gradients.items():
        gradient.add_(parameters[name] - anchor[name], alpha=mu)
