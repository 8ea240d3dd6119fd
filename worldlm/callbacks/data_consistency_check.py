"""Checks that a run resumes with the same text, and that all of its processes read the same text."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.distributed.consistency import check_consistent, this_process
from worldlm.distributed.transport import gather_objects
from worldlm.monitoring.run_facts import data_facts
from worldlm.topology.errors import join_names
from worldlm.trainer import FederationCallback, WorldTrainer

log = logging.getLogger(__name__)


class DataConsistencyCheck(FederationCallback):
    """Compares the text of every node with the text before the checkpoint, and between processes.

    After a resume, a warning names the nodes whose text has changed, and training continues. If the text differs
    between the processes of a run, for example because they run on different machines, the run ends with an error.

    Texts are compared by the checksums of their packed tokens, so the files may be in different folders. Nodes that
    have joined, and nodes whose data module provides no checksums, are not compared.
    """

    def __init__(self) -> None:
        self._before: dict[str, list[str]] = {}

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        facts = data_facts(trainer)
        texts = {f"the text of {name}": str(_checksums(entry)) for name, entry in facts.items()}
        check_consistent(gather_objects((this_process(trainer.global_rank), texts)))
        now = {name: entry["tokens_crc32"] for name, entry in facts.items() if entry.get("tokens_crc32")}
        changed = [name for name in now if self._before.get(name, now[name]) != now[name]]
        if changed and trainer.is_global_zero:
            log.warning("the text of %s changed since the checkpoint; training continues with it", join_names(changed))
        self._before = now

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_crc32": self._before} if self._before else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict["tokens_crc32"])


def _checksums(entry: dict[str, Any]) -> list[list[str] | None]:
    return [entry.get("tokens_crc32"), entry.get("held_out_tokens_crc32")]
