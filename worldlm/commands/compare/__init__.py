"""`worldlm compare`: one run for each method and seed, a table, and pictures. Does not import torch."""

from worldlm.commands.compare.command import compare

__all__ = ["compare"]
