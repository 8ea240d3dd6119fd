"""Attention over layers, compared with a slow reference and in the limits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from worldlm.federation.attention import (
    Mixture,
    Source,
    attend,
    mixed_layers,
    similarities,
    similarity_matrix,
    softmax_weights,
    without,
)
from worldlm.federation.averaging import weighted_mean
from worldlm.federation.parameters import CHUNK, distance

KEY_SHAPES = {"blocks.0.norm.weight": (3,), "blocks.0.attn.weight": (4, 3), "blocks.11.attn.weight": (2, 5)}
VALUE_SHAPES = {"blocks.0.ffn.weight": (3, 2), "blocks.11.ffn.weight": (2,), "norm_f.weight": (3,)}


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = KEY_SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


REFERENCE = draw(0)


def node(seed: int) -> Source:
    keys = draw(seed)
    return Source(keys=keys, values=draw(1000 + seed, VALUE_SHAPES), scale=distance(keys, REFERENCE))


def test_without_keys_a_node_counts_as_many_times_as_it_has_nodes() -> None:
    """As with adapters that are all outside of the attention."""
    query, *others = (replace(node(seed), keys={}, scale=0.0) for seed in range(4))
    others[0] = replace(others[0], num_nodes=2.0)
    mixture = attend(query, others, {}, temperature=0.1)
    assert mixture.weights == pytest.approx([0.5, 0.25, 0.25])
    assert mixture.own_weight == pytest.approx(0.2)
    assert mixture.source.keys == {}


def average(nodes: Sequence[Source], weights: Sequence[float] | None = None) -> Source:
    shares = [1.0] * len(nodes) if weights is None else weights
    scale = sum(each.scale * each.num_nodes for each in nodes) / sum(each.num_nodes for each in nodes)
    keys, values = (weighted_mean([getattr(each, part) for each in nodes], shares) for part in ("keys", "values"))
    return Source(keys=keys, values=values, num_nodes=sum(each.num_nodes for each in nodes), scale=scale)


def flat(*keys: float, value: float = 0.0, num_nodes: float = 1.0, scale: float | None = None) -> Source:
    """A source whose keys are one tensor, for a reference of zeros."""
    length = math.hypot(*keys) if scale is None else scale
    return Source(
        keys={"k": torch.tensor(keys)}, values={"v": torch.tensor([value])}, num_nodes=num_nodes, scale=length
    )


def attend_flat(query: Source | None, sources: list[Source], temperature: float = 1.0) -> Mixture:
    return attend(query, sources, {"k": torch.zeros(len(sources[0].keys["k"]))}, temperature=temperature)


def assert_same(left: Any, right: Any, **options: Any) -> None:
    for part in ("keys", "values"):
        torch.testing.assert_close(dict(getattr(left, part)), dict(getattr(right, part)), **options)


# ---------------------------------------------------------------- a slow reference


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_a_slow_reference(temperature: float) -> None:
    query, sources = node(1), [node(2), average([node(3), node(4), node(5)]), node(6)]

    def change(source: Source) -> np.ndarray:
        flattened = [
            source.keys[n].double().numpy().ravel() - REFERENCE[n].double().numpy().ravel() for n in KEY_SHAPES
        ]
        return np.concatenate(flattened)

    length = np.linalg.norm(change(query))
    scores = np.array([change(query) @ change(source) / length / source.scale for source in sources])
    masses = np.array([1, 3, 1]) * np.exp(scores / temperature)
    result = attend(query, sources, REFERENCE, temperature=temperature)
    np.testing.assert_allclose(result.weights, masses / masses.sum(), rtol=1e-5)
    own = np.exp(scores.max() / temperature)
    assert result.own_weight == pytest.approx(own / (own + masses.sum()), rel=1e-5)
    for part in ("keys", "values"):
        for name, tensor in getattr(result.source, part).items():
            rows = [getattr(source, part)[name].double().numpy() for source in sources]
            expected = sum(weight * row for weight, row in zip(masses / masses.sum(), rows, strict=True))
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_score_of_an_average_is_the_mean_cosine_of_its_nodes_weighted_by_their_norms() -> None:
    query, nodes = node(1), [node(2), node(3), node(4)]
    cosines = similarities(query, nodes, REFERENCE)
    (score,) = similarities(query, [average(nodes)], REFERENCE)
    norms = [each.scale for each in nodes]
    assert score == pytest.approx(sum(c * n for c, n in zip(cosines, norms, strict=True)) / sum(norms), rel=1e-4)


@pytest.mark.parametrize("number", [3, 70])
def test_the_matrix_of_similarities_equals_the_similarities_one_by_one(number: int) -> None:
    sources = [
        *(node(seed) for seed in range(2, number)),
        Source(keys=REFERENCE, values={}, scale=0.0),
        average([node(1), node(9)]),
    ]
    found = similarity_matrix(sources, REFERENCE)
    expected = [similarities(source, sources, REFERENCE) for source in sources]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_products_are_exact_for_large_tensors(size: int) -> None:
    start, query, keys = (draw(seed, {"k": (size,)}) for seed in (0, 1, 2))
    query_change, key_change = ((layers["k"] - start["k"]).double().numpy() for layers in (query, keys))
    length = np.linalg.norm(query_change)
    sources = [Source(keys=layers, values={}, scale=2.0) for layers in (query, keys)]
    found = similarities(sources[0], sources[1:], start)
    assert found == [pytest.approx(query_change @ key_change / length / 2.0, rel=1e-9)]


def test_at_most_one_model_is_in_memory_at_a_time(lazy_models: Any) -> None:
    shapes = {"blocks.0.k": (4, 3), "blocks.1.k": (20,), "blocks.1.q": (3,)}
    models, most = lazy_models(shapes, 9, seed=1)
    reference, query = draw(0, shapes), Source(keys=draw(1, shapes), values={}, scale=1.0)
    result = attend(query, [Source(keys=m, values=m, scale=1.0) for m in models], reference, temperature=0.5)
    assert most() <= 35  # coordinates of all tensors of a model
    assert most() > 20  # so that small tensors are compared several at a time
    in_memory = [Source(keys=dict(m), values=dict(m), scale=1.0) for m in models]
    expected = attend(query, in_memory, reference, temperature=0.5)
    assert result.weights == expected.weights
    assert_same(result.source, expected.source, rtol=0, atol=0)


# ---------------------------------------------------------------- by hand


def test_by_hand() -> None:
    # cosines 1, 0, -1: masses e, 1, 1/e; the query counts as the best, with e
    result = attend_flat(flat(2.0, 0.0), [flat(5.0, 0.0), flat(0.0, 3.0, value=9.0), flat(-1.0, 0.0)])
    total = np.e + 1 + 1 / np.e
    assert result.weights == pytest.approx([np.e / total, 1 / total, 1 / np.e / total])
    assert result.own_weight == pytest.approx(np.e / (total + np.e))
    assert result.source.keys["k"].tolist() == pytest.approx([(5 * np.e - 1 / np.e) / total, 3 / total])
    assert result.source.values["v"].tolist() == pytest.approx([9 / total])
    assert result.source.scale == pytest.approx((5 * np.e + 3 + 1 / np.e) / total)


def test_a_source_counts_with_its_number_of_nodes() -> None:
    sources = [flat(1.0, 0.0, num_nodes=3.0), flat(1.0, 0.0)]
    result = attend_flat(flat(1.0, 0.0, num_nodes=2.0), sources)
    assert result.weights == pytest.approx([0.75, 0.25])
    assert result.own_weight == pytest.approx(2 / 6)
    assert result.source.num_nodes == pytest.approx(4.0)


def test_a_node_without_layers_gets_the_average_of_all_nodes() -> None:
    result = attend_flat(None, [flat(4.0, 0.0, num_nodes=3.0), flat(0.0, 8.0)], 1e-3)
    assert (result.own_weight, result.weights) == (0.0, pytest.approx([0.75, 0.25]))
    assert result.source.keys["k"].tolist() == pytest.approx([3.0, 2.0])
    assert result.source.num_nodes == pytest.approx(4.0)


def test_the_reference_is_subtracted_from_both() -> None:
    query, keys = (Source(keys={"k": torch.tensor(k)}, values={}, scale=1.0) for k in ([2.0, 1.0], [1.0, 2.0]))
    assert similarities(query, [keys], {"k": torch.ones(2)}) == [0.0]


def test_softmax_by_hand() -> None:
    assert softmax_weights([0.0, np.log(3.0) / 2], 0.5) == pytest.approx([0.25, 0.75], rel=1e-12)


# ---------------------------------------------------------------- properties


def test_permuting_sources_permutes_weights() -> None:
    sources, order = [node(seed) for seed in (2, 3, 4)], [2, 0, 1]
    straight = attend(node(1), sources, REFERENCE, temperature=0.3)
    turned = attend(node(1), [sources[i] for i in order], REFERENCE, temperature=0.3)
    assert turned.weights == pytest.approx([straight.weights[i] for i in order], rel=1e-12)
    assert turned.own_weight == pytest.approx(straight.own_weight, rel=1e-12)
    assert_same(straight.source, turned.source)


def test_an_infinite_temperature_averages_all_nodes_and_the_query() -> None:
    nodes = [node(seed) for seed in (2, 3, 4)]
    result = attend(node(1), [nodes[0], average(nodes[1:])], REFERENCE, temperature=math.inf)
    assert_same(result.source, average(nodes))
    assert result.own_weight == pytest.approx(1 / 4)


def test_identical_nodes_get_themselves() -> None:
    result = attend(node(1), [node(1), average([node(1), node(1)])], REFERENCE, temperature=0.1)
    assert_same(result.source, node(1))
    assert result.own_weight == pytest.approx(1 / 4)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30])
def test_near_zero_temperature_only_the_best_match_counts(temperature: float) -> None:
    sources = [flat(0.0, 9.0), flat(3.0, 1.0, value=7.0), flat(-3.0, 1.0)]
    result = attend_flat(flat(40.0, 4.0), sources, temperature)
    assert result.weights == [0.0, 1.0, 0.0]
    assert result.own_weight == pytest.approx(0.5)
    assert result.source.values["v"].tolist() == [7.0]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 3.0])
def test_attention_in_two_steps_equals_attention_over_all_nodes(temperature: float) -> None:
    """A parent mixes far nodes for a query; a federation below attends over its own nodes and that mixture."""
    query, near, far = node(1), [node(2), node(3)], [node(4), node(5), node(6)]
    above = attend(query, far, REFERENCE, temperature=temperature).source
    in_two_steps = attend(query, [*near, above], REFERENCE, temperature=temperature)
    at_once = attend(query, [*near, *far], REFERENCE, temperature=temperature)
    assert_same(in_two_steps.source, at_once.source, rtol=1e-4, atol=1e-5)
    assert in_two_steps.weights[:2] == pytest.approx(at_once.weights[:2], rel=1e-4)
    assert in_two_steps.source.num_nodes == pytest.approx(at_once.source.num_nodes, rel=1e-4)


# ---------------------------------------------------------------- an average without some of its nodes


def test_an_average_without_a_node_is_the_average_of_the_others() -> None:
    nodes, weights = [node(seed) for seed in (1, 2, 3)], [2.0, 1.0, 5.0]
    rest = without(average(nodes, weights), [(nodes[1], 1 / 8)])
    assert rest is not None
    expected = average([nodes[0], nodes[2]], [2.0, 5.0])
    assert_same(rest, expected, rtol=1e-4, atol=1e-5)
    assert (rest.num_nodes, rest.scale) == pytest.approx((2.0, expected.scale))


def test_nothing_is_left_of_an_average_without_all_its_nodes() -> None:
    nodes = [node(seed) for seed in (1, 2, 3)]
    assert without(average(nodes), [(each, 1 / 3) for each in nodes]) is None
    assert without(average(nodes[:1]), [(nodes[0], 1.0)]) is None
    same = without(average(nodes), [])
    assert same is not None
    assert_same(same, average(nodes), rtol=0, atol=0)


# ---------------------------------------------------------------- tensors that are mixed row by row


def rows(values: list[float], shares: list[float], keys: tuple[float, ...] = (1.0, 0.0)) -> Source:
    """A source with a tensor of three rows of one number."""
    embedding = torch.tensor(values).unsqueeze(1)
    return Source(
        keys={"k": torch.tensor(keys)}, values={"e": embedding}, row_shares={"e": torch.tensor(shares)}, scale=1.0
    )


def test_a_row_counts_by_its_share_of_the_weight_of_its_source() -> None:
    # cosines 1 and 0: weights e / (e + 1) and 1 / (e + 1)
    sources = [rows([2.0, 4.0, 6.0], [0.5, 0.25, 0.25]), rows([8.0, 8.0, 8.0], [0.25, 0.5, 0.25], (0.0, 1.0))]
    result = attend_flat(flat(1.0, 0.0), sources)
    shares = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]])
    weights = torch.tensor([np.e / (np.e + 1), 1 / (np.e + 1)])[:, None] * shares
    expected = (weights * torch.tensor([[2.0, 4.0, 6.0], [8.0, 8.0, 8.0]])).sum(0) / weights.sum(0)
    torch.testing.assert_close(result.source.values["e"].squeeze(1), expected)
    torch.testing.assert_close(result.source.row_shares["e"], weights.sum(0))


def test_equal_row_shares_mix_rows_like_any_other_tensor() -> None:
    sources = [rows([2.0, 4.0, 6.0], [0.2, 0.3, 0.5]), rows([8.0, 8.0, 8.0], [0.2, 0.3, 0.5], (0.0, 1.0))]
    by_rows = attend_flat(flat(1.0, 0.0), sources).source
    plain = attend_flat(flat(1.0, 0.0), [replace(source, row_shares={}) for source in sources]).source
    assert_same(by_rows, plain)


def test_attention_in_two_steps_equals_attention_over_all_nodes_row_by_row() -> None:
    shares = [[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.3, 0.5, 0.2]]
    nodes = [rows([1.0 + i, 5.0 - i, 2.0 * i], shares[i], (1.0, float(i))) for i in range(3)]
    query = flat(1.0, 0.5)
    above = attend_flat(query, nodes[1:]).source
    assert_same(attend_flat(query, [nodes[0], above]).source, attend_flat(query, nodes).source)


def test_an_average_without_a_node_is_the_average_of_the_others_row_by_row() -> None:
    nodes = [rows([1.0, 2.0, 3.0], [0.5, 0.3, 0.2]), rows([7.0, 5.0, 9.0], [0.1, 0.1, 0.8])]
    both = Source(**mixed_layers(nodes, [0.25, 0.75]), num_nodes=2.0, scale=1.0)
    rest = without(both, [(nodes[0], 0.25)])
    assert rest is not None
    assert_same(rest, nodes[1])
    torch.testing.assert_close(rest.row_shares, dict(nodes[1].row_shares))


def test_a_row_that_only_the_removed_node_has_stays_as_it_is() -> None:
    nodes = [rows([1.0, 2.0, 3.0], [0.5, 0.3, 0.2]), rows([7.0, 5.0, 9.0], [1e-4, 0.2, 0.7999])]
    both = Source(**mixed_layers(nodes, [0.5, 0.5]), num_nodes=2.0, scale=1.0)
    rest = without(both, [(nodes[0], 0.5)])
    assert rest is not None
    assert rest.values["e"][0] == both.values["e"][0]
    assert rest.row_shares["e"][0] == pytest.approx(0.1 * float(both.row_shares["e"][0]))
    torch.testing.assert_close(rest.values["e"][1:], nodes[1].values["e"][1:])


# ---------------------------------------------------------------- no change


def test_a_query_without_change_averages_equally() -> None:
    result = attend_flat(flat(0.0, 0.0), [flat(3.0, 0.0, value=2.0), flat(0.0, -1.0, value=4.0)], 0.01)
    assert result.weights == [0.5, 0.5]
    assert result.own_weight == pytest.approx(1 / 3)
    assert (result.source.keys["k"].tolist(), result.source.values["v"].tolist()) == ([1.5, -0.5], [3.0])


def test_a_source_without_change_scores_zero() -> None:
    result = attend_flat(flat(1.0, 0.0), [flat(0.0, 0.0), flat(0.0, 2.0), flat(-2.0, 0.0)])
    assert result.weights[0] == result.weights[1] > result.weights[2]


def test_the_rounding_of_an_average_of_equal_keys_is_no_change() -> None:
    start = draw(0, {"blocks.0.attn.weight": (64, 64)})
    averaged = weighted_mean([start, start, start], [1.0, 1.0, 1.0])
    changed = (averaged["blocks.0.attn.weight"] != start["blocks.0.attn.weight"]).sum()
    assert changed > 0  # otherwise the test is void
    source = Source(keys=averaged, values={}, scale=distance(averaged, start))
    assert similarities(source, [source], start) == [0.0]


def test_a_small_but_true_change_has_a_direction() -> None:
    learnt = {name: tensor + 1e-5 * draw(1)[name] for name, tensor in REFERENCE.items()}
    source = Source(keys=learnt, values={}, scale=distance(learnt, REFERENCE))
    assert similarities(source, [source], REFERENCE) == [pytest.approx(1.0)]


# ---------------------------------------------------------------- memory


def test_arguments_are_not_modified() -> None:
    given = [node(1), node(2), node(3)]
    attend(given[0], given[1:], REFERENCE, temperature=0.1)
    without(given[0], [(given[1], 0.5)])
    for left, right in zip(given, [node(1), node(2), node(3)], strict=True):
        assert_same(left, right, rtol=0, atol=0)


def test_results_are_new_memory_without_a_graph() -> None:
    keys, values = {"k": torch.ones(2, requires_grad=True)}, {"v": torch.ones(1, requires_grad=True)}
    mixed = attend_flat(flat(1.0, 1.0), [Source(keys=keys, values=values, scale=1.0)]).source
    for given, tensor in ((keys["k"], mixed.keys["k"]), (values["v"], mixed.values["v"])):
        assert tensor.data_ptr() != given.data_ptr()
        assert not tensor.requires_grad
