"""Whether a run goes on with the text that it began with, and all of its processes read the same."""

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
    """Says which nodes go on with other text than they had before the checkpoint: corpora may change, not unseen.

    Processes of one run that have other text than the others, on another machine, end it.

    Text is known by the checksum of its packed tokens, so that it may lie elsewhere. The text of a node that joined, or
    whose data module does not tell checksums, is not held against anything.
    """

    def __init__(self) -> None:
        self._before: dict[str, list[str]] = {}

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        facts = data_facts(trainer)
        texts = {f"the text of {name}": str(_checksums(one)) for name, one in facts.items()}
        check_consistent(gather_objects((this_process(trainer.global_rank), texts)))
        now = {name: one["tokens_crc32"] for name, one in facts.items() if one.get("tokens_crc32")}
        changed = [name for name in now if self._before.get(name, now[name]) != now[name]]
        if changed and trainer.is_global_zero:
            told = "other text than before the checkpoint is read at %s: the run goes on with it"
            log.warning(told, join_names(changed))
        self._before = now

    def state_dict(self) -> dict[str, Any]:
        return {"tokens_crc32": self._before} if self._before else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = dict(state_dict["tokens_crc32"])


def _checksums(facts: dict[str, Any]) -> list[list[str] | None]:
    return [facts.get("tokens_crc32"), facts.get("held_out_tokens_crc32")]
