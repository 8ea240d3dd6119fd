"""Federated rounds over Lightning's Trainer."""

from worldlm.loop.hooks import Context, FederationCallback
from worldlm.loop.trainer import WorldTrainer
from worldlm.loop.world import World

__all__ = ["Context", "FederationCallback", "World", "WorldTrainer"]
