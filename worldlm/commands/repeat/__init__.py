"""`worldlm fit --repeat RUN`: runs a finished run again and compares the results."""

from worldlm.commands.repeat.command import repeat

__all__ = ["repeat"]
