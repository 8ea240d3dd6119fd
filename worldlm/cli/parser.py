"""Reading a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from worldlm.topology.errors import UserError


class Parser(argparse.ArgumentParser):
    """Raises what is wrong, with the usage, instead of leaving the program; takes no abbreviations.

    Args:
        command: What stands before the arguments, such as `worldlm compare`.
        description: What the command does.
    """

    def __init__(self, command: str, description: str | None = None) -> None:
        super().__init__(prog=command, allow_abbrev=False, description=description)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        name = self.prog.partition(" ")[2]
        raise UserError([f"{name}: {message}", *self.format_usage().strip().splitlines()])


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def part(given: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Part the values of an option, `--a b` or `--a=b`, from all else on a command line."""
    values, others, expects = list[str](), list[str](), False
    for one in given:
        if expects or one.startswith(f"{option}="):
            values.append(one if expects else one.partition("=")[2])
        elif one != option:
            others.append(one)
        expects = one == option
    return values, others
