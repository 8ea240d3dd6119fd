"""A LightningModule and dataloaders that know nothing of WorldLM."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Bigrams(pl.LightningModule):
    """Predicts each token from the one before it; batches are tensors, tuples or dicts."""

    def __init__(self, *, vocab_size: int = 9, extra: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.embedding, self.head = nn.Embedding(vocab_size, 4), nn.Linear(4, vocab_size)
        self.extra = extra or nn.Identity()

    def loss(self, batch: Any) -> torch.Tensor:
        tokens = batch["tokens"] if isinstance(batch, dict) else batch[0] if isinstance(batch, list) else batch
        logits = self.head(self.embedding(tokens[:, :-1])).flatten(0, 1)
        return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]  # in epochs


def texts(seed: int, size: int = 11) -> torch.Tensor:
    return torch.randint(0, 9, (size, 6), generator=torch.Generator().manual_seed(seed))


def as_dicts(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {"tokens": torch.stack([row[0] for row in rows])}


def loader(seed: int, batch_size: int = 4, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(texts(seed)), batch_size=batch_size, **options)


def shuffled() -> dict[str, Any]:
    return {"a": loader(1, shuffle=True), "b": list(texts(2, 12).split(4))}
