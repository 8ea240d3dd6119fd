"""What a run would take: bytes, memory, disk and time, for worlds of any size, without running them."""

from worldlm.commands.estimate.whole import Estimate, estimate

__all__ = ["Estimate", "estimate"]
