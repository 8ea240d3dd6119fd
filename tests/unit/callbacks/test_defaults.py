"""Default callbacks give way to a recipe's callbacks and to options of the Trainer."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, TQDMProgressBar

from worldlm.callbacks import LastCheckpoint, NodeMetrics, NodeValidation, RoundProgress, Summary
from worldlm.callbacks.defaults import DEFAULT_CALLBACKS, with_defaults


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, set()),
        ({"enable_progress_bar": True, "enable_checkpointing": True}, set()),
        ({"enable_progress_bar": False}, {RoundProgress}),
        ({"enable_checkpointing": False}, {LastCheckpoint}),
    ],
)
def test_a_flag_turns_a_default_off(options: dict[str, Any], missing: set[type[Callback]]) -> None:
    added = {type(callback) for callback in with_defaults("fit", [], options)}
    assert added == {*DEFAULT_CALLBACKS["fit"]} - missing


def test_listed_callbacks_take_the_place_of_defaults() -> None:
    listed: list[Callback] = [TQDMProgressBar(), Summary(), LastCheckpoint(every_n_rounds=3)]
    callbacks = with_defaults("fit", listed, {})
    assert callbacks[:3] == listed
    assert len(callbacks) == len(DEFAULT_CALLBACKS["fit"])
    assert not any(isinstance(callback, RoundProgress) for callback in callbacks)


def test_other_commands_have_no_bar_and_evaluate_once() -> None:
    assert with_defaults("prepare", [TQDMProgressBar()], {"enable_progress_bar": False}) == []
    metrics = NodeMetrics()
    assert with_defaults("validate", [RoundProgress(), metrics], {"enable_progress_bar": False}) == [metrics]
    assert [type(callback) for callback in with_defaults("validate", [], {})] == [NodeValidation]
