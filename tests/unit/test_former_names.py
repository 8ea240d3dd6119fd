"""Imports of former names fail with the present name."""

import pytest


def test_the_package_loop_was_divided() -> None:
    with pytest.raises(ImportError, match=r"WorldTrainer are in worldlm\.trainer"):
        from worldlm.loop import WorldTrainer  # noqa: F401


@pytest.mark.parametrize(("old", "new"), [("StartAnew", "DivergenceRecovery"), ("SameText", "DataConsistencyCheck")])
def test_a_callback_that_was_renamed(old: str, new: str) -> None:
    with pytest.raises(ImportError, match=f"^worldlm.callbacks.{old} was renamed: import {new}$"):
        exec(f"from worldlm.callbacks import {old}")
    import worldlm.callbacks as callbacks

    assert hasattr(callbacks, new)
    assert not hasattr(callbacks, "Nothing")
