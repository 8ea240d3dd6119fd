"""The loss of batches in which not every token is predicted."""

import torch.nn.functional as F
from torch import Tensor


def mean_of_examples(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over the examples of each one's mean cross entropy, in float32.

    In this way the gradient of an example does not depend on how long the others are, as example-level privacy
    requires.

    Args:
        logits: float, shape [batch, seq, vocab_size].
        targets: Token ids, shape [batch, seq]; negative ones are not predicted.

    Returns:
        Nats per token, a scalar; zero, with gradients of zero, for a batch of size 0.
    """
    if len(targets) == 0:
        return logits.float().sum()
    is_token = targets >= 0
    ids = targets.clamp(min=0).long().flatten()
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids, reduction="none").view(targets.shape)
    return ((losses * is_token).sum(1) / is_token.sum(1).clamp(min=1)).mean()


def mean_of_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy over the tokens to predict, in float32.

    Args:
        logits: float, shape [batch, seq, vocab_size].
        targets: Token ids, int64 [batch, seq]; -100 where nothing is predicted.

    Returns:
        Nats per token, a scalar; zero, with gradients of zero, if nothing is to be predicted.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)
