"""Bytes on every edge, and how long its link would take for them."""

from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.callbacks.scalars import log_scalars
from worldlm.federation.messages import Download, Upload
from worldlm.loop import Context, FederationCallback, WorldTrainer


class Traffic(FederationCallback):
    """Logs, once a round, the bytes sent over every edge in each direction since the run began.

    Where the topology describes a node's `link`, also the seconds that its messages of the round would take:
    latency once per message, plus bytes over bandwidth.
    """

    honours = frozenset({"link"})

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()  # up to the last round's end
        self._messages: Counter[str] = Counter()  # of this round

    def on_receive(self, trainer: WorldTrainer, context: Context, download: Download) -> None:
        self._messages[context.node.name] += 1

    def on_upload(self, trainer: WorldTrainer, context: Context, upload: Upload) -> Upload:
        self._messages[context.node.name] += 1
        return upload

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        exchange = trainer.world.exchange
        scalars: dict[str, float] = {}
        for name, node in trainer.topology.nodes.items():
            if trainer.topology.parent(name) is None:
                continue
            down, up = exchange.bytes_down[name], exchange.bytes_up[name]
            scalars |= {f"{name}/bytes_down": down, f"{name}/bytes_up": up}
            new = down + up - self._bytes[name]
            self._bytes[name] = down + up
            if (link := node.settings.link) is not None and new:
                latency = self._messages[name] * link.latency_ms / 1000
                scalars[f"{name}/link_seconds"] = latency + new * 8 / (link.bandwidth_mbps * 1e6)
        self._messages.clear()
        total = sum(exchange.bytes_down.values()) + sum(exchange.bytes_up.values())
        log_scalars(trainer, {**scalars, "world/bytes": total}, trainer.world.round)

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": dict(self._bytes), "messages": dict(self._messages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bytes, self._messages = Counter(state_dict["bytes"]), Counter(state_dict["messages"])
