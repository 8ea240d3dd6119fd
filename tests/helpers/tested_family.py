"""The model that the integration tests train: WorldLM's own, or one of a family of transformers."""

from __future__ import annotations

import os

import pytest

FAMILY = os.environ.get("WORLDLM_TEST_FAMILY", "")
"""A family of transformers, such as llama, for the tests that train the tiny model; empty for WorldLM's own."""


def _embedding() -> str:
    if not FAMILY:
        return "model.transformer.wte.weight"
    import families  # imports transformers

    return families.tiny_module(FAMILY).embeddings()[0]


EMBEDDING = _embedding()
"""The name of the embedding of the tiny model."""


def own_model_only(reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test if the tests train a model of transformers.

    Args:
        reason: What the test assumes about WorldLM's own model.
    """
    return pytest.mark.skipif(bool(FAMILY), reason=f"{reason}, and the tests train a {FAMILY}")
