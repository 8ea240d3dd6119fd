"""`worldlm report`: writes an HTML page about one run, or about several side by side. The page needs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from worldlm.cli.parser import Parser
from worldlm.commands.report.load_runs import Run, load_runs
from worldlm.files.atomic_write import write_text
from worldlm.runs.results import RESULTS
from worldlm.topology.errors import UserError, suggest

REPORT = "report.html"


def report(arguments: Sequence[str]) -> int:
    """Write the page.

    Args:
        arguments: The words after `worldlm report`.

    Returns:
        The exit status.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    options = _parser().parse_args(arguments)
    folders = [Path(folder) for folder in options.runs]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise UserError([f"{folder}: no such folder{suggest(str(folder), _siblings(folder))}" for folder in missing])
    runs = load_runs(folders)
    target = Path(options.out) if options.out else _default_target(folders, runs)
    if target.is_dir():
        raise UserError([f"{target} is a folder; --out takes a file, such as {target / REPORT}"])
    from worldlm.commands.report.page import page  # late: importing matplotlib takes a second

    write_text(target, page(runs, _progress), errors="replace")
    print(f"done. report: {target}")
    return 0


def _parser() -> Parser:
    parser = Parser("worldlm report", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, of its version_N, or of a comparison")
    default = f"{REPORT} beside the {RESULTS} of a run, in the folder of a comparison, or here for several runs"
    parser.add_argument("--out", metavar="FILE", help=f"file to write; by default {default}")
    return parser


def _siblings(folder: Path) -> list[str]:
    return [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []


def _default_target(folders: Sequence[Path], runs: Sequence[Run]) -> Path:
    if len(folders) > 1:
        return Path(REPORT)
    return (runs[0].folder if len(runs) == 1 else folders[0]) / REPORT


def _progress(runs: Sequence[Run]) -> Iterable[Run]:
    console = Console(stderr=True)
    return track(runs, "drawing", console=console, disable=not console.is_terminal, transient=True)
