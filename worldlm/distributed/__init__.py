"""Several processes that share a world: the placement of the nodes, and the messages between processes."""

from worldlm.distributed.transport import RankLost

__all__ = ["RankLost"]
