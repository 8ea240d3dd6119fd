"""Attention over key layers: a node's keys are the query, and the candidates are the layers of other nodes.

In the paper (arXiv 2405.14446), a node attends over the key layers of its constituents. This project compares the
changes since the common initial keys, which is its own reading: the raw keys of all nodes share their initialisation,
so that all scores on raw keys would be nearly equal.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worldlm.federation.averaging import weighted_sum
from worldlm.federation.parameters import Tensors, chunk_size, chunks, model_chunks
from worldlm.federation.token_rows import sum_of_rows

_ROUNDING = 1e-6
"""A relative change this small is float32 rounding and has no direction."""


_ROWS = 64
"""Sources that are multiplied with as many others at a time."""

_LARGEST_POWER = 700.0
"""The largest power of e that a number can hold."""

_LEAST_SHARE = 0.1
"""A smaller rest of an average is not recovered: rounding and delays would count ten times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Key and value layers of one node, or averaged over several nodes."""

    keys: Mapping[str, Tensor]
    """Key layers, by name."""
    values: Mapping[str, Tensor]
    """The value layers that belong to them."""
    row_shares: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a value tensor that is mixed row by row -> the distribution of the source's weight over its rows, float32
    [rows], each above 0."""
    num_nodes: float = 1.0
    """How many nodes it counts for, above 0."""
    scale: float
    """L2 norm of the change of the keys since the common initial keys; for several nodes, the mean of their norms."""


def mean_scale(sources: Sequence[Source]) -> float:
    """Return the mean scale of the nodes that several sources count for."""
    total = sum(source.num_nodes for source in sources)
    return sum(source.num_nodes * source.scale for source in sources) / total


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """The result of attention."""

    source: Source
    """The mixed layers. Attended over with the same query and temperature, they count as much as all they mix."""
    weights: list[float]
    """Weight of every source in the mixture; they sum to 1."""
    own_weight: float
    """Weight, from 0 to 1, that the attending node gives to its own layers; the mixture has the rest."""


@torch.no_grad()
def attend(
    query: Source | None, sources: Sequence[Source], centre: Mapping[str, Tensor], *, temperature: float
) -> Mixture:
    """Mix the layers of several sources by attention over their keys.

    With `dQ = query.keys - centre` and `dK_i = keys_i - centre`, each flattened:
    ``score_i = dQ.dK_i / (|dQ| scale_i)``, ``w_i ~ num_nodes_i exp(score_i / temperature)``,
    ``K = sum_i w_i K_i``, ``V = sum_i w_i V_i``. The score says how far a source has gone in the direction of the
    query, relative to how much it has learnt. With the average keys of all nodes as the centre, what all have learnt
    alike does not count, and no source is preferred while the nodes differ little. In row r of a tensor that is mixed
    row by row, source i has the weight ``w_i row_shares_i[r]``, relative to the other sources.

    The query's own layers count as much as those of the best source: ``own ~ num_nodes exp(max_i score_i /
    temperature)``. With their own score, which is the largest, a node would learn little from others.

    Args:
        query: The attending node; None if it has no layers of its own, as a listener. Then all scores are 0, its own
            weight is 0, and the mixture is the average over all nodes.
        sources: At least one.
        centre: The keys that changes are measured from.
        temperature: Above 0; near 0 only the best source counts, towards infinity all nodes count equally.

    Returns:
        The mixture, in new tensors. There is one accumulator, and the tensors that are read at a time are no larger
        than a model.
    """
    scores = [0.0] * len(sources) if query is None else similarities(query, sources, centre)
    best = max(scores)
    powers = [(score - best) / temperature for score in scores]
    masses = [math.log(source.num_nodes) + power for source, power in zip(sources, powers, strict=True)]
    weights, total = _softmax(masses), _log_sum(masses)
    scale = math.fsum(weight * source.scale for weight, source in zip(weights, sources, strict=True))
    # the score of the mixture is the mean of those of its sources, weighted by their scales
    parts = [weight * source.scale / (scale or 1.0) for weight, source in zip(weights, sources, strict=True)]
    power = math.fsum(part * power for part, power in zip(parts, powers, strict=True) if part)
    mixed = Source(
        **mixed_layers(sources, weights),
        num_nodes=math.exp(min(total - power, _LARGEST_POWER)),
        scale=scale,
    )
    own_weight = 0.0 if query is None else _softmax([math.log(query.num_nodes), total])[0]
    return Mixture(source=mixed, weights=weights, own_weight=own_weight)


def mixed_layers(sources: Sequence[Source], weights: Sequence[float]) -> dict[str, Tensors]:
    """Return the weighted sum of the layers of several sources, as new tensors, by field of `Source`.

    Args:
        sources: At least one.
        weights: One per source, summing to 1.
    """
    keys, values, shares = ([getattr(source, part) for source in sources] for part in ("keys", "values", "row_shares"))

    def value(name: str) -> Tensor:
        if name in shares[0]:
            return sum_of_rows(values, name, shares, weights)
        return weighted_sum(values, name, weights)

    return {
        "keys": {name: weighted_sum(keys, name, weights) for name in keys[0]},
        "values": {name: value(name) for name in values[0]},
        "row_shares": {name: weighted_sum(shares, name, weights) for name in shares[0]},
    }


@torch.no_grad()
def without(average: Source, parts: Sequence[tuple[Source, float]]) -> Source | None:
    """Return an average without some of the nodes that it contains, so that they can count on their own.

    ``K = (K_average - sum_i share_i K_i) / (1 - sum_i share_i)``, and the same for the values. Rows of which the parts
    have nearly all the weight stay as they are in the average.

    Args:
        average: Layers averaged over several nodes.
        parts: Layers that the average contains, and the share of each in it.

    Returns:
        The rest, in new tensors; None if nothing is left.
    """
    left = 1.0 - math.fsum(share for _, share in parts)
    num_nodes = average.num_nodes - math.fsum(part.num_nodes for part, _ in parts)
    if left < _LEAST_SHARE or num_nodes <= 0:
        return None
    scale = average.num_nodes * average.scale - math.fsum(part.num_nodes * part.scale for part, _ in parts)
    factors = [1.0 / left, *(-share / left for _, share in parts)]
    layers = mixed_layers([average, *(part for part, _ in parts)], factors)
    for name, shares in layers["row_shares"].items():
        least = _LEAST_SHARE * average.row_shares[name]
        few = (shares < least).to(layers["values"][name].device)
        layers["values"][name][few] = average.values[name][few]
        shares.copy_(shares.maximum(least))
    return Source(
        **layers,
        num_nodes=num_nodes,
        scale=max(0.0, scale / num_nodes),
    )


@torch.no_grad()
def similarities(query: Source, sources: Sequence[Source], centre: Mapping[str, Tensor]) -> list[float]:
    """Return `dQ.dK_i / (|dQ| scale_i)` for every source, with `dQ = query.keys - centre` and `dK_i = keys_i - centre`.

    With the common initial keys as the centre, this is the cosine for a single node, and for an average over several
    nodes the mean of the cosines with each of them, weighted by their scales: an average is not preferred for being
    one.

    Products are computed in float64 and added in a fixed order: over the chunks of a tensor, then over the tensors of
    the centre. The score is 0 for a query or a source without change, up to float32 rounding.

    Args:
        query: The attending node.
        sources: What it attends to; only a few of their tensors are in memory at a time.
        centre: The keys that changes are measured from, same names and shapes.
    """
    products, query_square, start_square = [0.0] * len(sources), 0.0, 0.0
    for name, start in centre.items():
        keys = [source.keys for source in sources]
        for group in model_chunks(keys, name):
            found, *squares = _products(query.keys[name], [candidate[name] for candidate in keys[group]], start)
            products[group] = [total + product for total, product in zip(products[group], found, strict=True)]
        query_square, start_square = query_square + squares[0], start_square + squares[1]
    least = _ROUNDING * math.sqrt(start_square)
    norm = math.sqrt(query_square)
    return [
        0.0 if min(norm, source.scale) <= least else product / (norm * source.scale)
        for product, source in zip(products, sources, strict=True)
    ]


@torch.no_grad()
def similarity_matrix(sources: Sequence[Source], centre: Mapping[str, Tensor]) -> Tensor:
    """Return the `similarities` of each of many sources with all of them, by products of matrices.

    Args:
        sources: At most `_ROWS` of one tensor of each are in memory twice at a time.
        centre: The keys that changes are measured from.

    Returns:
        float64 [number of sources, number of sources], on the CPU: row i has the scores with source i as the query. It
        equals `similarities` up to the rounding of float32 products.
    """
    number, start_square = len(sources), 0.0
    products = torch.zeros(number, number, dtype=torch.float64)
    for name, start in centre.items():
        start_square += float(torch.linalg.vector_norm(start, dtype=torch.float64)) ** 2
        for i in range(0, number, _ROWS):
            rows = _changes(sources[i : i + _ROWS], name, start)
            for j in range(i, number, _ROWS):
                columns = rows if i == j else _changes(sources[j : j + _ROWS], name, start)
                block = (rows @ columns.T).to("cpu", torch.float64)
                products[i : i + _ROWS, j : j + _ROWS] += block
                if i != j:
                    products[j : j + _ROWS, i : i + _ROWS] += block.T
    least = _ROUNDING * math.sqrt(start_square)
    norms, scales = products.diagonal().sqrt(), torch.tensor([source.scale for source in sources], dtype=torch.float64)
    lengths = norms[:, None] * scales[None, :]
    counts = (norms > least)[:, None] & (scales > least)[None, :]
    return torch.where(counts, products / torch.where(counts, lengths, 1.0), 0.0)


def _changes(sources: Sequence[Source], name: str, start: Tensor) -> Tensor:
    return torch.stack([(source.keys[name] - start).flatten().float() for source in sources])


def _products(query: Tensor, keys: Sequence[Tensor], reference: Tensor) -> tuple[list[float], float, float]:
    """Return dQ.dK for every candidate, then dQ.dQ, and the squared norm of the reference.

    With dQ = query - reference and dK = keys - reference. Every tensor is read once, chunk by chunk in parallel.
    """
    sums, query_square, reference_square = [0.0] * len(keys), 0.0, 0.0
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
            sums[i] += float(torch.dot(left, right))
    return sums, query_square, reference_square


def _log_sum(masses: Sequence[float]) -> float:
    """Return log(sum(exp(masses))) without overflow."""
    largest = max(masses)
    return largest + math.log(math.fsum(math.exp(mass - largest) for mass in masses))


def _softmax(masses: Sequence[float]) -> list[float]:
    total = _log_sum(masses)
    return [math.exp(mass - total) for mass in masses]


def softmax_weights(scores: Sequence[float], temperature: float) -> list[float]:
    """Return softmax(scores / temperature), summing to 1; the temperature must be above 0."""
    exact = torch.tensor(scores, dtype=torch.float64)
    scaled = (exact - exact.max()) / temperature  # the largest becomes 0, so that no temperature overflows
    return [float(weight) for weight in torch.softmax(scaled, dim=0)]
