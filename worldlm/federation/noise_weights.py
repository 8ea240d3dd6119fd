"""How much an upload with privacy noise counts.

The level of the noise is public, so its receiver can weigh an upload by what it tells. With updates `u_i` of expected
squared norm S^2 and noise of expected squared norm N_i, the weight of the least mean squared error is proportional to
`S^2 / (S^2 + N_i)`, its reliability (a Wiener filter). An upload without noise has the reliability 1.
"""

from collections.abc import Sequence

LEAST = 1e-9
"""Lower bound of a reliability, so that uploads that are all noise still have an average."""


def signal_square(
    weights: Sequence[float], squares: Sequence[float], noise: Sequence[float], bounds: Sequence[float]
) -> float:
    """Return the expected squared norm S^2 of an update without its noise.

    An update without noise counts with its squared norm. One with noise counts with that norm less the expected norm of
    the noise, between 0 and the square of its clip norm: the difference is itself noisy.

    Args:
        weights: Weight of every update, not negative, not all 0.
        squares: Squared L2 norm of every update, as it was received.
        noise: Expected squared L2 norm of the noise in every update; 0 if there is none.
        bounds: Bound of the L2 norm of every update without its noise; infinite if it is unknown.

    Returns:
        The weighted mean over the updates.
    """
    signals = [
        square if not level else min(bound**2, max(0.0, square - level))
        for square, level, bound in zip(squares, noise, bounds, strict=True)
    ]
    return sum(weight * signal for weight, signal in zip(weights, signals, strict=True)) / sum(weights)


def reliability(noise: float, signal: float) -> float:
    """Return `S^2 / (S^2 + N)`, in [1e-9, 1]; exactly 1 without noise.

    Args:
        noise: Expected squared norm N of the noise in an update.
        signal: Expected squared norm S^2 of the update.
    """
    return 1.0 if not noise else max(LEAST, signal / (signal + noise))


def noise_of_mean(shares: Sequence[float], noise: Sequence[float]) -> float:
    """Return the expected squared norm of the noise in a weighted mean: `sum_i shares_i^2 N_i`, noises independent.

    Args:
        shares: Weight of every update; they sum to 1.
        noise: Expected squared norm of the noise in every update.
    """
    return sum(share**2 * level for share, level in zip(shares, noise, strict=True))
