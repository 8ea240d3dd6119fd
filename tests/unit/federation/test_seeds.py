"""Seeds: the same on every machine, and different for every purpose."""

import pytest

from worldlm.federation.seeds import derive_seed


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((0,), 4761921975702974394),
        ((1,), 8898586205396736955),
        ((0, 1), 2837397951545981688),
        ((0, "1"), 8309288884165904714),
        ((1337, "it", 3, "noise"), 2441887384067317134),
        ((1337, "it", "3", "noise"), 6443152418632716058),
    ],
)
def test_pinned(parts, expected) -> None:
    assert derive_seed(*parts) == expected


def test_no_two_purposes_share_a_seed() -> None:
    purposes = [
        (seed, *purpose)
        for seed in (0, 1, 11, -1)
        for purpose in [(), (1,), ("1",), (1, 1), (11,), ("1", 1), (1, "1"), ("11",), ("",), ("", ""), ("a", "b"),
                        ("ab",), ("b", "a"), ("int:1",), ("str:1",)]
    ]  # fmt: skip
    assert len({derive_seed(*purpose) for purpose in purposes}) == len(purposes)


def test_seeds_fit_63_bits_and_use_them_all() -> None:
    seeds = [derive_seed(0, i) for i in range(500)]
    assert min(seeds) >= 0
    union = 0
    for seed in seeds:
        union |= seed
    assert union == 2**63 - 1
