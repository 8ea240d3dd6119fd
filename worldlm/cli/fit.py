"""`worldlm fit`, `validate` and `prepare`: a command is carried out, and what goes wrong becomes an error line."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.cli.console import log_to_terminal, quiet_libraries
from worldlm.cli.explain import explain, out_of_memory
from worldlm.cli.parser import CommandLine
from worldlm.cli.recipe import RecipeError
from worldlm.cli.recipe_cli import Progress, RecipeCLI
from worldlm.cli.safe_mode import add_current_folder, restricted_imports
from worldlm.distributed.consistency import this_process
from worldlm.distributed.transport import RankLost
from worldlm.runs.folder import LAST
from worldlm.storage.host_memory import keep_freed_memory
from worldlm.topology.errors import UserError

_MISTAKES = (ValueError, MisconfigurationException, FileNotFoundError)
"""Errors of the user."""
_MAYBE_BUGS = (RuntimeError, TypeError, ImportError)
"""Errors of the user if Lightning raises them itself, as its callbacks do for settings that they cannot use."""

MakeCLI = Callable[[CommandLine, Progress], object]
"""Makes a RecipeCLI, which carries its command out."""


def run_command(command_line: CommandLine, make_cli: MakeCLI = RecipeCLI) -> int:
    """Run `fit`, `validate` or `prepare`.

    Args:
        command_line: The command, its settings and its recipes.
        make_cli: Makes the LightningCLI that carries the command out.

    Returns:
        The exit status.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError(["the current folder was removed: change to another one"]) from None
    quiet_libraries()
    keep_freed_memory()
    if not command_line.safe:
        add_current_folder()
    if not command_line.recipes and not command_line.asks_for_help:
        command = command_line.command
        raise RecipeError(
            [f"{command} needs a recipe: worldlm {command} --recipe NAME_OR_PATH; try --recipe quickstart"]
        )
    progress = Progress()
    try:
        with log_to_terminal(), restricted_imports(command_line.safe):
            make_cli(command_line, progress)
    except SIGTERMException:
        resume = command_line.resume_command(progress.resume_from)
        saved = progress.folder is not None and (progress.folder / LAST).is_file()
        how = f"resume with: {resume}" if saved else "it cannot resume, because no checkpoint was written"
        rank_zero_only(print)(f"stopped; {how}. results so far: {progress.folder}")
        return 143
    except RankLost as error:
        print(f"worldlm: {error}", file=sys.stderr)
        return 1
    except (*_MISTAKES, *_MAYBE_BUGS, MemoryError) as error:
        message = _explain(error, command_line, progress)
        if not message:
            raise
        raise RecipeError(message.splitlines()) from error
    except OSError as error:
        if progress.folder is None:
            raise
        where = f": {progress.folder}" if error.errno is not None and error.filename is None else ""
        saved = (progress.folder / LAST).is_file()
        resume = "; once that is fixed, resume with --ckpt_path last" if saved else ""
        raise UserError([f"{error}{where}{resume}"]) from error
    return 0


def _explain(error: Exception, command_line: CommandLine, progress: Progress) -> str:
    """Return the lines that explain an error; "" for a bug, and where WORLDLM_DEBUG asks for the traceback."""
    memory = out_of_memory(error)
    is_bug = isinstance(error, _MAYBE_BUGS) and not memory and not _is_from_lightning(error)
    if os.environ.get("WORLDLM_DEBUG") or is_bug:
        return ""
    message = memory or explain(str(error), progress.readers, progress.known, command_line.words)
    rank: int = getattr(rank_zero_only, "rank", 0)
    process = f"{this_process(rank)}: " if rank else ""
    return "\n".join(f"{process}{line}" for line in message.splitlines())


def _is_from_lightning(error: Exception) -> bool:
    """Return whether an error was raised within Lightning's own code, and not below or above it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and str(frames[-1].f_globals.get("__name__", "")).startswith("lightning.")
