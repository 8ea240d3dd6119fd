"""The model card of an exported node: the model, its training text, and its privacy guarantees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from torch import Tensor

from worldlm import __version__
from worldlm.commands.inference.privacy import Protection, describe, protections
from worldlm.commands.inference.saved_run import SavedRun
from worldlm.data.chat_template import SETTINGS
from worldlm.federation.parameters import weights_digest
from worldlm.models import Architecture, Transformer, architecture_of
from worldlm.models.hub import is_hub_name
from worldlm.runs.results import or_infinity
from worldlm.runs.scores import score_text
from worldlm.topology import Node, Topology, draw_tree

_MAX_LINES = 60
"""Lines of a list that are shown; the others are counted."""
_MOMENTS = {
    "before": "before the first round",
    "after_merge": "as received from its federation",
    "after_fit": "after its own steps",
}


def model_card(
    run: SavedRun,
    node: str,
    weights: Mapping[str, Tensor],
    *,
    license_: str | None,
    merged: bool = False,
    warning: str = "",
) -> str:
    """Write the README.md of a node's model.

    Args:
        run: The run, as of the round that is exported.
        node: The node.
        weights: The exported weights, by name.
        license_: The licence's identifier on the Hugging Face Hub; None if it is unknown.
        merged: Whether the weights contain adapters that were added to their frozen model.
        warning: A note about parts that are missing.
    """
    architecture = architecture_of(run.world.hyper_parameters)
    is_adapter = run.lora.is_given and not merged
    sections = [
        f"# {node}, of {run.title}",
        _overview(run, node, architecture, weights, merged=merged),
        *([warning] if warning else []),
        "## The world",
        *_world(run, node),
        "## Data",
        *_data(run, node),
        "## Training",
        _training(run, weights_digest(weights)),
        "## Perplexity",
        *_perplexity(run, node),
        "## Privacy",
        *_privacy(run, node),
        "## How to load it",
        _loading(str(run.world.hyper_parameters["init_from"]) if is_adapter else ""),
        _encoding(architecture, has_conversations=(run.folder / SETTINGS).is_file()),
        "## Licence",
        _licence(license_),
        f"Written by WorldLM {__version__}.",
    ]
    front = _front(license_, architecture.model_type, "peft" if is_adapter else "transformers")
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def _front(license_: str | None, model_type: str, library: str) -> str:
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "text-generation"}
    head |= {"license": "other", "license_name": "unknown"} if license_ is None else {"license": license_}
    head["tags"] = ["worldlm", "federated-learning", model_type]
    text: str = yaml.safe_dump(head, sort_keys=False)
    return text


def _overview(
    run: SavedRun, node: str, sizes: Architecture | Transformer, weights: Mapping[str, Tensor], *, merged: bool
) -> str:
    number = f"{sum(tensor.numel() for tensor in weights.values()):,} parameters"
    described = f"A decoder-only language model ({sizes.description}; {number}), trained"
    if run.lora.is_given:
        adapters, base = f"LoRA adapters of rank {run.lora.rank}", run.world.hyper_parameters["init_from"]
        described = f"{adapters} ({number}) for `{base}`, a decoder-only language model ({sizes.description}), trained"
        if merged:
            described = (
                f"A decoder-only language model ({sizes.description}; {number}): `{base}`, to which {adapters} were "
                "added. The adapters were trained"
            )
    tree = run.topology
    own = tree is not None and tree.nodes[node].holds_data
    if run.world.tree[node]:
        kind = "a federation, whose model combines its children's" + (" and its own" if own else "")
    else:
        kind = "a leaf, which trained it" if own else "a leaf"
    return (
        f"{described} with WorldLM across a federation of federations "
        f"([arXiv 2405.14446](https://arxiv.org/abs/2405.14446)). It is the model of the node `{node}`, {kind}, "
        f"{run.when}."
    )


def _world(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None:
        yield f"The topology was not recorded. The run had {len(run.names)} nodes."
        return
    yield f"```text\n{_cut(draw_tree(tree).splitlines())}\n```"
    path = " > ".join(above.name for above in tree.path(node))
    yield f"This model: `{path}`." + ("" if run.knows_settings else " The settings of the topology are not known.")


def _data(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None or run.record is None:
        yield "The training text was not recorded."
        return
    below = {descendant.name for descendant in tree.nodes[node].walk()}
    lines = ["| data node | corpus | tokens | passes | where |", "|---|---|---:|---:|---|"]
    for source in tree.data_nodes:
        figures = run.figures(source.name)
        where = "this node" if source.name == node else "below" if source.name in below else "elsewhere"
        passes = f"{figures['passes']:.2f}" if figures.get("passes") is not None else ""
        tokens = f"{figures['tokens']:,}" if figures.get("tokens") is not None else "not known"
        lines.append(f"| {source.name} | {source.corpus} | {tokens} | {passes} | {where} |")
    yield _cut(lines)
    yield (
        "Tokens that each node trained on, and passes over its own text. No text left its node: nodes exchanged "
        "weights, as far as the method allows."
    )
    left = [name for change in run.changes for name in change["left"] if name not in tree.nodes]
    if left:
        yield f"{_listed(left)} also contributed to this model, before they left the world."


def _training(run: SavedRun, digest: str) -> str:
    trainer, model = run.config.get("trainer") or {}, run.config.get("model") or {}
    callbacks = [callback for callback in trainer.get("callbacks") or () if "class_path" in callback]
    method = [str(callback["class_path"]).rpartition(".")[2] for callback in callbacks]
    content = None if run.record is None else run.record.content
    wanted = None if content is None else content.get("rounds_wanted")
    rounds = f"{run.world.num_rounds}" + (f" of {wanted}" if wanted is not None else "")
    lines = [f"- rounds: {rounds}" + (", and part of the next" if run.world.within_round else "")]
    if content is not None:
        lines.append(f"- seed: {content['seed']}")
        lines.append(f"- digest of the initial weights: `{content['initial_weights']}`")
    if run.lora.is_given:
        saved, trained = run.world.hyper_parameters, "only B" if run.lora.freeze_a else "A and B"
        lines.append(f"- frozen model: `{saved['init_from']}`; digest of its weights: `{saved.get('base_digest')}`")
        lines.append(f"- adapters: rank {run.lora.rank}, alpha {run.lora.alpha:g}, {trained} trained")
    elif init_from := model.get("init_from"):
        lines.append(f"- the initial weights are those of: `{init_from}`")
    if method:
        lines.append(f"- callbacks of the method: {', '.join(method)}")
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
        f"| {label} | {score_text(or_infinity(score['perplexity']))} | {or_infinity(score['bits_per_byte']):.3f} |"
        for moment, label in _MOMENTS.items()
        if (score := figures.get(moment))
    ]
    if not rows:
        yield "No perplexity was recorded for this round."
        return
    yield "\n".join(["| the node's model | perplexity per token | bits per byte |", "|---|---:|---:|", *rows])
    own = "its own corpus" if not run.world.tree[node] else "the corpora of all data nodes at and below it"
    if run.world.tree[node] and "after_fit" in figures:
        own += " (after its own steps: its own corpus)"
    yield f"On held-out text of {own}. `worldlm evaluate` evaluates other corpora."


def _privacy(run: SavedRun, node: str) -> Iterator[str]:
    tree = run.topology
    if tree is None or run.record is None:
        yield "Privacy was not recorded. Assume that nothing protects the text."
        return
    figures = {name: run.figures(name) for name in tree.nodes}
    found = {source.name: protections(tree, source, node, figures) for source in tree.data_nodes if source.fits}
    if not any(found.values()):
        yield "**None.** This model gives no guarantee of differential privacy for any of its training text."
    else:
        lines = ["| text of | its protection in this model |", "|---|---|"]
        lines += [f"| {name} | {_guarantees(guarantees)} |" for name, guarantees in found.items()]
        yield _cut(lines)
        yield (
            "*Training steps* were clipped and noised, and so were *updates*, where a node sent them to its parent. "
            "Where there are several guarantees, each holds by itself."
        )
    if warning := own_updates(run, node, tree):
        yield warning
    if run.changes:
        after = ", ".join(dict.fromkeys(str(change["round"]) for change in run.changes))
        yield (
            f"**The topology changed after round {after}.** A guarantee covers only what was released under it. These "
            "figures do not cover what a node sent before without noise or through another parent, nor the text of "
            "nodes that left."
        )
    if isinstance((run.config.get("data") or {}).get("tokenizer"), dict):
        yield (
            "The tokenizer was trained on the text of all corpora. Its tokens are statistics of that text, and no "
            "guarantee above covers them."
        )


def own_updates(run: SavedRun, node: str, tree: Topology) -> str:
    """Return a warning if a node's updates are private, and this model contains its weights without noise; else ""."""
    if "epsilon" not in run.figures(node):
        return ""
    sources: list[Node] = [source for source in tree.nodes[node].walk() if source.fits]
    figures = {name: run.figures(name) for name in tree.nodes}
    unprotected = [source.name for source in sources if not protections(tree, source, node, figures)]
    if not unprotected:
        return ""
    return (
        f"**These are the weights of `{node}` before clipping and noise.** The epsilon of its updates does not cover "
        f"them, and nothing protects the text of {_listed(unprotected)}."
    )


def _guarantees(found: Sequence[Protection]) -> str:
    return "; ".join(map(describe, found)) if found else "**nothing**"


def _loading(base: str) -> str:
    peft = "from peft import PeftModel\n" if base else ""
    repository, _, revision = base.partition("@") if is_hub_name(base) else (base or "FOLDER", "", "")
    source = f'"{repository}", revision="{revision}"' if revision else f'"{repository}"'
    adapt = 'model = PeftModel.from_pretrained(model, "FOLDER")\n' if base else ""
    return (
        f"```python\n{peft}from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        f"model = AutoModelForCausalLM.from_pretrained({source})\n{adapt}```"
    )


def _encoding(sizes: Architecture | Transformer, *, has_conversations: bool) -> str:
    form = (
        "The model was trained on conversations: `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` "
        "makes a prompt as in training."
        if has_conversations
        else "In training, each text followed the end-of-text token of another, and no other token was added. Special "
        "tokens spelt out in a text are plain text."
    )
    return f"{form} The model was trained on {sizes.max_seq_len:,} tokens at a time."


def _licence(license_: str | None) -> str:
    if license_ is not None:
        return f"{license_}, as stated when the model was exported."
    return "Unknown: none was stated when the model was exported. Ask the owners of the texts before you pass it on."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _cut(lines: Sequence[str]) -> str:
    rest = len(lines) - _MAX_LINES
    return "\n".join(lines if rest <= 0 else [*lines[:_MAX_LINES], f"... and {rest} more"])
