"""Attacks on the noise: those that must succeed, so that the attack is known to work, and those that must fail."""

from __future__ import annotations

import pytest
import torch
from attack_on_noise import (
    COORDINATES,
    Release,
    is_short,
    keys_of_a_seed,
    noised,
    noises_of_a_seed,
    search_key,
    search_seed,
    upload,
)
from distinguishing_game import GAMES, Game, advantage, delta_at, releases_of_gradients

from worldlm.data.poisson_samplers import PoissonBatchSampler
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.seeds import derive_seed

SECRET = bytes(range(7, 39))
KEY = NoiseKey(SECRET)


@pytest.fixture(scope="module")
def release() -> Release:
    return upload(KEY, which=1)


# ---------------------------------------------------------------- search


def test_noise_from_a_torch_seed_is_found_without_knowing_the_update(release: Release) -> None:
    """What a secret key is for: torch's generator on the CPU has 2^32 seeds, and this tries the last 2^8."""
    seed = derive_seed(7, "node", 0, 0, "upload noise")
    first = torch.randn(128, generator=torch.Generator().manual_seed(seed))
    wrapped = torch.randn(128, generator=torch.Generator().manual_seed(seed & 0xFFFFFFFF))
    assert torch.equal(first, wrapped)
    sent = release.candidates[0] + first
    assert search_seed(sent, seed & 0xFFFFFFFF, 8) == (seed & 0xFF, (seed & 0xFF) + 1)
    assert search_seed(sent, (seed ^ 0x100) & 0xFFFFFFFF, 8) is None


def test_with_all_but_eight_bits_of_the_key_the_update_is_found(release: Release) -> None:
    assert search_key(release, SECRET, 8) == (SECRET[-1], 1, SECRET[-1] + 1)


def test_if_another_bit_of_the_key_is_wrong_nothing_is_found(release: Release) -> None:
    for wrong in (0, 13, 30):
        guess = bytes(byte ^ (i == wrong) for i, byte in enumerate(SECRET))
        assert search_key(release, guess, 6) is None


def test_the_noise_of_a_key_does_not_follow_from_the_seed(release: Release) -> None:
    rest = [(release.sent - candidate)[:COORDINATES] for candidate in release.candidates]
    tried = 0
    for noise in noises_of_a_seed(7, ["node", "world"], rounds=2):
        assert not any(is_short(noise - one) for one in (*rest, release.sent[:COORDINATES]))
        tried += 1
    for key in keys_of_a_seed(7):
        assert not any(torch.equal(noised(release, key, which), release.sent) for which in (0, 1))
        tried += 1
    assert tried > 500


# ---------------------------------------------------------------- the game that differential privacy limits


@pytest.mark.parametrize("number", [500, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("game", GAMES.values(), ids=GAMES)
def test_the_best_test_has_exactly_the_advantage_of_the_gaussian_mechanism(game: Game, number: int) -> None:
    """More would break the guarantee; less would mean that there is more noise than the ledger counts."""
    there, away = (game(KEY, 1.0, is_there, number) for is_there in (True, False))
    assert abs(advantage(there, away, 1.0).deviation) <= 5
    for delta in (0.25, 0.1, 0.02):
        assert abs(delta_at(there, away, 1.0, delta).deviation) <= 5


@pytest.mark.parametrize("number", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_sampling_lowers_the_advantage_by_its_rate(number: int) -> None:
    """Draws and noise come from one key, and the noise must not show what was drawn."""
    sampler = PoissonBatchSampler(9, 3, KEY, "node")
    games = [releases_of_gradients(KEY, 0.5, is_there, number, sampler) for is_there in (True, False)]
    measured = advantage(games[0], games[1], 0.5, rate=1 / 3)
    assert abs(measured.deviation) <= 5
    assert measured.exact == pytest.approx(0.2276, abs=1e-4)
