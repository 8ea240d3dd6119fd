"""`worldlm report`: writes runs as one HTML page that needs no network. Does not import torch."""

from worldlm.commands.report.command import report

__all__ = ["report"]
