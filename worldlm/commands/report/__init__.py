"""`worldlm report`: runs as one page that a browser shows without a network. No torch."""

from worldlm.commands.report.command import report

__all__ = ["report"]
