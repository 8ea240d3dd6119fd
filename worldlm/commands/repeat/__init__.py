"""`worldlm fit --repeat RUN`: a run once more, and whether it came to the same."""

from worldlm.commands.repeat.command import repeat

__all__ = ["repeat"]
