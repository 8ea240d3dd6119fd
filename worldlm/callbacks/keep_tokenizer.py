"""The tokenizer in the run's folder, so that a run can be used where its text is not."""

import json
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.data.tokenizers import FILE, FileTokenizer
from worldlm.files.atomic_write import write_text
from worldlm.models.initial_weights import find_origin
from worldlm.trainer import FederationCallback, WorldTrainer

log = logging.getLogger(__name__)


class KeepTokenizer(FederationCallback):
    """Writes `tokenizer.json` into the run's folder when it starts, where the data module has a tokenizer.

    Where the model starts from weights (`init_from`) whose own `tokenizer.json` is another, it says so: what they know
    of tokens will not hold.
    """

    def __init__(self) -> None:
        self._goes_on = False

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._goes_on = True

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        tokenizer: Any = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        if trainer.fast_dev_run or not trainer.is_global_zero or not hasattr(tokenizer, "to_json"):  # type: ignore[attr-defined]
            return
        text = tokenizer.to_json()
        write_text(trainer.folder / FILE, text)
        module: Any = pl_module
        if not self._goes_on and getattr(module, "init_from", None) is not None:
            there = find_origin(module.init_from, module.architecture).folder / FILE
            if told := _difference(there, text):
                log.warning("init_from is %s: %s", module.init_from, told)


def _difference(there: Path, here: str) -> str:
    """Say how the tokenizer that weights come with differs from the one in use; nothing if they are alike."""
    if not there.is_file():
        return f"no {FILE} is beside the weights: whether they know the tokens of this run cannot be told"
    try:
        other = FileTokenizer(there).to_json()
    except ValueError as error:
        return str(error)
    if _tokens(other) == _tokens(here):
        return ""
    return "the weights come with another tokenizer than this run's: what they know of its tokens will not hold"


def _tokens(text: str) -> Any:
    """Take from a `tokenizer.json` what decides which tokens there are."""
    content = json.loads(text)
    return content["model"], [(one["id"], one["content"]) for one in content["added_tokens"]]
