"""The noise key: the secret from which everything that protects a node is drawn.

The seed of a run is public. The noise of differential privacy, and the draws that it relies on, must not follow from
anything public, so they come from this key instead. A draw is a pure function of the key, a purpose and, for noise, the
values that are noised:

    tag        = Poly1305(HMAC-SHA-256(noise key, "values", purpose), values)   16 bytes
    stream key = HMAC-SHA-256(noise key, "stream", purpose, tag)                32 bytes
    stream     = ChaCha20(stream key)                                           as many bits as needed

Nobody without the key can compute or predict a draw: HMAC and ChaCha20 are pseudo-random functions, and a universal
hash followed by a pseudo-random function is one too (Boneh and Shoup, "A graduate course in applied cryptography",
theorem 7.7). The values are part of the input, as in deterministic signatures (RFC 6979). If the same values are noised
again, as when a run resumes or is repeated, the noise is the same, which shows no more than that they are the same. If
anything has changed, the noise is independent, so that the difference of two releases never cancels it.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.poly1305 import Poly1305
from numpy.typing import NDArray
from torch import Tensor

KEY_BYTES = 32

_WORDS_OF_A_SEGMENT = 2**34
"""Words that are drawn with one nonce: half of what the counter of ChaCha20 allows."""


class NoiseKey:
    """A secret key of 256 bits. It is not shown when printed, and cannot be pickled.

    Args:
        secret: The key; by default new random bytes from the operating system.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = secrets.token_bytes(KEY_BYTES) if secret is None else secret
        if len(self._secret) != KEY_BYTES:
            raise ValueError(f"a noise key has {KEY_BYTES} bytes, got {len(self._secret)}")

    def __repr__(self) -> str:
        return f"<noise key {self.fingerprint}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a noise key is secret: it is never pickled, and so never part of a checkpoint or a message")

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that identify the key without revealing it."""
        return self._derive("fingerprint").hex()[:16]

    def stream(self, *purpose: str | int, values: Iterable[Tensor] = ()) -> RandomStream:
        """Return the random stream of one purpose.

        Args:
            *purpose: What is drawn: a node, a round, a sub-round and a word, for example.
            values: The values that the stream will noise, by default none. Other values give an independent stream.
        """
        hasher = Poly1305(self._derive("values", *purpose))
        for tensor in values:
            hasher.update(tensor.detach().cpu().contiguous().flatten().numpy().view(np.uint8).data)
        return RandomStream(self._derive("stream", *purpose, hasher.finalize().hex()))

    def stream_for(self, *purpose: str | int) -> StreamFor:
        """Return what makes the stream of one purpose, given the values that it will noise."""
        return lambda values: self.stream(*purpose, values=values)

    def _derive(self, *purpose: str | int) -> bytes:
        """Return 32 bytes for a purpose. The type and length of each part make its encoding unambiguous."""
        texts = [(type(part).__name__, str(part).encode()) for part in purpose]
        message = b"".join(f"{kind} {len(text)} ".encode() + text for kind, text in texts)
        return hmac.digest(self._secret, message, "sha256")

    def reveal(self) -> str:
        """Return the key as 64 hexadecimal digits, for its file only."""
        return self._secret.hex()


class RandomStream:
    """Random 64-bit words of the ChaCha20 stream cipher, as implemented by OpenSSL (RFC 8439).

    Args:
        key: 32 bytes, to be used for one stream only.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._branches: dict[int, Words] = {}

    def branch(self, number: int) -> Words:
        """Return the words of one of 2^32 independent branches; further calls continue where the last one stopped."""
        if number not in self._branches:
            self._branches[number] = Words(self._key, number)
        return self._branches[number]

    def bernoulli(self, size: int, probability: float) -> NDArray[np.bool_]:
        """Draw independent events.

        Args:
            size: Number of events.
            probability: Of each event, from 0 to 1; it is met to within 2^-64.

        Returns:
            Whether each event occurs, shape [size].
        """
        if probability >= 1.0:
            return np.ones(size, bool)
        return self.branch(0).take(size) < np.uint64(Fraction(probability) * 2**64)


StreamFor: TypeAlias = Callable[[Iterable[Tensor]], RandomStream]
"""Makes the stream that will noise some values: `NoiseKey.stream` with a purpose."""


class Words:
    """The words of a branch of a stream, in order.

    Args:
        key: The key of the stream.
        branch: Part of the nonce.
    """

    def __init__(self, key: bytes, branch: int) -> None:
        self._key, self._branch = key, branch
        self._segment, self._num_left = -1, 0

    def take(self, size: int) -> NDArray[np.uint64]:
        """Return the next words, uniform on the integers below 2^64, shape [size]."""
        words = np.zeros(size, "<u8")
        if self._segment < 0 or size > self._num_left:  # the counter of ChaCha20 has 32 bits
            self._segment, self._num_left = self._segment + 1, max(_WORDS_OF_A_SEGMENT, size)
            nonce = bytes(4) + self._segment.to_bytes(4, "little") + self._branch.to_bytes(8, "little")
            self._cipher = Cipher(algorithms.ChaCha20(self._key, nonce), mode=None).encryptor()
        self._num_left -= size
        self._cipher.update_into(words.view(np.uint8).data, words.view(np.uint8).data)
        return words
