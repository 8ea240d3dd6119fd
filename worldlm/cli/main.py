"""The `worldlm` command. Answers what needs no torch by itself, and loads the rest late."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from worldlm import __version__
from worldlm.topology.errors import UserError, printable, suggest

HELP = f"""worldlm {__version__}: language models trained across federations of federations

  worldlm fit --recipe NAME_OR_PATH [--a.b value ...]       train a world; see the run with tensorboard --logdir runs
  worldlm fit --recipe NAME_OR_PATH --ckpt_path last        go on where the last run of that recipe stopped
  worldlm fit --repeat RUN                                  a finished run once more: does it come to the same?
  worldlm prepare --recipe NAME_OR_PATH                     only download, tokenise and pack the text; fit does it too
  worldlm fit --recipe NAME_OR_PATH --print_config          show every setting, with its value
  worldlm validate --recipe NAME_OR_PATH --ckpt_path last   evaluate every node of a run
  worldlm compare --recipe NAME --methods A,B --seeds 1,2   run methods side by side: a table and pictures
  worldlm export RUN --node NAME --out FOLDER               a node's model as a Hugging Face folder with a card
  worldlm generate RUN --node A,B "PROMPT"                  the same prompt through several nodes, side by side
  worldlm evaluate RUN                                      every node's model on every corpus: who knows what
  worldlm report RUN...                                     tell runs, side by side, in a page of HTML: report.html
  worldlm topology check FILE                               find the mistakes in a topology
  worldlm topology show FILE --format svg                   draw a topology: tree, mermaid, svg or png
  worldlm topology estimate RECIPE                          what a run would take: bytes, memory, disk, time
  worldlm runs [FOLDER] [--json]                            list runs: state, round, best perplexity
  worldlm help COMMAND                                      what a command takes
  worldlm --version

Recipes and topologies are found by path, or by name in ./recipes and ./topologies and among those that come with
WorldLM. `worldlm fit --help` lists all settings. Several --recipe are laid over one another, the last one wins.
A class_path in a recipe runs code: with --safe only classes of worldlm, torch and lightning may be named.

Exit status: 0 all went well, 1 a run failed or its repetition did not match, 2 something you can put right, 130 or 143
stopped by Ctrl-C or SIGTERM.
"""

LIGHTNING = ("fit", "validate", "prepare")
"""Carried out by LightningCLI."""

ELSEWHERE = {
    "compare": "worldlm.commands.compare:compare",
    "runs": "worldlm.commands.list_runs:list_runs",
    "export": "worldlm.commands.inference.export:export",
    "generate": "worldlm.commands.inference.generate:generate_texts",
    "evaluate": "worldlm.commands.inference.evaluate:evaluate",
    "topology": "worldlm.commands.topology:topology",
    "report": "worldlm.commands.report:report",
}
"""Commands with a room of their own, by name: where the function is that takes the rest of the line."""

COMMANDS = (*LIGHTNING, *ELSEWHERE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What stands after `worldlm`; by default that of this process.

    Returns:
        The exit status: 0 if all went well, 1 if a run failed, its repetition did not match or nobody reads on, 2 for
        what a user can put right, 130 or 143 if stopped by a signal.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (UserError, OSError) as error:
        return fail(str(error))


def _run(given: list[str]) -> int:
    if given[:1] == ["help"] and len(given) > 1:
        given = [given[1], "--help"]
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if given[0] in ("--version", "-V"):
        print(f"worldlm {__version__}")
        return 0
    # two threads that spin while they wait make a busy machine many times slower; read when torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if given[0] in ELSEWHERE:
        room, _, name = ELSEWHERE[given[0]].partition(":")
        return int(getattr(import_module(room), name)(given[1:]))
    if given[0] in LIGHTNING:
        import_module("worldlm.cli.lazy_imports").import_lightning()
    if given[0] == "fit" and any(one.partition("=")[0] == "--repeat" for one in given):
        return int(import_module("worldlm.commands.repeat").repeat(given[1:]))
    if given[0] in LIGHTNING:
        if not sys.stderr.isatty():  # bars of libraries, read when they are imported
            os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from worldlm.cli.fit import run

        return run(given)
    near = suggest(given[0], (*COMMANDS, "help", "--help", "--version"))
    return fail(f"no command {given[0]!r}; there are {', '.join(COMMANDS)}{near}")


def fail(message: str, status: int = 2) -> int:
    """Say what went wrong, on standard error, a line each."""
    for line in message.splitlines():
        print(f"worldlm: {printable(line)}", file=sys.stderr)
    return status
