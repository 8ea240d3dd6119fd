"""Methods side by side: one run for each method and seed, a table, and pictures. No torch."""

from worldlm.commands.compare.command import compare

__all__ = ["compare"]
