"""Federated rounds on Lightning's Trainer."""

from worldlm.trainer.callback import FederationCallback
from worldlm.trainer.world_trainer import WorldTrainer

__all__ = ["FederationCallback", "WorldTrainer"]
