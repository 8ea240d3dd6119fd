"""Draws of a round: Poisson and fixed sampling, lost uploads, and jitter of links."""

from __future__ import annotations

import math
import statistics

import pytest

from worldlm.federation.participation import draw_children, is_dropped, is_poisson, link_seconds
from worldlm.topology import Link, Node, Privacy, Settings


def _star(names: str, noise: float | None = None, **settings: object) -> Node:
    privacy = None if noise is None else Privacy(clip_norm=1.0, noise_multiplier=noise)
    leaf = Settings(num_local_steps=1, privacy=privacy)
    listener = Node(name="z", corpus="z", settings=Settings(num_local_steps=0, privacy=Privacy(clip_norm=1.0)))
    children = (*(Node(name=name, corpus=name, settings=leaf) for name in names), listener)
    return Node(name="world", children=children, settings=Settings(**settings))  # type: ignore[arg-type]


def test_poisson_sampling_is_used_for_noisy_uploads_or_on_request() -> None:
    assert not is_poisson(_star("ab"))
    assert not is_poisson(_star("ab", noise=0.0))  # clipping alone gives no guarantee
    assert is_poisson(_star("ab", noise=0.5))
    assert not is_poisson(_star("ab", noise=0.5, sampling="fixed"))
    assert is_poisson(_star("ab", sampling="poisson"))


def test_poisson_draws_every_child_independently() -> None:
    world = _star("abcd", participation=0.3, sampling="poisson")
    draws = [draw_children(world, "abcd", seed) for seed in range(4000)]
    for name in "abcd":
        assert sum(name in drawn for drawn in draws) / 4000 == pytest.approx(0.3, abs=0.025)
    both = sum({"a", "b"} <= set(drawn) for drawn in draws) / 4000
    assert both == pytest.approx(0.09, abs=0.015)  # 0.067 of fixed draws, which are not independent
    assert sum(not drawn for drawn in draws) / 4000 == pytest.approx(0.7**4, abs=0.025)
    # whether a child may take part does not change the draws of the others
    assert [[name for name in drawn if name != "b"] for drawn in draws] == [
        draw_children(world, "acd", seed) for seed in range(4000)
    ]


def test_fixed_draws_have_the_same_size_and_a_participation_of_one_takes_all() -> None:
    world = _star("abcd", participation=0.5)
    draws = [draw_children(world, ["d", "b", "a", "c"], seed) for seed in range(300)]
    assert {len(drawn) for drawn in draws} == {2}
    assert all(drawn == sorted(drawn) for drawn in draws)
    assert len({tuple(drawn) for drawn in draws}) == 6
    assert draw_children(world, ["b"], 0) == ["b"]
    assert draw_children(_star("abcd", sampling="poisson"), ["b", "a"], 0) == ["a", "b"]
    assert draw_children(_star("abcd", participation=0.1), "abcd", 0) != []


def test_dropouts_have_the_requested_rate() -> None:
    assert sum(is_dropped(0.2, seed) for seed in range(4000)) / 4000 == pytest.approx(0.2, abs=0.02)
    assert not any(is_dropped(0.0, seed) for seed in range(100))


def test_seconds_on_a_link() -> None:
    assert link_seconds(None, 10**9, 0) == 0.0
    steady = Link(bandwidth_mbps=8.0, latency_ms=50.0)
    assert link_seconds(steady, 3_000_000, 0) == pytest.approx(3.05)
    unsteady = Link(bandwidth_mbps=8.0, latency_ms=50.0, jitter=0.5)
    factors = [math.log(link_seconds(unsteady, 3_000_000, seed) / 3.05) for seed in range(2000)]
    assert statistics.fmean(factors) == pytest.approx(0.0, abs=0.04)
    assert statistics.stdev(factors) == pytest.approx(0.5, abs=0.03)
