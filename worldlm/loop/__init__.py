"""Federated rounds over Lightning's Trainer."""

from worldlm.loop.hooks import Context, FederationCallback
from worldlm.loop.node_store import Paging
from worldlm.loop.trainer import WorldTrainer
from worldlm.loop.wire import RankLost
from worldlm.loop.world import World

__all__ = ["Context", "FederationCallback", "Paging", "RankLost", "World", "WorldTrainer"]
