"""Reading a command line: one parser for all commands, and the words that `fit`, `validate` and `prepare` take."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from worldlm.cli.safe_mode import OPTION
from worldlm.topology import find_file
from worldlm.topology.errors import UserError, suggest

REPEAT = "--repeat"
"""The option of `worldlm fit` that runs a finished run again."""
_RECIPE = "--recipe"


# ---------------------------------------------------------------------- fit, validate, prepare


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The command line of `fit`, `validate` or `prepare`, parsed once."""

    command: str
    """fit, validate or prepare."""
    settings: tuple[str, ...]
    """The words that LightningCLI parses after the command. Recipes are given by their paths."""
    recipes: tuple[Path, ...] = ()
    """The recipes' files, in the order in which they are laid over one another."""
    safe: bool = False
    """Whether `--safe` was given."""
    repeat: str | None = None
    """The run that `--repeat` names."""
    typed: tuple[str, ...] = ()
    """All words as the user typed them, beginning with `worldlm`."""

    @property
    def words(self) -> list[str]:
        """The command and its settings, as LightningCLI takes them."""
        return [self.command, *self.settings]

    @property
    def text(self) -> str:
        """The line as the user typed it, quoted for a shell."""
        return shlex.join(self.typed)

    @property
    def asks_for_help(self) -> bool:
        """Whether the command is to print its help."""
        return not {"-h", "--help"}.isdisjoint(self.settings)

    def process_command(self) -> list[str]:
        """Return the command that starts another process of the same run."""
        # -P keeps Python from importing modules of the current folder first
        isolated, safe = (["-P"], [OPTION]) if self.safe else ([], [])
        return [sys.executable, *isolated, "-m", "worldlm", *self.words, *safe]

    def resume_command(self, checkpoint: str) -> str:
        """Return the command that continues a stopped run from a checkpoint."""
        _, others = split_option(self.typed, "--ckpt_path")
        return shlex.join([*others, "--ckpt_path", checkpoint])


def parse_command_line(arguments: Sequence[str]) -> CommandLine:
    """Parse the command line of `fit`, `validate` or `prepare`.

    Args:
        arguments: The words after `worldlm`, beginning with the command.

    Raises:
        UserError: If `--repeat` names no run, or more than one, or is combined with a recipe.
        FileNotFoundError: If there is no such recipe.
    """
    command, *words = arguments
    settings, recipes, runs, safe = list[str](), list[Path](), list[str](), False
    remaining = iter(words)
    for word in remaining:
        option, equals, value = word.partition("=")
        if word == OPTION:
            safe = True
        elif option == REPEAT and command == "fit":
            runs.append(value if equals else next(remaining, ""))
        elif option == _RECIPE and (name := value if equals else next(remaining, None)) is not None:
            recipes.append(find_file("recipes", name))
            settings.append(f"{_RECIPE}={recipes[-1]}")
        else:
            settings.append(word)
    return CommandLine(
        command=command,
        settings=tuple(settings),
        recipes=tuple(recipes),
        safe=safe,
        repeat=_repeated_run(runs, recipes) if runs else None,
        typed=("worldlm", *arguments),
    )


def _repeated_run(runs: Sequence[str], recipes: Sequence[Path]) -> str:
    """Check the values of `--repeat`, and return the run that it names."""
    if len(runs) != 1 or not runs[0] or runs[0].startswith("--"):
        raise UserError([f"{REPEAT} takes one run: worldlm fit {REPEAT} runs/NAME/version_0"])
    if recipes:
        raise UserError([f"{REPEAT} takes all settings from the run: leave {_RECIPE} out"])
    return runs[0]


def split_option(words: Sequence[str], option: str) -> tuple[list[str], list[str]]:
    """Separate the values of an option, `--a b` or `--a=b`, from all other words of a command line."""
    values, others = list[str](), list[str]()
    remaining = iter(words)
    for word in remaining:
        if word == option:
            values += [value for value in [next(remaining, None)] if value is not None]
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            others.append(word)
    return values, others


# ---------------------------------------------------------------------- all other commands


class Parser(argparse.ArgumentParser):
    """Parses a command's arguments. Raises UserError with the usage, and accepts no abbreviations.

    Args:
        command: The words before the arguments, such as `worldlm compare`.
        description: What the command does.
        usage: The usage line, where argparse's own does not fit.
    """

    def __init__(self, command: str, description: str | None = None, usage: str | None = None) -> None:
        super().__init__(prog=command, allow_abbrev=False, description=description, usage=usage)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        name = self.prog.partition(" ")[2]
        if unknown := re.match(r"(?:unrecognized arguments:|no option) (-[\w.-]+)", message):
            message += suggest(unknown[1], self._option_string_actions)
        raise UserError([f"{name}: {message}", *self.format_usage().strip().splitlines()])

    def add_run(self) -> None:
        """Add the arguments that name a finished run: its folder, one of its rounds, and whether to trust it."""
        self.add_argument("run", metavar="RUN", help="folder of a run, runs/NAME/version_N, or runs/NAME for its last")
        self.add_argument(
            "--round",
            type=whole_number(1),
            metavar="N",
            help="a round whose checkpoint was kept, from 1; default: last",
        )
        self.add_argument(
            "--trust",
            action="store_true",
            help="also build classes of other packages that config.yaml or a recipe names",
        )
        self.add_argument("--base", metavar="FOLDER", help="the frozen model of adapters, if its folder was moved")

    def add_safe(self) -> None:
        """Add `--safe`."""
        help_ = "reject classes in recipes that are not from worldlm, torch or lightning"
        self.add_argument(OPTION, action="store_true", help=help_)


def names(text: str) -> list[str]:
    """Read names separated by commas."""
    return [name for name in (part.strip() for part in text.split(",")) if name]


def whole_number(least: int) -> Callable[[str], int]:
    """Return a function that reads whole numbers of at least `least`."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, but is {text!r}")
        return int(text)

    return read


def whole_numbers(text: str) -> list[int]:
    """Read whole numbers separated by commas."""
    try:
        return [int(name) for name in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be whole numbers separated by commas, but is {text!r}") from None


def number_from(least: float) -> Callable[[str], float]:
    """Return a function that reads finite numbers of at least `least`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be a number of at least {least:g}, but is {text!r}")
        return value

    return read
