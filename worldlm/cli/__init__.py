"""The `worldlm` command line."""

from worldlm.cli.main import COMMANDS, main

__all__ = ["COMMANDS", "main"]
