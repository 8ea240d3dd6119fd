"""`worldlm topology`: checks or draws a topology, or estimates what a run in it would take."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from worldlm.cli.console import show_warning
from worldlm.cli.parser import Parser, split_option
from worldlm.files.atomic_write import write_bytes
from worldlm.topology import Topology, draw_mermaid, draw_tree, find_file, load_topology
from worldlm.topology.errors import UserError, suggest
from worldlm.topology.upload_noise import noise_warnings

COMMANDS = ("check", "show", "estimate")
TEXTS = {"tree": draw_tree, "mermaid": draw_mermaid}
PICTURES = ("svg", "png")
_FORMATS = (*TEXTS, *PICTURES)
_USAGE = f"""usage: worldlm topology check FILE
       worldlm topology show FILE [--format {"|".join(_FORMATS)}] [--out PATH]
       worldlm topology show FILE --recipe RECIPE [--a.b X ...]
       worldlm topology estimate RECIPE"""


def topology(arguments: Sequence[str]) -> int:
    """Run `worldlm topology`.

    Args:
        arguments: The words after `worldlm topology`.

    Returns:
        The exit status.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
        FileNotFoundError: If there is no such file.
    """
    command, *rest = arguments or [""]
    if command in ("", "-h", "--help"):
        print(_USAGE)
        return 0 if command else 2
    if command == "estimate":
        from worldlm.cli.lazy_imports import import_lightning

        import_lightning()
        from worldlm.commands.estimate.command import estimate_run  # late: it imports torch

        return estimate_run(rest)
    if command == "check":
        return _with_short_warnings(_check, rest)
    if command == "show":
        return _with_short_warnings(_show, rest)
    raise UserError([f"topology: no command {command!r}{suggest(command, COMMANDS)}", *_USAGE.splitlines()])


def _with_short_warnings(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        return run(arguments)


def _parser(command: str) -> Parser:
    parser = Parser(f"worldlm topology {command}")
    parser.add_argument("file", metavar="FILE", help="name or path of a topology")
    return parser


def _check(arguments: Sequence[str]) -> int:
    options = _parser("check").parse_args(arguments)
    path = find_file("topologies", options.file)
    tree = load_topology(path)
    num_data_nodes = len(tree.data_nodes)
    print(f"{path}: {tree.name} is valid: {len(tree.nodes)} nodes, {tree.depth} levels, {num_data_nodes} with data")
    for line in noise_warnings(tree):
        print(line)
    return 0


def _show(arguments: Sequence[str]) -> int:
    if split_option(arguments, "--recipe")[0]:
        from worldlm.cli.lazy_imports import import_lightning

        import_lightning()
        from worldlm.commands.show_text import show_text  # late: it imports torch

        return show_text(arguments)
    parser = _parser("show")
    parser.add_argument("--format", choices=_FORMATS, default="tree", help="tree by default")
    parser.add_argument("--out", help="file to write, or - for standard output; by default NAME.FORMAT for a picture")
    options = parser.parse_args(arguments)
    tree, format_ = load_topology(find_file("topologies", options.file)), options.format
    content = f"{TEXTS[format_](tree)}\n".encode() if format_ in TEXTS else _picture(tree, format_)
    target = options.out or (f"{tree.name}.{format_}" if format_ in PICTURES else "-")
    if target == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_bytes(Path(target), content)
        print(f"done. picture of {tree.name}: {target}")
    return 0


def _picture(tree: Topology, format_: str) -> bytes:
    from worldlm.plots.boxes import of_topology  # late: importing matplotlib takes a second
    from worldlm.plots.style import encoded
    from worldlm.plots.world import draw_world

    return encoded(draw_world(of_topology(tree)), format_)
