"""Sections of a page about a run's inputs: its text, the machine, its settings, and the command that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from worldlm.commands.report.html_tags import NOTHING, Html, code, element, facts, folded, if_long, joined, table
from worldlm.commands.report.load_runs import Run
from worldlm.commands.report.number_format import count_text
from worldlm.commands.report.results_sections import MAX_ROWS
from worldlm.runs.folder import CONFIG, key_name


def data(run: Run) -> Html:
    """Show every data node's text and how it was read."""
    found: dict[str, dict[str, Any]] = run.record.content["data_nodes"]
    headings = (
        "node",
        "packed text",
        "blocks",
        "batch",
        "steps per fit",
        "fits per round",
        "held-out text",
        "its blocks",
    )
    rows = [[name, *_text_cells(facts_)] for name, facts_ in list(found.items())[:MAX_ROWS]]
    if not rows:
        return NOTHING
    note = (
        "Each packed text is named by its folder, which ends in a digest of its content. A block has max_seq_len "
        "tokens. Equal digests mean equal text."
    )
    return joined(
        [if_long("All data nodes", len(rows), table(headings, rows, words=[1, 6])), element("p", note, class_="note")]
    )


def _text_cells(facts_: Mapping[str, Any]) -> list[str]:
    text, held_out = (", ".join(facts_.get(key) or ()) for key in ("text", "held_out_text"))
    counts = [count_text(facts_.get(key)) for key in ("blocks", "batch_size", "steps", "fits")]
    return [text, *counts, held_out, count_text(facts_.get("held_out_blocks"))]


def environment(run: Run) -> Html:
    """Show versions, code and machine."""
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
    """Show a command line, which may wrap between arguments only."""
    try:
        words = [shlex.quote(word) for word in shlex.split(line)]
    except ValueError:
        words = line.split()
    parts = [part for word in words for part in (" ", element("span", word))][1:]
    return element("pre", element("code", *parts), class_="command", tabindex="0")


def repeat(run: Run) -> Html:
    """Show the commands that repeat the run, and all its settings."""
    parts = []
    started = run.record.content.get("last_start", {}).get("command")
    if started:
        parts += [element("p", "The command of its last start:"), _command(started)]
    if run.config is not None:
        name = f"{run.folder.parent.name if run.folder.name.startswith('version_') else run.folder.name}-repeated"
        again = ["worldlm", "fit", "--recipe", str(run.folder / CONFIG), "--name", name]
        keys = [str(run.folder / key_name(key["fingerprint"])) for key in run.record.content.get("noise_keys", [])]
        again += ["--trainer.noise_key", keys[0]] if len(keys) == 1 else []
        command = shlex.join([*again, "--trainer.logger", "null", "--ckpt_path", "null"])
        note = (
            "The same run from its settings, in a new folder; run it in the folder where it was first run. With the "
            "same versions, device and threads, only seconds and last_start in results.json differ. The topology is "
            "read by its name, so its file must not have changed."
        )
        parts += [element("p", note), _command(command)]
        if run.record.content["finished"]:
            check = "The same, with a comparison of all weights and figures at the end:"
            parts += [element("p", check), _command(shlex.join(["worldlm", "fit", "--repeat", str(run.folder)]))]
        parts += [folded(f"All settings ({CONFIG})", code(run.config))]
    if not parts:
        return element("p", f"Its command and its {CONFIG} are missing.")
    return joined(parts)
