"""The noise key: what a draw depends on, and where the key never goes."""

from __future__ import annotations

import hashlib
import hmac
import io
import itertools
import pickle
import struct

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305

from worldlm.federation.noise_key import NoiseKey, RandomStream

KEY = NoiseKey(bytes(range(32)))


def first(stream: RandomStream, size: int = 4) -> list[int]:
    words: list[int] = stream.branch(0).take(size).tolist()
    return words


def _rotate(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & 0xFFFFFFFF


def chacha20(key: bytes, nonce: bytes, counter: int = 0) -> bytes:
    """One block of ChaCha20, written from RFC 8439, section 2.3."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
    start += struct.unpack("<3I", nonce)
    x = list(start)
    quarters = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    quarters += [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in quarters * 10:
        for i, j, k, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[i] = (x[i] + x[j]) & 0xFFFFFFFF
            x[k] = _rotate(x[k] ^ x[i], bits)
    return struct.pack("<16I", *((value + old) & 0xFFFFFFFF for value, old in zip(x, start, strict=True)))


def test_a_stream_is_what_its_formula_says() -> None:
    """From the standard library and the RFC alone."""

    def derive(*parts: tuple[str, str]) -> bytes:
        message = b"".join(f"{kind} {len(text)} {text}".encode() for kind, text in parts)
        return hmac.digest(bytes(range(32)), message, hashlib.sha256)

    purpose = (("str", "a"), ("int", "3"))
    values = torch.tensor([1.5, -2.0])
    tag = Poly1305.generate_tag(derive(("str", "values"), *purpose), struct.pack("<2f", 1.5, -2.0)).hex()
    key = derive(("str", "stream"), *purpose, ("str", tag))
    expected = list(struct.unpack("<8Q", chacha20(key, bytes(12))))
    assert first(KEY.stream("a", 3, values=[values]), 8) == expected
    other_branch = list(struct.unpack("<8Q", chacha20(key, bytes(4) + (5).to_bytes(8, "little"))))
    assert KEY.stream("a", 3, values=[values]).branch(5).take(8).tolist() == other_branch


def test_streams_differ_by_key_purpose_and_values() -> None:
    values = [[], [torch.zeros(1)], [torch.zeros(2)], [torch.tensor([1e-38])], [torch.ones(3)]]
    purposes = [("a", 1), ("a", "1"), ("a", 11), ("a1",), ("a", 1, ""), ("", "a", 1), (1, "a")]
    streams = [
        key.stream(*purpose, values=some) for key in (KEY, NoiseKey()) for purpose in purposes for some in values
    ]
    assert len({tuple(first(stream)) for stream in streams}) == 2 * 7 * 5
    assert first(KEY.stream("a", values=[torch.ones(2), torch.ones(1)])) == first(
        KEY.stream("a", values=[torch.ones(3)])
    )


def test_words_go_on_where_they_stopped_and_branches_do_not_affect_each_other() -> None:
    stream, whole = KEY.stream("a"), first(KEY.stream("a"), 1000)
    parts = [stream.branch(0).take(size) for size in (0, 1, 7, 500)]
    stream.branch(1).take(9)
    parts.append(stream.branch(0).take(492))
    assert np.concatenate(parts).tolist() == whole


def test_forty_thousand_purposes_share_no_stream() -> None:
    """Of n streams with keys of 256 bits, two are equal with a probability below n^2 / 2^257; n = 10^8: 5 * 10^-62."""
    purposes = itertools.product("abcde", range(1000), range(2), ("upload noise", "gradient noise", "examples", "x"))
    keys = {KEY._derive("stream", *purpose) for purpose in purposes}
    assert len(keys) == 40_000
    assert 10**16 / 2**257 < 5e-62


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_events_have_their_probability(probability) -> None:
    events = KEY.stream("events").bernoulli(100_000, probability)
    deviation = (probability * (1 - probability) / 100_000) ** 0.5
    assert abs(events.mean() - probability) <= 5 * deviation


def test_a_key_is_never_shown_or_pickled() -> None:
    for text in (repr(KEY), str(KEY), f"{KEY}", f"{vars(RandomStream(bytes(32)))}", KEY.fingerprint):
        assert KEY.reveal() not in text
    with pytest.raises(TypeError, match="a noise key is secret"):
        pickle.dumps(KEY)
    with pytest.raises(TypeError, match="a noise key is secret"):
        torch.save({"key": KEY}, io.BytesIO())


def test_new_keys_differ_and_a_short_one_is_rejected() -> None:
    assert len({NoiseKey().reveal() for _ in range(100)}) == 100
    with pytest.raises(ValueError, match="a noise key has 32 bytes, got 16"):
        NoiseKey(bytes(16))
