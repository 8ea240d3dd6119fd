"""Attention over layers, compared with a slow reference and in the limits."""

import numpy as np
import pytest
import torch
from torch import Tensor

from worldlm.federation.attention import KeyValue, attend, block_of, similarities, softmax_weights
from worldlm.federation.averaging import weighted_mean
from worldlm.federation.parameters import CHUNK

KEY_SHAPES = {"blocks.0.norm.weight": (3,), "blocks.0.attn.weight": (4, 3), "blocks.11.attn.weight": (2, 5)}
VALUE_SHAPES = {"blocks.0.ffn.weight": (3, 2), "blocks.11.ffn.weight": (2,), "norm_f.weight": (3,)}


def draw(seed: int, shapes: dict[str, tuple[int, ...]] = KEY_SHAPES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def candidate(seed: int) -> KeyValue:
    return KeyValue(draw(seed), draw(1000 + seed, VALUE_SHAPES))


def key_value(*keys: float, value: float = 0.0) -> KeyValue:
    return KeyValue({"k": torch.tensor(keys)}, {"v": torch.tensor([value])})


def attend_to(query: list[float], candidates: list[KeyValue], temperature: float = 1.0, **options):
    """Attend with keys of one tensor, and a reference of zeros."""
    reference = {"k": torch.zeros(len(query))}
    return attend({"k": torch.tensor(query)}, candidates, reference, temperature=temperature, **options)


# ---------------------------------------------------------------- a slow reference


def slow_weights(query, keys, reference, names, similarity, temperature) -> np.ndarray:
    def change(tensors):
        flat = [tensors[n].double().numpy().ravel() - reference[n].double().numpy().ravel() for n in names]
        return np.concatenate(flat)

    query_change, scores = change(query), []
    for layers in keys:
        key_change = change(layers)
        lengths = np.sqrt((query_change**2).sum() * (key_change**2).sum())
        relative_distance = ((query_change - key_change) ** 2).sum() / (query_change**2).sum()
        product = (query_change * key_change).sum()
        scores.append(
            {
                "cosine": product / lengths,
                "dot": product / np.sqrt(len(query_change)),
                "distance": 1 - relative_distance / 2,
            }[similarity]
        )
    powers = np.exp(np.array(scores) / temperature - np.max(scores) / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("similarity", ["cosine", "dot", "distance"])
@pytest.mark.parametrize("granularity", ["model", "block"])
def test_equals_the_slow_reference(granularity, similarity, temperature) -> None:
    query, reference, candidates = draw(1), draw(0), [candidate(seed) for seed in (2, 3, 4)]
    result = attend(
        query, candidates, reference, temperature=temperature, similarity=similarity, granularity=granularity
    )
    keys = [layers.keys for layers in candidates]
    zero = ["blocks.0.norm.weight", "blocks.0.attn.weight"]
    groups = {"": list(KEY_SHAPES)} if granularity == "model" else {"0": zero, "11": ["blocks.11.attn.weight"]}
    weights = {
        block: slow_weights(query, keys, reference, names, similarity, temperature) for block, names in groups.items()
    }
    mean = np.mean(list(weights.values()), axis=0)
    assert result.weights.keys() == weights.keys()
    for block, row in weights.items():
        np.testing.assert_allclose(result.weights[block], row, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(result.mean_weights, mean, rtol=1e-5, atol=1e-12)

    merged = {**result.keys, **result.values}
    assert list(merged) == [*KEY_SHAPES, *VALUE_SHAPES]
    for name, tensor in merged.items():
        block = name.split(".")[1] if name.startswith("blocks") and granularity == "block" else ""
        rows = [{**layers.keys, **layers.values}[name].double().numpy() for layers in candidates]
        expected = sum(w * row for w, row in zip(weights.get(block, mean), rows, strict=True))
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, 2 * CHUNK + 3])
def test_products_are_exact_for_large_tensors(size) -> None:
    start, query, keys = ({"k": draw(seed, {"k": (size,)})["k"]} for seed in (0, 1, 2))
    query_change, key_change = ((layers["k"] - start["k"]).double().numpy() for layers in (query, keys))
    expected = (query_change @ key_change) / np.sqrt((query_change @ query_change) * (key_change @ key_change))
    assert similarities(query, keys, start)[""] == pytest.approx(expected, rel=1e-9)


def test_at_most_one_model_is_in_memory_at_a_time(lazy_models) -> None:
    shapes = {"blocks.0.k": (4, 3), "blocks.1.k": (20,), "blocks.1.q": (3,)}
    keys, most = lazy_models(shapes, 9, seed=1)
    reference, query = draw(0, shapes), draw(1, shapes)
    result = attend(
        query, [KeyValue(layers, layers) for layers in keys], reference, temperature=0.5, granularity="block"
    )
    assert most() <= 35  # coordinates of all tensors of a model
    assert most() > 20  # so that small tensors are compared several at a time
    in_memory = [KeyValue(dict(layers), dict(layers)) for layers in keys]
    expected = attend(query, in_memory, reference, temperature=0.5, granularity="block")
    assert result.weights == expected.weights
    torch.testing.assert_close(result.keys, expected.keys, rtol=0, atol=0)


def test_by_hand() -> None:
    # cosines 1, 0, -1: weights e/(e + 1 + 1/e) and so on
    result = attend_to([2.0, 0.0], [key_value(5.0, 0.0), key_value(0.0, 3.0), key_value(-1.0, 0.0)])
    total = np.e + 1 + 1 / np.e
    assert result.weights[""] == pytest.approx([np.e / total, 1 / total, 1 / np.e / total])
    torch.testing.assert_close(
        result.keys["k"], torch.tensor([(5 * np.e - 1 / np.e) / total, 3 / total], dtype=torch.float32)
    )


def test_dot_is_scaled_by_the_root_of_the_dimension() -> None:
    result = similarities(
        {"k": torch.tensor([1.0, 2.0, 3.0, 4.0])},
        {"k": torch.tensor([2.0, 2.0, 2.0, 2.0])},
        {"k": torch.ones(4)},
        similarity="dot",
    )
    assert result == {"": 3.0}  # (0 + 1 + 2 + 3) / 2


def test_distance_equals_the_cosine_for_equal_norms_and_is_low_for_noise() -> None:
    def distance(query: list[float], keys: list[float]) -> float:
        query_and_keys = {"k": torch.tensor(query)}, {"k": torch.tensor(keys)}
        return similarities(*query_and_keys, {"k": torch.zeros(2)}, similarity="distance")[""]

    assert distance([3.0, 4.0], [3.0, 4.0]) == 1.0
    assert distance([3.0, 4.0], [4.0, 3.0]) == pytest.approx(0.96)  # 24 / 25
    assert distance([3.0, 4.0], [0.0, 0.0]) == 0.5  # learnt nothing, or was clipped to it
    assert distance([3.0, 4.0], [-3.0, -4.0]) == -1.0
    assert distance([3.0, 4.0], [400.0, -300.0]) == pytest.approx(-4999.5)  # 1 - (25 + 250000) / 50
    assert distance([0.0, 0.0], [3.0, 4.0]) == 0.0  # a query without a direction


def test_self_similarity_replaces_that_of_the_first_candidate() -> None:
    itself, near, far = key_value(3.0, 4.0, value=1.0), key_value(4.0, 3.0, value=2.0), key_value(-4.0, 3.0, value=3.0)
    weights = attend_to([3.0, 4.0], [itself, near, far], 0.1, self_similarity=0.5).weights[""]
    powers = np.exp([5.0, 9.6, 0.0])
    assert weights == pytest.approx(powers / powers.sum())
    as_it_is = attend_to([3.0, 4.0], [itself, near, far], 0.1).weights[""]
    assert as_it_is == pytest.approx(np.exp([10.0, 9.6, 0.0]) / np.exp([10.0, 9.6, 0.0]).sum())
    untrained = attend_to([0.0, 0.0], [key_value(0.0, 0.0), near], 0.1, self_similarity=0.5)
    assert untrained.weights[""] == [0.5, 0.5]


def test_the_reference_is_subtracted_from_both() -> None:
    query, keys = {"k": torch.tensor([2.0, 1.0])}, {"k": torch.tensor([1.0, 2.0])}
    assert similarities(query, keys, {"k": torch.ones(2)}) == {"": 0.0}
    assert similarities(query, keys, {"k": torch.zeros(2)})[""] == pytest.approx(0.8)


# ---------------------------------------------------------------- candidates and weights


def test_permuting_candidates_permutes_weights() -> None:
    query, reference, candidates = draw(1), draw(0), [candidate(seed) for seed in (2, 3, 4)]
    order = [2, 0, 1]
    straight = attend(query, candidates, reference, temperature=0.3)
    turned = attend(query, [candidates[i] for i in order], reference, temperature=0.3)
    assert turned.weights[""] == pytest.approx([straight.weights[""][i] for i in order], rel=1e-12)
    for name, tensor in straight.values.items():
        torch.testing.assert_close(turned.values[name], tensor)


@pytest.mark.parametrize("granularity", ["model", "block"])
def test_an_infinite_temperature_takes_the_mean(granularity) -> None:
    candidates = [candidate(seed) for seed in (2, 3, 4)]
    result = attend(draw(1), candidates, draw(0), temperature=float("inf"), granularity=granularity)
    torch.testing.assert_close(result.keys, weighted_mean([layers.keys for layers in candidates], [1.0] * 3))
    torch.testing.assert_close(result.values, weighted_mean([layers.values for layers in candidates], [1.0] * 3))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_near_zero_temperature_only_the_best_match_counts(temperature, similarity) -> None:
    candidates = [key_value(0.0, 9.0), key_value(3.0, 1.0, value=7.0), key_value(-3.0, 1.0)]
    result = attend_to([40.0, 4.0], candidates, temperature, similarity=similarity)
    assert result.weights == {"": [0.0, 1.0, 0.0]}
    assert result.keys["k"].tolist() == [3.0, 1.0]
    assert result.values["v"].tolist() == [7.0]


def test_equal_best_matches_share_at_any_temperature() -> None:
    result = attend_to([1.0, 0.0], [key_value(2.0, 0.0), key_value(0.0, 1.0), key_value(8.0, 0.0)], 5e-324)
    assert result.weights == {"": [0.5, 0.0, 0.5]}


def test_a_single_candidate_has_the_weight_one() -> None:
    result = attend_to([1.0, 0.0], [key_value(-3.0, 5.0, value=2.0)])
    assert (result.weights, result.keys["k"].tolist()) == ({"": [1.0]}, [-3.0, 5.0])
    assert result.values["v"].tolist() == [2.0]


def test_softmax_by_hand() -> None:
    assert softmax_weights([0.0, np.log(3.0) / 2], 0.5) == pytest.approx([0.25, 0.75], rel=1e-12)


# ---------------------------------------------------------------- no change


def test_a_query_without_change_averages_equally() -> None:
    result = attend_to([0.0, 0.0], [key_value(3.0, 0.0, value=2.0), key_value(0.0, -1.0, value=4.0)], 0.01)
    assert result.weights == {"": [0.5, 0.5]}
    assert (result.keys["k"].tolist(), result.values["v"].tolist()) == ([1.5, -0.5], [3.0])


def test_a_candidate_without_change_scores_zero() -> None:
    result = attend_to([1.0, 0.0], [key_value(0.0, 0.0), key_value(0.0, 2.0), key_value(-2.0, 0.0)])
    assert result.weights[""][0] == result.weights[""][1] > result.weights[""][2]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_rounding_of_an_average_of_equal_keys_is_no_change(similarity) -> None:
    start = draw(0, {"blocks.0.attn.weight": (64, 64)})
    averaged = weighted_mean([start, start, start], [1.0, 1.0, 1.0])
    changed = (averaged["blocks.0.attn.weight"] != start["blocks.0.attn.weight"]).sum()
    assert changed > 0  # otherwise the test is void
    assert similarities(averaged, averaged, start, similarity=similarity) == {"": 0.0}


def test_a_small_but_true_change_has_a_direction() -> None:
    start = draw(0)
    learnt = {name: tensor + 1e-5 * draw(1)[name] for name, tensor in start.items()}
    assert similarities(learnt, learnt, start)[""] == pytest.approx(1.0)


def test_blocks_with_and_without_change() -> None:
    start, query = draw(0), draw(1)
    query["blocks.11.attn.weight"] = start["blocks.11.attn.weight"]
    result = attend(query, [candidate(2), candidate(3)], start, temperature=0.1, granularity="block")
    assert result.weights["11"] == [0.5, 0.5]
    assert result.weights["0"][0] != pytest.approx(0.5, abs=0.01)


# ---------------------------------------------------------------- blocks, memory


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("model.transformer.blocks.12.attn.Wqkv.weight", "12"),
        ("blocks.0.experts.3.weight", "0"),
        ("transformer.norm_f.weight", ""),
        ("norm_1.weight", ""),
    ],
)
def test_block_of(name, block) -> None:
    assert block_of(name) == block
    assert block_of(name, "model") == ""


def test_arguments_are_not_modified() -> None:
    given = [draw(1), draw(0), *candidate(2), *candidate(3)]
    query, reference, *rest = given
    attend(query, [KeyValue(*rest[:2]), KeyValue(*rest[2:])], reference, temperature=0.1)
    fresh = [draw(1), draw(0), *candidate(2), *candidate(3)]
    torch.testing.assert_close(given, fresh, rtol=0, atol=0)


def test_results_are_new_memory_without_a_graph() -> None:
    layers = KeyValue({"k": torch.ones(2, requires_grad=True)}, {"v": torch.ones(1, requires_grad=True)})
    result = attend_to([1.0, 1.0], [layers])
    for given, tensor in ((layers.keys["k"], result.keys["k"]), (layers.values["v"], result.values["v"])):
        assert tensor.data_ptr() != given.data_ptr()
        assert not tensor.requires_grad
