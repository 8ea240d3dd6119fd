"""What the fit loop is doing at a moment: whether a checkpoint can be saved then."""

from enum import Enum


class Phase(Enum):
    """What the loop is doing; only the loop sets it."""

    IDLE = "idle"
    """Between two steps of a round, or between rounds. A checkpoint can be saved."""
    FITTING = "fitting"
    """A node trains in the live module. A checkpoint can be saved."""
    EXCHANGING = "exchanging"
    """Nodes exchange or merge messages. What they hold now cannot be saved."""
