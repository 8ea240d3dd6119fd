"""Gaussian noise on a grid, drawn exactly.

A generator of floating-point normal numbers is not what the Gaussian mechanism assumes: its tails are cut off, and the
last bits of a noised value can reveal what was noised (Mironov, "On significance of the least significant bits for
differential privacy", CCS 2012). Here an update is first snapped to a grid of step ``sigma / 2^40``, and the noise is
a normal number rounded to the same grid:

    floor(z + 2^40 X) = z + floor(2^40 X)        z: an integer, X ~ N(0, 1)

The left-hand side is a function of the Gaussian mechanism's output, so the sum has exactly its guarantee, by
post-processing (Dwork and Roth, "The algorithmic foundations of differential privacy", 2014, proposition 2.1). Two
guarantees of the implementation complete the argument: `floor(2^40 X)` is drawn with the exact probabilities (this
module), and the snapped update is not longer than its bound (`worldlm.federation.privacy`).

How X is drawn: its sign is a random bit, and the density h of ``|X|`` is divided into strips of width 1/64. Below h,
each strip holds a box whose probability is a multiple of 2^-16. A table of 2^16 entries chooses a box with 16 random
bits, and within it ``|X|`` is uniform, so random bits are its digits. About 1 per cent of the entries lead to what is
left of h above the boxes, which is drawn by rejection. Comparisons there are made in float64. Where its rounding could
change the result, they are repeated with 320 random bits and decimal numbers of 100 digits. What remains is an error
below 2^-250, and a cut-off at 32 sigma, beyond which lies a probability below 10^-223.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from decimal import Decimal, localcontext
from functools import cache
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldlm.federation.noise_key import RandomStream, StreamFor, Words
from worldlm.topology.settings import MIN_NOISE_MULTIPLIER

FRACTION_BITS = 40
"""Binary digits of a normal number after the point."""

_STRIP_BITS = 6  # strips of width 1/64
_NUM_STRIPS = 32 << _STRIP_BITS
_DIGIT_BITS = FRACTION_BITS - _STRIP_BITS  # digits of |X| within its strip
_TABLE_SIZE = 2**16
_CHUNK = 2**16  # numbers that are drawn at once, so that they stay in the processor's cache

# Bounds, far above the rounding errors of float64: of a cumulative probability, and of a ratio of densities.
_STRIP_MARGIN = 2.0**-40
_RATIO_MARGIN = 2.0**-34

_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798214808651"
)

_MAIN, _REMAINDER, _MORE_DIGITS = range(3)  # branches of the stream


@torch.no_grad()
def add_noise_(
    tensors: Iterable[Tensor], stream: StreamFor, *, scale: float, clip_norm: float, noise_multiplier: float
) -> None:
    """Multiply tensors by `scale`, snap them to a grid towards 0, and add Gaussian noise on this grid, in place.

    The step of the grid is ``noise_multiplier * clip_norm / 2^40``. Snapping towards 0 never makes a vector longer.

    Args:
        tensors: float32 or float64, all finite, taken as one vector that is at most `clip_norm` long after scaling.
        stream: Makes the random stream, given the values that determine the scaled vector.
        scale: Factor, for clipping.
        clip_norm: Above 0.
        noise_multiplier: Standard deviation of the noise divided by `clip_norm`, at least `MIN_NOISE_MULTIPLIER`, so
            that sums are exact in float64.

    Raises:
        ValueError: If `noise_multiplier` is too small.
    """
    if noise_multiplier < MIN_NOISE_MULTIPLIER:
        raise ValueError(f"noise_multiplier is {noise_multiplier:g}: it must be 0 or at least {MIN_NOISE_MULTIPLIER}")
    tensors = list(tensors)
    step = noise_multiplier * clip_norm / 2**FRACTION_BITS
    words = stream([torch.tensor([scale, clip_norm, noise_multiplier], dtype=torch.float64), *tensors])
    for tensor in tensors:
        values = tensor.cpu().numpy().reshape(-1)  # a view, if the tensor is contiguous and on the CPU
        for begin in range(0, len(values), _CHUNK):
            part = values[begin : begin + _CHUNK]
            sums = part.astype(np.float64)
            sums *= scale / step
            np.trunc(sums, out=sums)
            sums += _draw(words, len(part))
            sums += 0.5  # half a step, so that the mean of the noise is 0
            sums *= step
            part[:] = sums
        tensor.copy_(torch.from_numpy(values).view(tensor.shape))


def rounded_gaussian(stream: RandomStream, size: int) -> NDArray[np.int64]:
    """Draw ``floor(2^40 X)`` for independent standard normal X.

    Args:
        stream: Source of random words; it may already have been used.
        size: How many numbers to draw.

    Returns:
        Integers, shape [size].
    """
    numbers = np.empty(size, np.int64)
    for begin in range(0, size, _CHUNK):
        part = numbers[begin : begin + _CHUNK]
        part[:] = _draw(stream, len(part))
    return numbers


def _draw(stream: RandomStream, size: int) -> NDArray[np.int64]:
    words = stream.branch(_MAIN).take(size)
    strips = _table().take((words >> np.uint64(48)).view(np.int64)).astype(np.int64)  # the upper 16 bits
    remainder = np.flatnonzero(strips < 0)
    strips <<= _DIGIT_BITS
    magnitudes: NDArray[np.int64] = words.view(np.int64) & (2**_DIGIT_BITS - 1)  # the lower 34 bits
    magnitudes |= strips
    if len(remainder):
        magnitudes[remainder] = _draw_remainder(stream, len(remainder))
    words <<= np.uint64(16)  # bit 47 is the sign
    signs = words.view(np.int64)
    signs >>= 63  # 0, or -1 for a negative number
    magnitudes ^= signs  # floor(-x) is -floor(x) - 1, except where x is an integer, which has probability 0
    return magnitudes


# ---------------------------------------------------------------------- the boxes, and what is left above them


def _box_counts() -> NDArray[np.int64]:
    """Return the number of table entries of each strip's box, shape [strips]: the box must fit below the density."""
    ends = np.arange(1, _NUM_STRIPS + 1) / 2**_STRIP_BITS
    masses = math.sqrt(2 / math.pi) * np.exp(-ends * ends / 2) / 2**_STRIP_BITS
    counts: NDArray[np.int64] = np.floor(masses * _TABLE_SIZE).astype(np.int64)
    return counts


@cache
def _table() -> NDArray[np.int16]:
    """Return the strip of each entry of the table, or -1 for the remainder; shape [2^16]."""
    table = np.full(_TABLE_SIZE, -1, np.int16)
    boxes = np.repeat(np.arange(_NUM_STRIPS, dtype=np.int16), _box_counts())
    table[: len(boxes)] = boxes
    return table


@cache
def _envelope() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the density of each strip's box, and the largest density of the remainder in each strip.

    Both have shape [strips] and are relative to the density of ``|X|`` at 0.
    """
    starts = np.arange(_NUM_STRIPS) / 2**_STRIP_BITS
    boxes = _box_counts() / _TABLE_SIZE * 2**_STRIP_BITS * math.sqrt(math.pi / 2)
    return boxes, np.exp(-starts * starts / 2) - boxes


@cache
def _above() -> NDArray[np.float64]:
    """Return, for each strip, the envelope's mass beyond its start relative to the whole; in ascending order."""
    beyond = np.cumsum(_envelope()[1][::-1])
    above: NDArray[np.float64] = beyond / beyond[-1]
    return above


def _draw_remainder(stream: RandomStream, size: int) -> NDArray[np.int64]:
    """Draw ``floor(2^40 |X|)`` from what is left of the density above the boxes, by rejection; shape [size]."""
    drawn: list[NDArray[np.int64]] = []
    missing = size
    while missing > 0:
        accepted = _propose(stream, 2 * missing + 16)[:missing]
        drawn.append(accepted)
        missing -= len(accepted)
    return np.concatenate(drawn)


def _propose(stream: RandomStream, size: int) -> NDArray[np.int64]:
    """Propose numbers below the envelope, and return those that lie below the density of the remainder."""
    choices, digits, heights = stream.branch(_REMAINDER).take(3 * size).reshape(3, size)
    above, (boxes, envelope) = _above(), _envelope()
    level = choices * 2.0**-64
    position = np.minimum(np.searchsorted(above, level, side="right"), _NUM_STRIPS - 1)
    strips = _NUM_STRIPS - 1 - position
    values = (strips + digits * 2.0**-64) / 2**_STRIP_BITS
    ratios = (np.exp(-values * values / 2) - boxes[strips]) / envelope[strips]
    height = heights * 2.0**-64
    accepted = height < ratios
    magnitudes = (strips << _DIGIT_BITS) | (digits >> np.uint64(64 - _DIGIT_BITS)).astype(np.int64)
    below = np.where(position > 0, above[position - 1], 0.0)
    distance = np.minimum(np.abs(above[position] - level), np.abs(level - below))
    unsure = (distance <= _STRIP_MARGIN) | (np.abs(height - ratios) <= _RATIO_MARGIN)
    for i in np.flatnonzero(unsure).tolist():
        words = [int(choices[i]), int(digits[i]), int(heights[i])]
        magnitudes[i], accepted[i] = _propose_exactly(words, stream.branch(_MORE_DIGITS))
    result: NDArray[np.int64] = magnitudes[accepted]
    return result


def _propose_exactly(words: list[int], more: Words) -> tuple[int, bool]:
    """Repeat one proposal with four more words for each of its three numbers, in decimal numbers of 100 digits.

    Returns:
        The proposed number, and whether it is accepted.
    """
    with localcontext() as context:
        context.prec = 100
        level, digits, height = (_extended(word, more) for word in words)
        boxes, envelope = _exact_envelope()
        strip = _NUM_STRIPS - 1 - bisect_right(_exactly_above(), level * _exactly_above()[-1])
        value = (strip + digits) / 2**_STRIP_BITS
        accepted = height * envelope[strip] < (-value * value / 2).exp() - boxes[strip]
        return (strip << _DIGIT_BITS) | int(digits * 2**_DIGIT_BITS), bool(accepted)


def _extended(word: int, more: Words) -> Decimal:
    """Return a number in [0, 1) with the 64 binary digits of a word, and 256 more."""
    for further in more.take(4).tolist():
        word = (word << 64) | further
    return Decimal(word) / Decimal(2**320)


@cache
def _exactly_above() -> list[Decimal]:
    """Return what `_above` does, to 100 digits and not relative to the whole."""
    with localcontext() as context:
        context.prec = 100
        return list(accumulate(reversed(_exact_envelope()[1])))


@cache
def _exact_envelope() -> tuple[list[Decimal], list[Decimal]]:
    """Return what `_envelope` does, to 100 digits."""
    with localcontext() as context:
        context.prec = 100
        scale = (_PI / 2).sqrt() * 2**_STRIP_BITS / _TABLE_SIZE
        boxes = [count * scale for count in map(Decimal, _box_counts().tolist())]
        starts = [Decimal(strip) / 2**_STRIP_BITS for strip in range(_NUM_STRIPS)]
        return boxes, [(-start * start / 2).exp() - box for start, box in zip(starts, boxes, strict=True)]
