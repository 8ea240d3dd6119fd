"""Arithmetic on named tensors."""

import math

import pytest
import torch

from worldlm.federation.parameters import (
    CHUNK,
    clone,
    copy_,
    distance,
    is_finite,
    model_chunks,
    norm,
    num_bytes,
    subtract,
)


def test_a_clone_has_new_memory_and_no_graph() -> None:
    source = {"a": torch.ones(2, requires_grad=True)}
    copied = clone(source)
    copied["a"].add_(1.0)
    assert source["a"].tolist() == [1.0, 1.0]
    assert not copied["a"].requires_grad


def test_copy_overwrites_only_the_names_of_the_source() -> None:
    target = {"a": torch.zeros(2), "b": torch.zeros(1)}
    memory = target["a"]
    copy_(target, {"a": torch.tensor([1.0, 2.0])})
    assert memory.tolist() == [1.0, 2.0]
    assert target["b"].tolist() == [0.0]


def test_copy_rejects_a_name_missing_from_the_target() -> None:
    with pytest.raises(KeyError, match="b"):
        copy_({"a": torch.zeros(1)}, {"b": torch.ones(1)})


def test_subtract_takes_the_names_of_the_minuend() -> None:
    rest = subtract({"a": torch.tensor([5.0])}, {"a": torch.tensor([3.0]), "b": torch.ones(1)})
    assert {name: tensor.tolist() for name, tensor in rest.items()} == {"a": [2.0]}


def test_the_norm_is_of_all_tensors_as_one_vector() -> None:
    assert norm({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[-4.0]])}) == 5.0
    assert norm({}) == 0.0


def test_the_norm_does_not_overflow_in_float32() -> None:
    assert norm({"a": torch.full((4,), 1e30)}) == pytest.approx(2e30)


def test_a_distance_is_the_norm_of_the_difference() -> None:
    first, second = ({"a": torch.randn(2 * CHUNK + 1, 2), "b": torch.randn(3), "c": torch.zeros(0)} for _ in range(2))
    assert distance(first, second) == pytest.approx(norm(subtract(first, second)), rel=1e-12)
    assert distance({"b": first["b"]}, second) == norm({"b": first["b"] - second["b"]})
    assert distance(first, first) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_single_coordinate_that_is_not_finite_is_detected(dtype: torch.dtype, bad: float) -> None:
    tensors = {"a": torch.full((70, 1000), 3.0, dtype=dtype), "b": torch.ones(3, dtype=dtype)}  # 210,000 in all
    assert is_finite(tensors)
    assert is_finite({})
    for name in tensors:
        spoilt = {second: tensor.clone() for second, tensor in tensors.items()}
        spoilt[name].view(-1)[-1] = bad
        assert not is_finite(spoilt)


def test_a_sum_that_overflows_does_not_count_as_not_finite() -> None:
    assert is_finite({"a": torch.full((4,), 3e38), "b": torch.ones(1)})
    assert not is_finite({"a": torch.full((4,), 3e38), "b": torch.tensor([torch.nan])})


def test_infinities_that_cancel_are_detected() -> None:
    assert not is_finite({"a": torch.tensor([torch.inf, -torch.inf]), "b": torch.ones(1)})
    assert not is_finite({"a": torch.tensor([torch.inf]), "b": torch.tensor([-torch.inf])})


@pytest.mark.parametrize(("sizes", "expected"), [((4, 4, 4), [3, 3]), ((6, 3, 3), [2, 2, 2]), ((12, 1), [1] * 6)])
def test_number_of_models_at_a_time(sizes, expected) -> None:
    models = [{str(i): torch.zeros(size) for i, size in enumerate(sizes)} for _ in range(6)]
    assert [len(models[now]) for now in model_chunks(models, "0")] == expected
    assert len(list(model_chunks(models * 6, "0"))) == 6 * len(expected)


def test_the_number_of_models_at_a_time_is_limited() -> None:
    models = [{"0": torch.zeros(1), "1": torch.zeros(99)}] * 40
    assert [len(models[now]) for now in model_chunks(models, "0")] == [16, 16, 8]


def test_sums_are_computed_in_float64() -> None:
    many = {f"p{i}": torch.tensor([value]) for i, value in enumerate([2.0**13, 1.0, 1.0])}
    assert norm(many) == pytest.approx(math.sqrt(2.0**26 + 2.0), rel=1e-12)  # float32 would say 2^13


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2), (torch.float64, 8), (torch.int64, 8)]
)
def test_bytes_are_elements_times_element_size(dtype, size) -> None:
    assert num_bytes({"a": torch.zeros(3, 5, dtype=dtype), "b": torch.zeros(7, dtype=dtype)}) == 22 * size
    assert num_bytes({}) == 0
