"""Several processes that share a world: which process holds which node, and how messages travel between them."""

from worldlm.distributed.transport import RankLost

__all__ = ["RankLost"]
