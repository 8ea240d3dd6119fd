"""`worldlm topology estimate`: traffic, memory, disk and time of a run in a world of any size, without running it."""

from worldlm.commands.estimate.run_estimate import Estimate, estimate

__all__ = ["Estimate", "estimate"]
