"""`worldlm generate`: the same prompt through several nodes, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from worldlm.cli.parser import Parser, names
from worldlm.commands.inference.arguments import line_by_line, parse, run_parser, whole
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.models import NotFiniteError, generate
from worldlm.topology.errors import UserError

_MANY = 16


def generate_texts(given: Sequence[str]) -> int:
    """Let nodes of a run go on with a prompt, and print what they make of it.

    Args:
        given: What stands after `worldlm generate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: What a user can put right, one line each.
    """
    options = parse(_parser(), given)
    if options is None:
        return 0
    with line_by_line():
        run = open_run(options.run, options.round, options.trust)
        if options.node is None and len(run.names) > _MANY:
            raise UserError([f"{run.folder} has {len(run.names)} nodes: name some with --node"])
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
    drawn = f"temperature {options.temperature:g}, seed {options.seed}"
    how = "likeliest tokens" if options.temperature == 0 else drawn
    print(f"done. {len(chosen)} node{'' if len(chosen) == 1 else 's'} ({how}): {run.world.path}")
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

    All nodes draw with the same chance: what one says does not depend on who else is asked. An empty prompt is the end
    of another text, as which a text begins in training.

    Returns:
        By node what follows the prompt, up to where the text ends; or in brackets that its model has diverged.
    """
    tokenizer, module = run.tokenizer, run.module()
    first = [int(token) for token in tokenizer.encode_batch([prompt])[0]] or [tokenizer.end_of_text]
    console, texts = Console(stderr=True), {}
    for node in track(nodes, "asking", console=console, transient=True, disable=not console.is_terminal):
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
    """Replace what would move the cursor by something that is seen."""
    return "".join(one if one.isprintable() or one in "\n\t" else "\N{REPLACEMENT CHARACTER}" for one in text)


def _parser() -> Parser:
    parser = run_parser("generate", "Go on with a prompt, by several nodes' models.")
    parser.add_argument("prompt", metavar="PROMPT", help='the text to go on with; "" begins one')
    parser.add_argument("--node", type=names, metavar="A,B", help="whose models to ask; by default all nodes'")
    parser.add_argument("--max_new_tokens", type=whole(0), default=100, metavar="N", help="tokens to add; default: 100")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.8, metavar="T", help="0 takes the likeliest token; default: 0.8"
    )
    parser.add_argument("--top_k", type=whole(1), metavar="K", help="draw among so many likeliest tokens; default: all")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draws, the same for all nodes; default: 0")
    return parser


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, but is {text!r}")
    return value
