"""Where a run comes from: its text, the machine, its settings, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from worldlm.commands.report.read import Run
from worldlm.commands.report.results_part import MAX_ROWS
from worldlm.commands.report.tags import NOTHING, Html, code, element, facts, folded, if_long, joined, table
from worldlm.commands.report.words import whole
from worldlm.runs.folder import CONFIG


def data(run: Run) -> Html:
    """Show what text every data node had, and how it was read."""
    found: dict[str, dict[str, Any]] = run.record.content["data_nodes"]
    headings = (
        "node",
        "packed text",
        "blocks",
        "batch",
        "steps a fit",
        "fits a round",
        "held-out text",
        "its blocks",
    )
    rows = [[name, *_of_node(one)] for name, one in list(found.items())[:MAX_ROWS]]
    if not rows:
        return NOTHING
    note = (
        "Packed text by the name of its folder, which ends in a digest of its content; blocks of max_seq_len tokens. "
        "The same digests are the same text."
    )
    return joined(
        [if_long("All data nodes", len(rows), table(headings, rows, words=[1, 6])), element("p", note, class_="note")]
    )


def _of_node(told: Mapping[str, Any]) -> list[str]:
    text, held_out = (", ".join(told.get(key) or ()) for key in ("text", "held_out_text"))
    counts = [whole(told.get(key)) for key in ("blocks", "batch_size", "steps", "fits")]
    return [text, *counts, held_out, whole(told.get("held_out_blocks"))]


def environment(run: Run) -> Html:
    """Show with what it ran, and on what."""
    content = run.record.content
    started: dict[str, Any] = content.get("last_start", {})
    machine = [(name, str(started[name])) for name in _MACHINE if started.get(name) is not None]
    code = [(_CODE.get(name, name), commit) for name, commit in started.get("code", {}).items()]
    digests = [
        ("digest of the initial weights", content.get("initial_weights") or ""),
        ("digest of the root's final weights", (content.get("final_weights") or {}).get(run.record.root, "")),
    ]
    return facts([*content["versions"].items(), *code, *machine, *digests])


_CODE = {"worldlm": "commit of worldlm", "folder": "commit of the folder"}
_MACHINE = ("platform", "device", "processors", "processes", "threads")


def _command(line: str) -> Html:
    """Show a command line, which breaks between arguments only."""
    try:
        words = [shlex.quote(word) for word in shlex.split(line)]
    except ValueError:
        words = line.split()
    told = [one for word in words for one in (" ", element("span", word))][1:]
    return element("pre", element("code", *told), class_="command", tabindex="0")


def repeat(run: Run) -> Html:
    """Show the commands that make the run again, and all its settings."""
    parts = []
    started = run.record.content.get("last_start", {}).get("command")
    if started:
        parts += [element("p", "As it was started, the last time:"), _command(started)]
    if run.config is not None:
        name = f"{run.folder.parent.name if run.folder.name.startswith('version_') else run.folder.name}-repeated"
        again = ["worldlm", "fit", "--recipe", str(run.folder / CONFIG), "--name", name]
        command = shlex.join([*again, "--trainer.logger", "null", "--ckpt_path", "null"])
        told = (
            "From its settings alone, in the folder where it was first run, into a folder of its own. On the same "
            "versions, device and threads results.json is then the same, but for seconds and last_start. The topology "
            "is read by its name, so its file must be as it was."
        )
        parts += [element("p", told), _command(command)]
        if run.record.content["finished"]:
            check = "The same, and at the end whether the weights of all nodes and every figure matched:"
            parts += [element("p", check), _command(shlex.join(["worldlm", "fit", "--repeat", str(run.folder)]))]
        parts += [folded(f"All settings ({CONFIG})", code(run.config))]
    if not parts:
        return element("p", f"Neither its command nor its {CONFIG} was kept.")
    return joined(parts)
