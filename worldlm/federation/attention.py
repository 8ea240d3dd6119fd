"""Attention over layers: a node's key layers are the query, and the candidates have key and value layers.

In the paper (arXiv 2405.14446), a node attends over the key layers of its constituents. This project computes the
scores on the change since the common initial keys, which is its own reading. The raw keys of all nodes share their
initialisation, so that all scores on raw keys would be nearly equal.
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

# A relative change this small is float32 rounding and has no direction.
_ROUNDING = 1e-6


class KeyValue(NamedTuple):
    """A candidate: its key layers and the value layers that belong to them."""

    keys: Mapping[str, Tensor]
    values: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Attended:
    """The result of attention."""

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
    match = re.search(r"\.(\d+)\.", name) if granularity == "block" else None
    return match.group(1) if match else ""


def similarities(
    query: Mapping[str, Tensor],
    keys: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    *,
    similarity: Similarity = "cosine",
    granularity: Granularity = "model",
) -> dict[str, float]:
    """Compare the changes of two nodes' key layers since the common initial keys.

    With `dQ = query - reference` and `dK = keys - reference`, flattened: `cosine` is `dQ.dK / (|dQ| |dK|)`, in
    [-1, 1] up to rounding; `dot` is `dQ.dK / sqrt(d)`, d the number of coordinates; `distance` is
    `1 - |dQ - dK|^2 / (2 |dQ|^2)`, which equals the cosine if both changes have the same norm. It is 1/2 for a
    candidate without change, and far below 0 for a candidate that noise has moved far away. For a query without change,
    up to float32 rounding, all similarities are 0. For a candidate without change, `cosine` and `dot` are 0.

    Args:
        query: Key layers of the attending node, by name.
        keys: Key layers of the candidate, same names and shapes.
        reference: The common initial key layers K0, same names and shapes.
        similarity: `cosine`, `dot` or `distance`.
        granularity: One similarity for the whole `model`, or one per `block`.

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
    """Return `similarities` for several candidates, with only a few of their tensors in memory at a time.

    Products are computed in float64 and added in a fixed order: over the chunks of a tensor, then over the tensors of
    the reference.
    """
    sums: list[dict[str, list[float]]] = [{} for _ in keys]
    for name, start in reference.items():
        block, size = block_of(name, granularity), float(start.numel())
        for group in model_chunks(keys, name):
            products, *fixed = _products(query[name], [candidate[name] for candidate in keys[group]], start)
            for total, (product, square) in zip(sums[group], products, strict=True):
                terms = [product, square, *fixed, size]
                total[block] = [a + b for a, b in zip(total.get(block, [0.0] * 5), terms, strict=True)]
    return [{block: _similarity(similarity, *figures) for block, figures in total.items()} for total in sums]


def _products(
    query: Tensor, keys: Sequence[Tensor], reference: Tensor
) -> tuple[list[tuple[float, float]], float, float]:
    """Return dQ.dK and dK.dK for every candidate, then dQ.dQ, and the squared norm of the reference.

    With dQ = query - reference and dK = keys - reference. Every tensor is read once, chunk by chunk in parallel.
    """
    sums, query_square, reference_square = [(0.0, 0.0)] * len(keys), 0.0, 0.0
    change = reference.new_empty(chunk_size(reference))
    # Both rows are aligned to 64 bytes, because the last bit of a product may depend on the alignment of its operands.
    rows = change.new_empty(2, len(change) + -len(change) % 8, dtype=torch.float64)
    for start, query_chunk, *key_chunks in zip(*map(chunks, (reference, query, *keys)), strict=True):
        left, right = rows[:, : len(start)]
        difference = change[: len(start)]
        left.copy_(torch.sub(query_chunk, start, out=difference))
        query_square += float(torch.dot(left, left))
        reference_square += float(torch.linalg.vector_norm(start, dtype=torch.float64)) ** 2
        for i, key_chunk in enumerate(key_chunks):
            right.copy_(torch.sub(key_chunk, start, out=difference))
            sums[i] = (sums[i][0] + float(torch.dot(left, right)), sums[i][1] + float(torch.dot(right, right)))
    return sums, query_square, reference_square


def _similarity(kind: Similarity, product: float, key: float, query: float, start: float, size: float) -> float:
    """Return the similarity from dQ.dK, the squared norms dK.dK, dQ.dQ and of the reference, and the coordinates."""
    least = query if kind == "distance" else min(query, key)
    if least <= _ROUNDING**2 * start or least == 0.0:
        return 0.0
    if kind == "distance":
        return 1.0 - (query - 2 * product + key) / (2 * query)
    return float(product / ((query * key) ** 0.5 if kind == "cosine" else size**0.5))


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Return softmax(scores / temperature), summing to 1; the temperature must be above 0."""
    exact = torch.tensor(scores, dtype=torch.float64)
    scaled = (exact - exact.max()) / temperature  # the largest becomes 0, so that no temperature overflows
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
    """Return the weight of every candidate by block; arguments as in `attend`, without values."""
    scores = _similarities(query, keys, reference, similarity, granularity)
    if self_similarity is not None:
        scores[0] = {block: self_similarity if score else score for block, score in scores[0].items()}
    return {block: softmax_weights([score[block] for score in scores], temperature) for block in scores[0]}


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
    """Attend over the candidates' key layers and return the weighted sums of their keys and values.

    ``score_i = similarity(query, keys_i) / temperature``, ``w = softmax(score)``, ``K = sum w_i K_i``,
    ``V = sum w_i V_i`` (ALGORITHM section 4; arXiv 2405.14446). With granularity `block`, values that belong
    to no block with keys, such as the final norm, take the weights averaged over blocks.

    Args:
        query: Key layers of the attending node, by name.
        candidates: Keys and values to attend over, at least one.
        reference: The common initial key layers K0.
        temperature: Above 0; near 0 only the best match counts, towards infinity all count equally.
        similarity: See `similarities`.
        granularity: One weight per candidate for the whole `model`, or one per `block`.
        self_similarity: Replaces the similarity of the first candidate, which is the attending node itself. It has no
            effect on a block in which the query has not changed, where all similarities are 0.

    Returns:
        New tensors, and the weights in the order of the candidates. Memory does not grow with the number of candidates:
        there is one accumulator, and the tensors that are read at a time are no larger than a model.
    """
    options: dict[str, Any] = {"similarity": similarity, "granularity": granularity, "self_similarity": self_similarity}
    weights = attention_weights(query, [c.keys for c in candidates], reference, temperature=temperature, **options)
    mean = [sum(column) / len(column) for column in zip(*weights.values(), strict=True)]

    def weighted(tensors: list[Mapping[str, Tensor]]) -> Tensors:
        rows = {name: weights.get(block_of(name, granularity), mean) for name in tensors[0]}
        return {name: weighted_sum(tensors, name, row) for name, row in rows.items()}

    return Attended(weighted([c.keys for c in candidates]), weighted([c.values for c in candidates]), weights)
