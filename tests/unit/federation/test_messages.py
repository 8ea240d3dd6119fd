"""Messages: their size in bytes, and their form in a checkpoint."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from worldlm.federation.messages import (
    Download,
    Residual,
    Upload,
    download_from_state,
    message_state,
    residual_from_state,
    upload_from_state,
)

RESIDUAL = Residual(
    keys={"k": torch.tensor([1.0, 2.0])},
    values={"v": torch.tensor([[3.0]], dtype=torch.bfloat16)},
    origin="it",
    federation="south",
    jurisdiction="eu",
    round=4,
)
OTHER = replace(RESIDUAL, origin="fr", jurisdiction=None)
DOWNLOAD = Download(
    round=5,
    parts={"backbone": {"b": torch.zeros(3, 5)}, "keys": {"k": torch.zeros(7, dtype=torch.bfloat16)}},
    residuals=(RESIDUAL, OTHER),
)
UPLOAD = Upload(
    node="south",
    round=5,
    parts={"values": {"v": torch.zeros(2, dtype=torch.float64), "w": torch.zeros(())}},
    num_tokens=2048,
    metrics={"loss": 2.5},
    residuals=(OTHER, RESIDUAL),
)
UNDO = {Residual: residual_from_state, Download: download_from_state, Upload: upload_from_state}
BARE = [Download(round=0, parts={}), Upload(node="it", round=0, parts={}, num_tokens=0)]


def test_the_bytes_of_a_residual_are_those_of_its_tensors() -> None:
    assert RESIDUAL.num_bytes == 2 * 4 + 1 * 2


def test_the_bytes_of_a_download_are_its_parts_and_residuals() -> None:
    assert DOWNLOAD.num_bytes == (15 * 4 + 7 * 2) + 2 * 10


def test_the_bytes_of_an_upload_are_its_parts_and_residuals() -> None:
    assert UPLOAD.num_bytes == (2 * 8 + 1 * 4) + 2 * 10


@pytest.mark.parametrize("message", BARE)
def test_a_message_without_tensors_has_no_bytes(message) -> None:
    assert message.num_bytes == 0


def assert_equal(first, second) -> None:
    """Compare two messages through their state: tensors to the bit, the rest exactly."""
    assert type(first) is type(second)
    torch.testing.assert_close(tensors_of(first), tensors_of(second), rtol=0, atol=0)
    assert repr(message_state(first)) == repr(message_state(second))


def tensors_of(message) -> dict:
    if isinstance(message, Residual):
        return {"keys": message.keys, "values": message.values}
    return {"parts": message.parts, "residuals": [tensors_of(item) for item in message.residuals]}


@pytest.mark.parametrize("message", [RESIDUAL, OTHER, DOWNLOAD, UPLOAD, *BARE])
def test_survives_a_checkpoint(message, tmp_path) -> None:
    torch.save(message_state(message), tmp_path / "message.pt")
    state = torch.load(tmp_path / "message.pt", weights_only=True)
    assert_equal(UNDO[type(message)](state), message)


@pytest.mark.parametrize("message", [DOWNLOAD, UPLOAD])
def test_residuals_are_restored_in_order(message) -> None:
    restored = UNDO[type(message)](message_state(message))
    assert isinstance(restored.residuals, tuple)
    assert [item.origin for item in restored.residuals] == [item.origin for item in message.residuals]
    assert all(isinstance(item, Residual) for item in restored.residuals)


def test_the_state_is_not_a_copy_of_the_tensors() -> None:
    assert message_state(DOWNLOAD)["parts"]["backbone"]["b"] is DOWNLOAD.parts["backbone"]["b"]


def test_restoring_does_not_modify_the_state() -> None:
    state = message_state(UPLOAD)
    upload_from_state(state)
    assert isinstance(state["residuals"], list)
    assert state["residuals"][0]["origin"] == "fr"


@pytest.mark.parametrize("message", [RESIDUAL, DOWNLOAD, UPLOAD])
def test_messages_are_immutable(message) -> None:
    with pytest.raises(FrozenInstanceError):
        message.round = 6


def test_uploads_share_no_metrics() -> None:
    first, second = (Upload(node="it", round=0, parts={}, num_tokens=0) for _ in range(2))
    assert first.metrics is not second.metrics
