"""`worldlm topology`: check or draw a topology, or estimate what a run in it would take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from worldlm.cli.parser import Parser
from worldlm.topology import Topology, draw_mermaid, draw_tree, find_file, load_topology
from worldlm.topology.errors import UserError, suggest

COMMANDS = ("check", "show", "estimate")
TEXTS = {"tree": draw_tree, "mermaid": draw_mermaid}
PICTURES = ("svg", "png")


def topology(given: Sequence[str]) -> int:
    """Carry one of the commands out.

    Args:
        given: What stands after `worldlm topology`.

    Returns:
        The exit status.

    Raises:
        UserError: What a user can put right, one line each.
        FileNotFoundError: If there is no such file.
    """
    command = given[0] if given else ""
    if command == "estimate":
        from worldlm.commands.estimate.command import estimate_run

        return estimate_run(given[1:])
    if command in ("", "-h", "--help"):
        print(_USAGE)
        return 0 if command else 2
    if command not in COMMANDS:
        raise UserError([f"topology: no command {command!r}{suggest(command, COMMANDS)}", *_USAGE.splitlines()])
    parser = Parser(f"worldlm topology {command}")
    parser.add_argument("file", metavar="FILE", help="name or path of a topology")
    if command == "show":
        formats = (*TEXTS, *PICTURES)
        parser.add_argument("--format", choices=formats, default="tree", help="tree by default")
        parser.add_argument("--out", help="file to write; - for standard output. A picture goes to NAME.FORMAT")
    options = parser.parse_args(given[1:])
    path = find_file("topologies", options.file)
    tree = load_topology(path)
    if command == "show":
        return _show(tree, options.format, options.out)
    data = len(tree.data_nodes)
    print(f"{path}: {tree.name} is in order: {len(tree.nodes)} nodes, {tree.depth} levels, {data} with data")
    return 0


_USAGE = f"""usage: worldlm topology check FILE
       worldlm topology show FILE [--format {"|".join((*TEXTS, *PICTURES))}] [--out PATH]
       worldlm topology estimate RECIPE"""


def _show(tree: Topology, kind: str, out: str | None) -> int:
    content = f"{TEXTS[kind](tree)}\n".encode() if kind in TEXTS else _picture(tree, kind)
    target = out or (f"{tree.name}.{kind}" if kind in PICTURES else "-")
    if target == "-":
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        Path(target).write_bytes(content)
        print(f"done. {tree.name}, drawn: {target}")
    return 0


def _picture(tree: Topology, kind: str) -> bytes:
    from worldlm.plots.boxes import of_topology  # late: pictures take a second to import
    from worldlm.plots.style import encoded
    from worldlm.plots.world import draw_world

    return encoded(draw_world(of_topology(tree)), kind)
