"""`worldlm generate`: continues one prompt with the models of several nodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from worldlm.cli.parser import Parser, names, number_from, whole_number
from worldlm.commands.inference.errors import file_errors
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.models import NotFiniteError, generate
from worldlm.topology.errors import UserError

_MAX_NODES = 16
"""Nodes that are asked where the command names none."""


def generate_texts(arguments: Sequence[str]) -> int:
    """Continue a prompt with the models of a run's nodes, and print the texts.

    Args:
        arguments: The words after `worldlm generate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    options = _parser().parse_args(arguments)
    with file_errors():
        run = open_run(options.run, options.round, options.trust, options.base)
        if options.node is None and len(run.names) > _MAX_NODES:
            raise UserError([f"{run.folder} has {len(run.names)} nodes: choose some with --node"])
        chosen = run.choose(options.node or run.names)
        texts = continue_prompt(
            run,
            chosen,
            options.prompt,
            num_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=options.seed,
        )
    Console(highlight=False).print(_table(run.title, options.prompt, texts))
    sampling = f"temperature {options.temperature:g}, seed {options.seed}"
    method = "likeliest tokens" if options.temperature == 0 else sampling
    print(f"done. {len(chosen)} node{'' if len(chosen) == 1 else 's'} ({method}): {run.world.path}")
    return 0


def continue_prompt(
    run: SavedRun,
    nodes: Sequence[str],
    prompt: str,
    *,
    num_new_tokens: int,
    temperature: float,
    top_k: int | None,
    seed: int,
) -> dict[str, str]:
    """Continue a prompt with the models of some nodes.

    All nodes draw with the same seed, so a node's text does not depend on the other nodes. An empty prompt stands for
    the end-of-text token, which precedes each text in training.

    Returns:
        By node, the text after the prompt up to its end; or a note in brackets if the model has diverged.
    """
    tokenizer, module = run.tokenizer, run.module()
    first = [int(token) for token in tokenizer.encode_batch([prompt])[0]] or [tokenizer.end_of_text]
    console, texts = Console(stderr=True), {}
    for node in track(nodes, "generating", console=console, transient=True, disable=not console.is_terminal):
        run.put(module, node)
        try:
            tokens = generate(
                module,
                torch.tensor(first),
                num_new_tokens=num_new_tokens,
                temperature=temperature,
                top_k=top_k,
                generator=torch.Generator().manual_seed(seed),
            )[len(first) :].tolist()
        except NotFiniteError as error:
            texts[node] = f" ({error})"
            continue
        end = tokens.index(tokenizer.end_of_text) if tokenizer.end_of_text in tokens else len(tokens)
        texts[node] = tokenizer.decode(tokens[:end])
    return texts


def _table(title: str, prompt: str, texts: dict[str, str]) -> Table:
    table = Table("node", "text", title=title, show_lines=True, title_justify="left")
    for node, text in texts.items():
        table.add_row(Text(node), Text.assemble((shown(prompt), "dim"), shown(text).rstrip(), overflow="fold"))
    return table


def shown(text: str) -> str:
    """Replace control characters, which would move the cursor, by a visible character."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _parser() -> Parser:
    parser = Parser("worldlm generate", "Continue a prompt with the models of several nodes.")
    parser.add_run()
    parser.add_argument("prompt", metavar="PROMPT", help='the text to continue; "" starts a new one')
    parser.add_argument("--node", type=names, metavar="A,B", help="nodes whose models to use; by default all")
    parser.add_argument(
        "--max_new_tokens", type=whole_number(0), default=100, metavar="N", help="tokens to add; default: 100"
    )
    parser.add_argument(
        "--temperature", type=number_from(0), default=0.8, metavar="T", help="0 picks the likeliest token; default: 0.8"
    )
    parser.add_argument(
        "--top_k", type=whole_number(1), metavar="K", help="draw among the K likeliest tokens; default: all"
    )
    parser.add_argument(
        "--seed", type=whole_number(0), default=0, help="seed of the draws, the same for all nodes; default: 0"
    )
    return parser
