"""The `worldlm` command: it finds the command that is named, and imports only what that needs."""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from worldlm import __version__
from worldlm.cli.parser import parse_command_line
from worldlm.cli.signals import INTERRUPTED, STOP_AT_ONCE, Stopped, handling
from worldlm.cli.streams import OutputLost, safe_streams
from worldlm.runs.parent_process import follow_parent
from worldlm.topology.errors import UserError, first_line, is_panic, printable, suggest

HELP = f"""worldlm {__version__}: language models trained across federations of federations

  worldlm fit --recipe NAME_OR_PATH [--a.b value ...]       train a world; see the run with tensorboard --logdir runs
  worldlm fit --recipe NAME_OR_PATH --ckpt_path last        continue the last run of that recipe
  worldlm fit --repeat RUN                                  repeat a finished run and compare the results
  worldlm prepare --recipe NAME_OR_PATH                     only download, tokenise and pack the text
  worldlm fit --recipe NAME_OR_PATH --print_config          print every setting and its value
  worldlm validate --recipe NAME_OR_PATH --ckpt_path last   evaluate every node of a run
  worldlm compare --recipe NAME --methods A,B --seeds 1,2   run several methods: a table and pictures
  worldlm export RUN --node NAME --out FOLDER               write a node's model as a Hugging Face folder
  worldlm generate RUN --node A,B "PROMPT"                  continue a prompt with several nodes' models
  worldlm evaluate RUN                                      evaluate every node's model on every corpus
  worldlm report RUN...                                     write an HTML page about one run or several
  worldlm topology check FILE                               check a topology for mistakes
  worldlm topology show FILE --format svg                   draw a topology: tree, mermaid, svg or png
  worldlm topology estimate RECIPE                          estimate traffic, memory, disk and time of a run
  worldlm organisations keys --node NAME                    create the keys of a node that you run yourself
  worldlm serve --recipe PACT --node NAME --listen H:P      run a federation; its children are elsewhere
  worldlm join --recipe PACT --node NAME --parent H:P       run a node; its parent is elsewhere
  worldlm runs [FOLDER] [--json]                            list runs: state, round, best perplexity
  worldlm help COMMAND                                      print the arguments of a command
  worldlm --version

Recipes and topologies are found by path, or by name in ./recipes and ./topologies and among those that come with
WorldLM. `worldlm fit --help` lists all settings. Several --recipe are merged, and the last one wins.
A class_path in a recipe runs code. With --safe, only classes of worldlm, torch and lightning are allowed, and a recipe
can name no address, no function and no folder elsewhere.

Exit status: 0 all went well; 1 a run failed or its repetition did not match; 2 a mistake that you can correct; 130 or
143 stopped by Ctrl-C or a signal.
"""

LIGHTNING = ("fit", "validate", "prepare")
"""Commands of LightningCLI."""

OTHERS = {
    "compare": "worldlm.commands.compare:compare",
    "runs": "worldlm.commands.list_runs:list_runs",
    "export": "worldlm.commands.inference.export:export",
    "generate": "worldlm.commands.inference.generate:generate_texts",
    "evaluate": "worldlm.commands.inference.evaluate:evaluate",
    "topology": "worldlm.commands.topology:topology",
    "report": "worldlm.commands.report:report",
    "organisations": "worldlm.commands.organisations.identities:organisations",
    "serve": "worldlm.commands.organisations.run_node:serve",
    "join": "worldlm.commands.organisations.run_node:join",
}
"""All other commands: the function that takes the rest of the line. Each is imported when it is needed."""

COMMANDS = (*LIGHTNING, *OTHERS)

_NODE_COMMANDS = ("serve", "join")
"""Commands that train one node, which use Lightning too."""

_RESULT_IN_FILES = ("fit", "prepare", "compare", "export", "evaluate", "report", "serve", "join")
"""Commands whose result is in files. They go on when standard output cannot be written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after `worldlm`; by default those of this process.

    Returns:
        The exit status. 0: all went well. 1: a run failed, its repetition did not match, or the output was closed. 2: a
        mistake that the user can correct. 130 or 143: a signal stopped it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with safe_streams(is_result=words[:1] not in [[command] for command in _RESULT_IN_FILES]):
        return _run_with_errors(words)


def _run_with_errors(words: list[str]) -> int:
    """Run the command line. What goes wrong becomes an error line and an exit status."""
    try:
        with handling(STOP_AT_ONCE):
            follow_parent()
            try:
                return _run(words)
            finally:
                sys.stdout.flush()
    except Stopped as error:
        return fail(error.reason, int(error.code or 0))
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except OutputLost as error:
        return 1 if error.errno == errno.EPIPE else fail(f"{error.filename} cannot be written: {error.strerror}", 1)
    except (UserError, OSError) as error:
        return fail(str(error))
    except BaseException as error:
        if not is_panic(error) or os.environ.get("WORLDLM_DEBUG"):
            raise
        return fail(f"a library failed: {first_line(error)} (WORLDLM_DEBUG=1 shows where)", 1)


def _run(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    command, *rest = words
    if command in ("--version", "-V"):
        print(f"worldlm {__version__}")
        return 0
    # threads that spin while they wait slow down a busy machine; torch reads this when it is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC prints a line for each failed connection
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else torch prints a stack for each lost connection
    if not sys.stderr.isatty():  # libraries read these when they are imported
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if command in LIGHTNING:
        return _run_lightning(words)
    if command in OTHERS:
        if command in _NODE_COMMANDS:
            _import_lightning()
        module, _, function = OTHERS[command].partition(":")
        return int(getattr(import_module(module), function)(rest))
    near = suggest(command, (*COMMANDS, "help", "--help", "--version"))
    return fail(f"no command {command!r}; there are {', '.join(COMMANDS)}{near}")


def _run_lightning(words: list[str]) -> int:
    command_line = parse_command_line(words)
    _import_lightning()
    if command_line.repeat is not None:
        return int(import_module("worldlm.commands.repeat").repeat(command_line))
    from worldlm.cli.fit import run_command  # late: it imports torch

    return run_command(command_line)


def _import_lightning() -> None:
    """Import Lightning before anything else does, without the libraries that no command uses."""
    import_module("worldlm.cli.lazy_imports").import_lightning()


def fail(message: str, status: int = 2) -> int:
    """Print an error to standard error, one line each, and return the exit status."""
    for line in message.splitlines():
        print(f"worldlm: {printable(line)}", file=sys.stderr)
    return status
