"""What the commands on a run that was have in common: their options, and one line for each mistake."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from worldlm.cli.parser import Parser
from worldlm.runs.folder import CONFIG
from worldlm.runs.results import RESULTS
from worldlm.topology.errors import UserError, reason


def run_parser(command: str, description: str) -> Parser:
    """Make a parser that knows a run and one of its rounds."""
    parser = Parser(f"worldlm {command}", description)
    parser.add_argument("run", metavar="RUN", help="a run's folder, runs/NAME/version_N, or runs/NAME for its last")
    parser.add_argument(
        "--round", type=whole(1), metavar="N", help="as it was after this round, from 1, if it was kept; default: last"
    )
    parser.add_argument(
        "--trust", action="store_true", help="run the code of any class that the run's config.yaml, or a recipe, names"
    )
    return parser


def whole(least: int) -> Callable[[str], int]:
    """Return a reader of whole numbers from `least` on."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, but is {text!r}")
        return int(text)

    return read


def parse(parser: Parser, given: Sequence[str]) -> argparse.Namespace | None:
    """Read a command line; None if help was asked for, and given."""
    try:
        return parser.parse_args(given)
    except SystemExit:
        return None


@contextmanager
def line_by_line() -> Iterator[None]:
    """Turn what is wrong with files and settings into lines for the terminal."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error).splitlines()) from error
    except OSError as error:
        told = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise UserError(told.splitlines()) from error
    except (LookupError, TypeError, AttributeError) as error:
        if os.environ.get("WORLDLM_DEBUG"):
            raise
        told = f"a file of the run, {RESULTS} or {CONFIG}, is not as worldlm writes it: {reason(error)}"
        raise UserError([f"{told} (WORLDLM_DEBUG=1 shows where)"]) from error
