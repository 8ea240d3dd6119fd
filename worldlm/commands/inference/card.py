"""The model card of an exported node: what it is, whose text is in it, and what protects that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from worldlm import __version__
from worldlm.commands.inference.privacy import Protection, protections, told
from worldlm.commands.inference.saved_run import SavedRun, finite
from worldlm.models import Architecture
from worldlm.topology import Node, Topology, draw_tree

_MANY = 60
"""Lines of a list before the rest is counted."""
_MOMENTS = {
    "before": "before the first round",
    "after_merge": "as its federation made it",
    "after_fit": "after its own steps",
}


def model_card(run: SavedRun, node: str, *, license_: str | None, digest: str, warning: str = "") -> str:
    """Write the README.md of a node's model.

    Args:
        run: The run, at the round that is exported.
        node: The node.
        license_: The licence, by its identifier on the Hugging Face Hub; None where nobody said.
        digest: Of the exported weights.
        warning: What could not be taken along.
    """
    architecture = Architecture(**run.world.hyper_parameters["architecture"])
    sections = [
        f"# {node}, of {run.title}",
        _what(run, node, architecture),
        *([warning] if warning else []),
        "## The world",
        *_world(run, node),
        "## Data",
        *_data(run, node),
        "## Training",
        _training(run, digest),
        "## Perplexity",
        *_perplexity(run, node),
        "## Privacy",
        *_privacy(run, node),
        "## How to load it",
        _loading(architecture),
        "## Licence",
        _licence(license_),
        f"Written by WorldLM {__version__}.",
    ]
    return f"---\n{_front(license_)}---\n\n" + "\n\n".join(sections) + "\n"


def _front(license_: str | None) -> str:
    head: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    head |= {"license": "other", "license_name": "unknown"} if license_ is None else {"license": license_}
    head["tags"] = ["worldlm", "federated-learning", "mpt"]
    text: str = yaml.safe_dump(head, sort_keys=False)
    return text


def _what(run: SavedRun, node: str, sizes: Architecture) -> str:
    number = sum(tensor.numel() for tensor in run.world.parameters(node).values())
    tree = run.topology
    own = tree is not None and tree.nodes[node].holds_data
    if run.world.children[node]:
        kind = "a federation: what it merged of its children's models" + (" and its own" if own else "")
    else:
        kind = "a leaf: its own model, as it trained it" if own else "a leaf"
    return (
        f"A decoder-only language model (MPT: {sizes.num_blocks} blocks of width {sizes.d_model}, {sizes.num_heads} "
        f"heads, {sizes.max_seq_len:,} tokens of context, a vocabulary of {sizes.vocab_size:,}; {number:,} "
        "parameters), trained with WorldLM across a federation of federations "
        f"([arXiv 2405.14446](https://arxiv.org/abs/2405.14446)). It is the model of the node `{node}`, {kind}, "
        f"{run.when}."
    )


def _world(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None:
        yield f"The run left no record of its tree; it had {len(run.names)} nodes."
        return
    yield f"```text\n{_cut(draw_tree(tree).splitlines())}\n```"
    way = " > ".join(one.name for one in tree.path(node))
    yield f"This model: `{way}`." + ("" if run.knows_settings else " The settings of the tree are not known.")


def _data(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None or run.record is None:
        yield "Which text it was trained on is not recorded."
        return
    below = {one.name for one in tree.nodes[node].walk()}
    lines = ["| data node | corpus | tokens | passes | where |", "|---|---|---:|---:|---|"]
    for one in tree.data_nodes:
        figures = run.figures(one.name)
        where = "here" if one.name == node else "below" if one.name in below else "elsewhere"
        passes = figures.get("passes")
        tokens = f"{figures['tokens']:,}" if figures.get("tokens") is not None else "not known"
        lines.append(
            f"| {one.name} | {one.corpus} | {tokens} | {'' if passes is None else f'{passes:.2f}'} | {where} |"
        )
    yield _cut(lines)
    yield (
        "Tokens that each node had trained on, and passes over its own text. No text left its node; what was learnt "
        "elsewhere came here as weights, as far as the method let them travel."
    )
    left = [name for change in run.changes for name in change["left"] if name not in tree.nodes]
    if left:
        yield f"What {_listed(left)} learnt came here too, before they left the world."


def _training(run: SavedRun, digest: str) -> str:
    trainer, model = run.config.get("trainer") or {}, run.config.get("model") or {}
    pieces = [
        str(one["class_path"]).rpartition(".")[2] for one in trainer.get("callbacks") or () if "class_path" in one
    ]
    content = None if run.record is None else run.record.content
    wanted = None if content is None else content.get("rounds_wanted")
    rounds = f"{run.world.num_rounds}" + (f" of {wanted}" if wanted is not None else "")
    lines = [f"- rounds: {rounds}" + (", and a part of the next" if run.world.within_round else "")]
    if content is not None:
        lines.append(f"- seed: {content['seed']}")
        lines.append(f"- digest of the initial weights: `{content['initial_weights']}`")
    if begun := model.get("init_from"):
        lines.append(f"- the initial weights are those of: `{begun}`")
    if pieces:
        lines.append(f"- method, by its pieces: {', '.join(pieces)}")
    if inner := model.get("optimizer"):
        lines.append(f"- inner optimizer: AdamW, {', '.join(f'{name} {value}' for name, value in inner.items())}")
    lines.append(f"- digest of these weights: `{digest}`")
    if content is not None:
        versions = content["versions"]
        lines.append(f"- trained with: {', '.join(f'{name} {version}' for name, version in versions.items())}")
    return "\n".join(lines)


def _perplexity(run: SavedRun, node: str) -> Iterator[str]:
    figures = run.figures(node)
    rows = [
        f"| {words} | {finite(one['perplexity']):.2f} | {finite(one['bits_per_byte']):.3f} |"
        for moment, words in _MOMENTS.items()
        if (one := figures.get(moment))
    ]
    if not rows:
        yield "None was recorded for this round."
        return
    yield "\n".join(["| the node's model | perplexity per token | bits per byte |", "|---|---:|---:|", *rows])
    own = "its own corpus" if not run.world.children[node] else "the corpora of all data nodes at and below it"
    if run.world.children[node] and "after_fit" in figures:
        own += " (after its own steps: its own corpus)"
    yield f"On held-out text of {own}. `worldlm evaluate` tells it for other corpora."


def _privacy(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None or run.record is None:
        yield "What the run spent on privacy is not recorded: take it that nothing protects the text."
        return
    figures = {name: run.figures(name) for name in tree.nodes}
    found = {one.name: protections(tree, one, node, figures) for one in tree.data_nodes if one.fits}
    if not any(found.values()):
        yield "**None.** No guarantee of differential privacy holds for any text that this model was trained on."
    else:
        lines = ["| text of | what protects it in this model |", "|---|---|"]
        lines += [f"| {name} | {_guarantees(one)} |" for name, one in found.items()]
        yield _cut(lines)
        yield (
            "*Training steps*: the unit is one block of text. *Updates*: the unit is all text at and below the node "
            "whose updates they are. Where several hold, each holds by itself."
        )
    if warning := own_updates(run, node, tree):
        yield warning
    if run.changes:
        after = ", ".join(dict.fromkeys(str(one["round"]) for one in run.changes))
        yield (
            f"**The topology changed on the way, after round {after}.** A guarantee holds for what was released under "
            "it: what a node sent before without noise, what it sent by another way, and the text of nodes that left "
            "are covered by none of the figures here."
        )
    if isinstance((run.config.get("data") or {}).get("tokenizer"), dict):
        yield (
            "The tokenizer was trained on the text of all corpora. Its tokens are statistics of that text, which no "
            "guarantee above covers."
        )


def own_updates(run: SavedRun, node: str, tree: Topology) -> str:
    """Say so, if a node's updates are private and the model in hand is what it was before they were made so."""
    if "epsilon" not in run.figures(node):
        return ""
    sources: list[Node] = [one for one in tree.nodes[node].walk() if one.fits]
    figures = {name: run.figures(name) for name in tree.nodes}
    bare = [one.name for one in sources if not protections(tree, one, node, figures)]
    if not bare:
        return ""
    return (
        f"**These are the weights of `{node}` before they were clipped and noised.** The epsilon of what it sent does "
        f"not cover them; for the text of {_listed(bare)} nothing does."
    )


def _guarantees(found: Sequence[Protection]) -> str:
    return "; ".join(map(told, found)) if found else "**nothing**"


def _loading(sizes: Architecture) -> str:
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n```\n\n'
        "In training a text followed another's end-of-text token, and no token was put before or within it: special "
        f"tokens spelt out in a text are plain text. It was trained on {sizes.max_seq_len:,} tokens at a time."
    )


def _licence(license_: str | None) -> str:
    if license_ is not None:
        return f"{license_}, as stated when the model was exported."
    return "Unknown: none was stated when the model was exported. Ask those who hold the texts before you pass it on."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cut(lines: Sequence[str]) -> str:
    rest = len(lines) - _MANY
    return "\n".join(lines if rest <= 0 else [*lines[:_MANY], f"... and {rest} more"])
