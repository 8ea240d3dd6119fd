from types import SimpleNamespace
from typing import Any

import pytest

from worldlm.callbacks import DataConsistencyCheck

TRAINER: Any = SimpleNamespace(is_global_zero=True, global_rank=0)


def start(callback: DataConsistencyCheck, monkeypatch: pytest.MonkeyPatch, **checksums: list[str] | None) -> None:
    facts = {name: {"tokens_crc32": crc32} for name, crc32 in checksums.items()}
    monkeypatch.setattr("worldlm.callbacks.data_consistency_check.data_facts", lambda _: facts)
    callback.on_train_start(TRAINER, None)  # type: ignore[arg-type]


def test_a_warning_names_nodes_whose_text_changed_since_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = DataConsistencyCheck(), DataConsistencyCheck()
    start(first, monkeypatch, a=["01"], b=["02"], left=["03"], unknown=None)
    second.load_state_dict(first.state_dict())
    start(second, monkeypatch, a=["01"], b=["04"], joined=["05"], unknown=None)
    (message,) = caplog.messages
    assert message == "the text of b changed since the checkpoint; training continues with it"
    third = DataConsistencyCheck()
    third.load_state_dict(second.state_dict())
    start(third, monkeypatch, a=["01"], b=["04"], joined=["05"])
    assert len(caplog.messages) == 1


def test_without_checksums_no_state_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = DataConsistencyCheck()
    start(callback, monkeypatch, a=None)
    assert callback.state_dict() == {}
