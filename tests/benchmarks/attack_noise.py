"""Attack the noise of private nodes, and measure what the attacks achieve.

    python tests/benchmarks/attack_noise.py [--bits 8 12 16] [--streams 10000000] [--releases 20000]

1. Search: how long does it take to find the noise by trying all seeds of `torch.randn`, as before noise keys, and by
   trying all values of a part of the noise key? The searches for unknown bits are carried out; what is above is
   extrapolated. The attacker of the key knows more than any real one: all other bits, and two updates of which one was
   sent. Without these it could not recognise a correct guess.
2. The seed: does any noise that follows from the run's seed match that of the key?
3. Collisions: how many of the streams of different nodes, rounds and purposes are equal in their first 64 bits?
4. The guarantee: what advantage has the best test that looks for an update, or an example, in single releases?
5. One round twice with one key, as in two runs that continue from one checkpoint: what do both together show?

One thread; about five minutes with the defaults, most of them for the game. `--releases 2000` takes two.
"""

from __future__ import annotations

import argparse
import itertools
import math
import secrets
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from attack_on_noise import COORDINATES, is_short, keys_of_a_seed, noised, noises_of_a_seed, search_key, search_seed
from attack_on_noise import upload as make_release
from distinguishing_game import GAMES, Measured, advantage, delta_at, releases_of_gradients

from worldlm.data.poisson_samplers import PoissonBatchSampler
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.privacy import PrivacyLedger, sanitise
from worldlm.federation.seeds import derive_seed

YEAR = 365.25 * 24 * 3600
PURPOSES = ("upload noise", "gradient noise", "participation", "examples")


def row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print("|", " | ".join(map(str, cells)), "|")


def head(*names: str) -> None:
    """Print the head of a table."""
    print()
    row(*names)
    row(*("---" for _ in names))


def search_seeds(bits: list[int]) -> None:
    """Search the seed of `torch.randn`."""
    head("torch.randn: unknown bits", "found", "guesses", "microseconds a guess", "all 2^32 seeds, hours")
    seed = derive_seed(secrets.randbelow(2**31), "node", 0, 0, "upload noise") & 0xFFFFFFFF
    update = make_release(NoiseKey(), 0).candidates[0]
    sent = update + torch.randn(len(update), generator=torch.Generator().manual_seed(seed))
    for number in bits:
        began = time.process_time()
        found = search_seed(sent, seed | (2**number - 1), number)  # the last `number` bits are ignored
        seconds = time.process_time() - began
        correct = found is not None and found[0] == seed % 2**number
        guesses = found[1] if found else 2**number
        each = seconds / guesses
        row(number, "yes" if correct else "NO", guesses, f"{each * 1e6:.1f}", f"{each * 2**32 / 3600:.1f}")


def search_keys(bits: list[int]) -> None:
    """Search a part of a noise key."""
    head("noise key: unknown bits", "found", "guesses", "microseconds a guess", "all 2^256 keys, years")
    secret = secrets.token_bytes(32)
    which = secrets.randbelow(2)
    release = make_release(NoiseKey(secret), which)
    for number in bits:
        began = time.process_time()
        found = search_key(release, secret, number)
        seconds = time.process_time() - began
        correct = found is not None and found[:2] == (int.from_bytes(secret, "big") % 2**number, which)
        each = seconds / (found[2] if found else 2**number)
        years = each * 2.0**256 / YEAR
        row(number, "yes" if correct else "NO", found and found[2], f"{each * 1e6:.0f}", f"{years:.0e}")


def try_the_seed() -> None:
    """Try all noise that follows from the seed."""
    release = make_release(NoiseKey(), 0)
    rest = [(release.sent - candidate)[:COORDINATES] for candidate in release.candidates]
    noises = list(noises_of_a_seed(7, ["node", "world", "a", "b"], rounds=100))
    keys = list(keys_of_a_seed(7))
    matches = sum(is_short(noise - one) for noise in noises for one in rest)
    matches += sum(torch.equal(noised(release, key, which), release.sent) for key in keys for which in (0, 1))
    head("noise that follows from the run's seed", "tried", "matches")
    row("from generators seeded with it and with derived seeds", len(noises), matches)
    row("from keys made of it", len(keys), matches)


def count_collisions(number: int) -> None:
    """Compare the keys of streams by their first 64 bits."""
    key, rounds = NoiseKey(), max(1, number // (100 * 2 * len(PURPOSES)))
    tuples = itertools.product((f"node{i}" for i in range(100)), range(rounds), range(2), PURPOSES)
    prefixes = (int.from_bytes(key._derive("stream", *purpose)[:8], "big") for purpose in tuples)
    drawn = np.fromiter(prefixes, np.uint64)
    drawn.sort()
    collisions = int((drawn[1:] == drawn[:-1]).sum())
    expected, bound = len(drawn) ** 2 / 2**65, len(drawn) ** 2 / 2**257
    head("streams", "equal in 64 bits", "expected by chance", "bound for all 256 bits")
    row(len(drawn), collisions, f"{expected:.1e}", f"{bound:.0e}")


def play(releases: int) -> None:
    """Play the games that differential privacy limits."""
    head("game", "sigma", "figure", "measured", "exact", "standard errors apart")

    def show(game: str, sigma: float, figure: str, measured: Measured) -> None:
        value = f"{measured.value:.4f} ± {measured.error:.4f}"
        row(game, sigma, figure, value, f"{measured.exact:.4f}", f"{measured.deviation:+.1f}")

    for (name, game), sigma in itertools.product(GAMES.items(), (0.5, 1.0, 2.0)):
        there, away = (game(NoiseKey(), sigma, is_there, releases) for is_there in (True, False))
        show(name, sigma, "TPR - FPR", advantage(there, away, sigma))
        for delta in (0.2, 0.1, 0.01, 0.001):
            if delta < advantage(there, away, sigma).exact:
                show(name, sigma, f"delta at epsilon({delta})", delta_at(there, away, sigma, delta))
    for sigma in (0.5, 1.0):
        key = NoiseKey()
        sampler = PoissonBatchSampler(9, 3, key, "node")
        there, away = (releases_of_gradients(key, sigma, is_there, releases, sampler) for is_there in (True, False))
        show("gradient, sampled at 1/3", sigma, "TPR - FPR", advantage(there, away, sigma, 1 / 3))


def repeat_round(trials: int = 1000) -> None:
    """Release one round twice, where one coordinate of the update changes by 2^-20 of the bound, or nothing.

    Batches are compared as well: those of 1,000 examples at a rate of 1/50, and of the same without the last one.
    """
    equal, batches, shared = {True: 0, False: 0}, 0, 0
    for trial, is_changed in itertools.product(range(trials), (False, True)):
        key, purpose = NoiseKey(), ("node", trial, 0, "upload noise")
        sent = []
        for change in (0.0, 2.0**-20 if is_changed else 0.0):
            update = torch.zeros(16)
            update[0] = 0.5 + change
            bounds = {"clip_norm": 1.0, "noise_multiplier": 1.0}
            stream = key.stream_for(*purpose)
            sent.append(sanitise({"w": update}, {"w": torch.zeros(16)}, **bounds, stream=stream).tensors["w"])
        equal[is_changed] += torch.equal(*sent)
        one, other = (set(PoissonBatchSampler(size, 20, key, "node").batch(trial)) for size in (1000, 999))
        batches, shared = batches + len(one), shared + len(one & other)
    head("one round twice with one key", "measured", "with independent draws")
    row("equal uploads, nothing changed", equal[False] / trials, 0)
    row("equal uploads, one coordinate changed", equal[True] / trials, 0)
    row("examples of a batch that are drawn again", f"{shared / batches:.3f}", 0.02)


def shared_epsilon(rate: float, sigma: float, runs: int, delta: float) -> float:
    """Return the exact epsilon of one step in several runs that draw the same batch, each with noise of its own.

    Their mean is N(0, 1) without the example, in units of its deviation, and with it the mixture (1 - rate) N(0, 1) +
    rate N(mu, 1), where mu is sqrt(runs) / sigma.
    """
    mu = math.sqrt(runs) / sigma

    def below(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    def delta_at_epsilon(epsilon: float) -> float:
        factor = math.exp(epsilon)
        x = (math.log((factor - 1 + rate) / rate) + mu * mu / 2) / mu
        larger = (1 - rate) * below(-x) + rate * below(mu - x) - factor * below(-x)
        if (share := 1 / factor - 1 + rate) <= 0:
            return larger
        x = (math.log(share / rate) + mu * mu / 2) / mu
        return max(larger, below(x) - factor * ((1 - rate) * below(x) + rate * below(x - mu)))

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at_epsilon(middle) > delta else (low, middle)
    return high


def compose_shared_draws(rate: float = 0.02, sigma: float = 1.0, delta: float = 1e-5) -> None:
    """Print the epsilon of one step in several runs with one key, beside that of independent draws."""
    head("runs with one key, one step each", "epsilon", "epsilon, had they drawn independently")
    for runs in (1, 3, 10):
        ledger = PrivacyLedger([(sigma, rate, runs)])
        row(runs, f"{shared_epsilon(rate, sigma, runs, delta):.2f}", f"{ledger.epsilon(delta):.2f}")


def main() -> None:
    """Run all attacks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 12, 16])
    parser.add_argument("--streams", type=int, default=10_000_000)
    parser.add_argument("--releases", type=int, default=20_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    search_seeds([12, 16, 20])
    search_keys(options.bits)
    try_the_seed()
    count_collisions(options.streams)
    play(options.releases)
    repeat_round()
    compose_shared_draws()


if __name__ == "__main__":
    main()
