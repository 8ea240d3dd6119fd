"""Digests of plain values, such as settings."""

import hashlib


def digest(*parts: object) -> str:
    """Hash the representations of plain values to 16 hexadecimal digits."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()
