"""`worldlm report`: one page of HTML that tells a run, or several side by side, and needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from worldlm.cli.parser import Parser
from worldlm.commands.report.read import Run, read
from worldlm.files.atomic_write import write_text
from worldlm.runs.results import RESULTS
from worldlm.topology.errors import UserError, suggest

REPORT = "report.html"


def report(given: Sequence[str]) -> int:
    """Write the page.

    Args:
        given: What stands after `worldlm report`.

    Returns:
        The exit status.

    Raises:
        UserError: What a user can put right, one line each.
    """
    options = _parser().parse_args(given)
    folders = [Path(one) for one in options.runs]
    if missing := [one for one in folders if not one.is_dir()]:
        raise UserError([f"{one}: no such folder{suggest(str(one), _beside(one))}" for one in missing])
    runs = read(folders)
    target = Path(options.out) if options.out else _target(folders, runs)
    if target.is_dir():
        raise UserError([f"{target} is a folder; --out takes a file, such as {target / REPORT}"])
    from worldlm.commands.report.page import page  # late: pictures take a second to import

    write_text(target, page(runs, _progress), errors="replace")
    print(f"done. report: {target}")
    return 0


def _parser() -> Parser:
    parser = Parser("worldlm report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, its version_N, or of a comparison")
    told = f"file to write; by default {REPORT} beside a run's {RESULTS} or in a comparison's folder, of several here"
    parser.add_argument("--out", metavar="FILE", help=told)
    return parser


def _beside(folder: Path) -> list[str]:
    return [str(one) for one in folder.parent.iterdir() if one.is_dir()] if folder.parent.is_dir() else []


def _target(folders: Sequence[Path], runs: Sequence[Run]) -> Path:
    if len(folders) > 1:
        return Path(REPORT)
    return (runs[0].folder if len(runs) == 1 else folders[0]) / REPORT


def _progress(runs: Sequence[Run]) -> Iterable[Run]:
    console = Console(stderr=True)
    return track(runs, "drawing", console=console, disable=not console.is_terminal, transient=True)
