from types import SimpleNamespace
from typing import Any

import pytest

from worldlm.callbacks import DataConsistencyCheck

TRAINER: Any = SimpleNamespace(is_global_zero=True, global_rank=0)


def begin(callback: DataConsistencyCheck, monkeypatch: pytest.MonkeyPatch, **checksums: list[str] | None) -> None:
    facts = {name: {"tokens_crc32": one} for name, one in checksums.items()}
    monkeypatch.setattr("worldlm.callbacks.data_consistency_check.data_facts", lambda _: facts)
    callback.on_train_start(TRAINER, None)  # type: ignore[arg-type]


def test_other_text_after_a_checkpoint_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = DataConsistencyCheck(), DataConsistencyCheck()
    begin(first, monkeypatch, a=["01"], b=["02"], left=["03"], unknown=None)
    second.load_state_dict(first.state_dict())
    begin(second, monkeypatch, a=["01"], b=["04"], joined=["05"], unknown=None)
    (told,) = caplog.messages
    assert told == "other text than before the checkpoint is read at b: the run goes on with it"
    third = DataConsistencyCheck()
    third.load_state_dict(second.state_dict())
    begin(third, monkeypatch, a=["01"], b=["04"], joined=["05"])
    assert len(caplog.messages) == 1


def test_where_no_checksums_are_known_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = DataConsistencyCheck()
    begin(callback, monkeypatch, a=None)
    assert callback.state_dict() == {}
