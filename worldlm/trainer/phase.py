"""What the fit loop is doing, which decides whether a checkpoint can be saved.

Several processes can save one only at the end of a round; see `FederatedFitLoop.on_save_checkpoint`.
"""

from enum import Enum


class Phase(Enum):
    """What the loop is doing; only the loop sets it."""

    IDLE = "idle"
    """Between two steps of the round's program, or between rounds. A checkpoint can be saved."""
    FITTING = "fitting"
    """A node trains in the live module. A checkpoint can be saved, and a run that resumes from it continues the fit."""
    EXCHANGING = "exchanging"
    """Nodes exchange or merge messages. No checkpoint can be saved."""
