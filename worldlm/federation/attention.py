"""Attention over layers: a node's key layers ask, the candidates' key layers answer, their values are taken.

The paper (arXiv 2405.14446) fixes that a node attends over its constituents' key layers; that scores are
taken on the change since the common initial keys is this project's reading: the raw keys of all nodes share
their initialisation, so that every score would be alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_sum
from worldlm.federation.parameters import Tensors, chunk_size, chunks, model_chunks

Similarity: TypeAlias = Literal["cosine", "dot", "distance"]
Granularity: TypeAlias = Literal["model", "block"]

# A change this small beside the layer itself is float32 rounding, and has no direction.
_ROUNDING = 1e-6


class KeyValue(NamedTuple):
    """One candidate: key layers and the value layers that come with them."""

    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Attended:
    """What attention gave."""

    keys: Tensors
    values: Tensors
    weights: dict[str, list[float]]
    """Weight of every candidate, by block ("" for the whole model); each list sums to 1."""

    @property
    def mean_weights(self) -> list[float]:
        """Weight of every candidate, averaged over blocks."""
        return [sum(column) / len(column) for column in zip(*self.weights.values(), strict=True)]


def block_of(name: str, granularity: Granularity = "block") -> str:
    """Return the block that a parameter belongs to: the first number between dots in its name, or ""."""
    found = re.search(r"\.(\d+)\.", name) if granularity == "block" else None
    return found.group(1) if found else ""


def similarities(
    query: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    similarity: Similarity = "cosine",
    granularity: Granularity = "model",
) -> dict[str, float]:
    """Compare what two nodes' key layers learnt since the common initial keys.

    With `dQ = query - reference` and `dK = keys - reference`, flattened: `cosine` is `dQ.dK / (|dQ| |dK|)`, in
    [-1, 1] up to rounding; `dot` is `dQ.dK / sqrt(d)`, d the number of coordinates; `distance` is
    `1 - |dQ - dK|^2 / (2 |dQ|^2)`, which is the cosine where both are equally long, 1/2 for a candidate that learnt
    nothing, and far below 0 for one that noise has carried away. A query without change, up to float32 rounding, is
    like nothing: all similarities are 0; so is, but for `distance`, that of a candidate without change.

    Args:
        query: Key layers of the asking node, by name.
        keys: Key layers of the candidate, same names and shapes.
        reference: The common initial key layers K0, same names and shapes.
        similarity: `cosine`, `dot` or `distance`.
        granularity: One figure for the whole `model`, or one per `block`.

    Returns:
        Similarity by block ("" for the whole model).
    """
    return _similarities(query, [keys], reference, similarity, granularity)[0]


@torch.no_grad()
def _similarities(
    query: Mapping[str, Tensor],
    keys: Sequence[Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    similarity: Similarity,
    granularity: Granularity,
) -> list[dict[str, float]]:
    """Return `similarities` for several candidates, of whom a few tensors are held at a time.

    Products are exact, in float64, and added up in one fixed order: chunk after chunk of a tensor, then tensor after
    tensor of the reference.
    """
    sums: list[dict[str, list[float]]] = [{} for _ in keys]
    for name, start in reference.items():
        block, size = block_of(name, granularity), float(start.numel())
        for now in model_chunks(keys, name):
            found, *fixed = _products(query[name], [candidate[name] for candidate in keys[now]], start)
            for total, (product, square) in zip(sums[now], found, strict=True):
                more = [product, square, *fixed, size]
                total[block] = [a + b for a, b in zip(total.get(block, [0.0] * 5), more, strict=True)]
    return [{block: _similarity(similarity, *figures) for block, figures in one.items()} for one in sums]


def _products(
    query: Tensor, keys: Sequence[Tensor], reference: Tensor
) -> tuple[list[tuple[float, float]], float, float]:
    """Return dQ.dK and dK.dK for every candidate, then dQ.dQ, and the square of the reference.

    With dQ = query - reference and dK = keys - reference. All tensors are gone over once, side by side.
    """
    sums, asking, begun = [(0.0, 0.0)] * len(keys), 0.0, 0.0
    change = reference.new_empty(chunk_size(reference))
    # Both rows begin at 64 bytes: a product's last bit may depend on where its first operand lies.
    rows = change.new_empty(2, len(change) + -len(change) % 8, dtype=torch.float64)
    for start, asked, *answers in zip(*map(chunks, (reference, query, *keys)), strict=True):
        left, right = rows[:, : len(start)]
        difference = change[: len(start)]
        left.copy_(torch.sub(asked, start, out=difference))
        asking += float(torch.dot(left, left))
        begun += float(torch.linalg.vector_norm(start, dtype=torch.float64)) ** 2
        for i, answer in enumerate(answers):
            right.copy_(torch.sub(answer, start, out=difference))
            sums[i] = (sums[i][0] + float(torch.dot(left, right)), sums[i][1] + float(torch.dot(right, right)))
    return sums, asking, begun


def _similarity(kind: Similarity, product: float, answer: float, asked: float, start: float, size: float) -> float:
    least = asked if kind == "distance" else min(asked, answer)
    if least <= _ROUNDING**2 * start or least == 0.0:
        return 0.0
    if kind == "distance":
        return 1.0 - (asked - 2 * product + answer) / (2 * asked)
    return float(product / ((asked * answer) ** 0.5 if kind == "cosine" else size**0.5))


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Return softmax(scores / temperature), summing to 1; the temperature must be above 0."""
    found = torch.tensor(scores, dtype=torch.float64)
    scaled = (found - found.max()) / temperature  # the largest becomes 0: no temperature is too low
    return [float(weight) for weight in torch.softmax(scaled, dim=0)]


def attention_weights(
    query: Mapping[str, Tensor],
    keys: Sequence[Mapping[str, Tensor]],
    reference: Mapping[str, Tensor],
    *,
    temperature: float,
    similarity: Similarity = "cosine",
    granularity: Granularity = "model",
    self_similarity: float | None = None,
) -> dict[str, list[float]]:
    """Return the weight of every candidate by block; arguments as `attend`, which takes no more than keys to weigh."""
    found = _similarities(query, keys, reference, similarity, granularity)
    if self_similarity is not None:
        found[0] = {block: self_similarity if own else own for block, own in found[0].items()}
    return {block: softmax_weights([f[block] for f in found], temperature) for block in found[0]}


@torch.no_grad()
def attend(
    query: Mapping[str, Tensor],
    candidates: Sequence[KeyValue],
    reference: Mapping[str, Tensor],
    *,
    temperature: float,
    similarity: Similarity = "cosine",
    granularity: Granularity = "model",
    self_similarity: float | None = None,
) -> Attended:
    """Attend over the candidates' key layers and take the weighted sum of their keys and values.

    ``score_i = similarity(query, keys_i) / temperature``, ``w = softmax(score)``, ``K = sum w_i K_i``,
    ``V = sum w_i V_i`` (ALGORITHM section 4; arXiv 2405.14446). With granularity `block`, values that belong
    to no block with keys, such as the final norm, take the weights averaged over blocks.

    Args:
        query: Key layers of the asking node, by name.
        candidates: Keys and values to attend over, at least one.
        reference: The common initial key layers K0.
        temperature: Above 0; towards 0 the best match is taken alone, towards infinity the mean of all.
        similarity: See `similarities`.
        granularity: One weight per candidate for the whole `model`, or one per `block`.
        self_similarity: Similarity of the first candidate, who asks, in the place of what it is; not where the query
            is without change, and all are alike.

    Returns:
        New tensors, and the weights in the order of the candidates: one accumulator, whatever their number, and of
        all of them no more than one model is held at once, first to be compared, then to be added up.
    """
    asked: dict[str, Any] = {"similarity": similarity, "granularity": granularity, "self_similarity": self_similarity}
    weights = attention_weights(query, [c.keys for c in candidates], reference, temperature=temperature, **asked)
    mean = [sum(column) / len(column) for column in zip(*weights.values(), strict=True)]

    def weighted(tensors: list[Mapping[str, Tensor]]) -> Tensors:
        rows = {name: weights.get(block_of(name, granularity), mean) for name in tensors[0]}
        return {name: weighted_sum(tensors, name, row) for name, row in rows.items()}

    return Attended(weighted([c.keys for c in candidates]), weighted([c.values for c in candidates]), weights)
