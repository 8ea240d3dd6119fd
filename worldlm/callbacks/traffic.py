"""Bytes on every edge, and how long its link would take for them."""

from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.loop import FederationCallback, WorldTrainer
from worldlm.loop.scalars import log_scalars


class Traffic(FederationCallback):
    """Logs, once a round, the bytes sent over every edge in each direction since the run began.

    Where the topology describes a node's `link`, also the seconds that its messages of the round would take:
    latency once per message, plus bytes over bandwidth.
    """

    honours = frozenset({"link"})

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()  # up to the last round's end
        self._messages: Counter[str] = Counter()

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        scalars: dict[str, float] = {}
        total = 0
        for name, node in trainer.topology.nodes.items():
            if trainer.topology.parent(name) is None:
                continue
            state = trainer.world.states[name]
            scalars |= {f"{name}/bytes_down": state.bytes_down, f"{name}/bytes_up": state.bytes_up}
            both = state.bytes_down + state.bytes_up
            new, messages = both - self._bytes[name], state.num_messages - self._messages[name]
            self._bytes[name], self._messages[name] = both, state.num_messages
            if (link := node.settings.link) is not None and new:
                seconds = messages * link.latency_ms / 1000 + new * 8 / (link.bandwidth_mbps * 1e6)
                scalars[f"{name}/link_seconds"] = seconds
            total += both
        log_scalars(trainer, {**scalars, "world/bytes": total}, trainer.world.round)

    def state_dict(self) -> dict[str, Any]:
        return {"bytes": dict(self._bytes), "messages": dict(self._messages)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._bytes, self._messages = Counter(state_dict["bytes"]), Counter(state_dict["messages"])
