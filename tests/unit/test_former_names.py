"""Imports of former names fail with the present name."""

import pytest


def test_the_package_loop_was_divided() -> None:
    with pytest.raises(ImportError, match=r"WorldTrainer are in worldlm\.trainer"):
        from worldlm.loop import WorldTrainer  # noqa: F401


@pytest.mark.parametrize(("old", "new"), [("StartAnew", "DivergenceRecovery"), ("SameText", "DataConsistencyCheck")])
def test_a_callback_that_was_renamed(old: str, new: str) -> None:
    import worldlm.callbacks as callbacks

    with pytest.raises(AttributeError, match=f"no attribute '{old}'; it was renamed: import {new}$"):
        getattr(callbacks, old)
    assert hasattr(callbacks, new)
    assert not hasattr(callbacks, old)
    assert not hasattr(callbacks, "Nothing")
