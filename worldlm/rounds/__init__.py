"""One round of the world: nodes, hooks, and the steps in which nodes train and exchange messages. Without Lightning."""

from worldlm.rounds.callback import RoundCallback
from worldlm.rounds.context import Context, LocalFit
from worldlm.rounds.executor import FitCounts, RoundExecutor, TooFewParticipants, run_round
from worldlm.rounds.method import Method
from worldlm.rounds.world import World

__all__ = [
    "Context",
    "FitCounts",
    "LocalFit",
    "Method",
    "RoundCallback",
    "RoundExecutor",
    "TooFewParticipants",
    "World",
    "run_round",
]
