"""Saves the tokenizer in the run folder, so that trained models can be used without the training text."""

import json
import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule

from worldlm.data.chat_template import SETTINGS
from worldlm.data.tokenizers import FILE, FileTokenizer
from worldlm.files.atomic_write import write_text
from worldlm.models.initial_weights import find_origin
from worldlm.runs.lock import check_held
from worldlm.trainer import FederationCallback, WorldTrainer

log = logging.getLogger(__name__)


class KeepTokenizer(FederationCallback):
    """Writes `tokenizer.json` into the run folder at the start of training, if the data module has a tokenizer.

    If there are conversations, it also writes `tokenizer_config.json` with the tokenizer's chat template.

    Logs a warning if the model starts from weights (`init_from`) that were trained with another tokenizer.
    """

    def __init__(self) -> None:
        self._resumed = False

    def on_load_checkpoint(self, trainer: Any, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._resumed = True

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        data: Any = getattr(trainer, "datamodule", None)
        tokenizer: Any = getattr(data, "tokenizer", None)
        if trainer.fast_dev_run or not trainer.is_global_zero or not hasattr(tokenizer, "to_json"):  # type: ignore[attr-defined]
            return
        text = tokenizer.to_json()
        check_held(trainer.folder)
        write_text(trainer.folder / FILE, text)
        chat = getattr(tokenizer, "chat", None) if getattr(data, "has_conversations", False) else None
        if chat is not None:
            write_text(trainer.folder / SETTINGS, json.dumps(chat.settings(), indent=2, ensure_ascii=False) + "\n")
        module: Any = pl_module
        if not self._resumed and getattr(module, "init_from", None) is not None:
            path = find_origin(module.init_from, module.architecture).folder / FILE
            if message := _difference(path, text):
                log.warning("init_from is %s: %s", module.init_from, message)


def _difference(path: Path, text: str) -> str:
    """Describe how the tokenizer file of the weights differs from the run's `tokenizer.json`; empty if it does not."""
    if not path.is_file():
        return f"there is no {FILE} beside the weights, so their tokenizer cannot be compared with this run's"
    try:
        other = FileTokenizer(path).to_json()
    except ValueError as error:
        return str(error)
    if _tokens(other) == _tokens(text):
        return ""
    return "the weights were trained with another tokenizer, so their embeddings do not fit the tokens of this run"


def _tokens(text: str) -> Any:
    """Return the fields of a `tokenizer.json` that define the vocabulary."""
    content = json.loads(text)
    return content["model"], [(token["id"], token["content"]) for token in content["added_tokens"]]
