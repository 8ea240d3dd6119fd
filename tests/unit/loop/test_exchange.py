"""Messages arrive as they were sent, once, ordered by name, and survive a checkpoint."""

from __future__ import annotations

import io

import torch

from worldlm.federation.messages import Download, Residual, Upload
from worldlm.loop.exchange import InProcessExchange


def _upload(node: str, size: int, *residuals: Residual) -> Upload:
    return Upload(node=node, round=1, parts={"keys": {"k": torch.ones(size)}}, num_tokens=3, residuals=residuals)


def _residual() -> Residual:
    return Residual(
        keys={"k": torch.ones(2)},
        values={"v": torch.ones(3)},
        origin="a",
        federation="north",
        jurisdiction=None,
        round=0,
    )


def test_uploads_wait_for_their_parent_and_go_once() -> None:
    exchange = InProcessExchange()
    for node in ("b", "a"):
        exchange.send_download(node, Download(round=1, parts={}))
    for node in ("b", "a"):
        exchange.send_upload("north", _upload(node, 1))
    exchange.send_upload("south", _upload("c", 1))
    assert [upload.node for upload in exchange.receive_uploads("north")] == ["a", "b"]
    assert exchange.receive_uploads("north") == []
    assert exchange.state_dict()["downloads"] == {}
    assert [upload.node for upload in exchange.receive_uploads("south")] == ["c"]


def test_bytes_are_counted_on_both_ways() -> None:
    exchange = InProcessExchange()
    exchange.send_download("a", Download(round=0, parts={"backbone": {"w": torch.ones(5)}}, residuals=(_residual(),)))
    exchange.send_upload("north", _upload("a", 7))
    exchange.send_upload("north", _upload("a", 7, _residual()))
    assert exchange.bytes_down == {"a": 4 * (5 + 2 + 3)}
    assert exchange.bytes_up == {"a": 4 * (7 + 7 + 2 + 3)}


def test_messages_in_flight_survive_a_checkpoint() -> None:
    exchange = InProcessExchange()
    exchange.send_download("a", Download(round=1, parts={"keys": {"k": torch.ones(2)}}, residuals=(_residual(),)))
    exchange.send_upload("north", _upload("a", 2, _residual()))
    file = io.BytesIO()
    torch.save(exchange.state_dict(), file)
    file.seek(0)
    restored = InProcessExchange()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert (restored.bytes_up, restored.bytes_down) == (exchange.bytes_up, exchange.bytes_down)
    download, (upload,) = restored.receive_download("a"), restored.receive_uploads("north")
    assert torch.equal(download.parts["keys"]["k"], torch.ones(2))
    assert upload.num_tokens == 3
    for residual in (*download.residuals, *upload.residuals):
        assert (residual.origin, residual.federation, residual.round) == ("a", "north", 0)
        assert torch.equal(residual.values["v"], torch.ones(3))
