"""Federated rounds on Lightning's Trainer."""

from worldlm.rounds.callback import Context, FederationCallback
from worldlm.trainer.world_trainer import WorldTrainer

__all__ = ["Context", "FederationCallback", "WorldTrainer"]
