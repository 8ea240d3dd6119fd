"""Cutting: the training and held-out sequences of a node, from the packed corpora of its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning.pytorch.utilities import rank_zero_warn

from worldlm.data.blocks import Blocks, MixedBlocks, join_blocks
from worldlm.data.conversation_rows import ConversationRows
from worldlm.data.corpora import SplitName, naming
from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import Unit
from worldlm.data.preparing import Request
from worldlm.data.tokenizers import Tokenizer
from worldlm.data.unit_blocks import UnitBlocks
from worldlm.topology.errors import join_names

if TYPE_CHECKING:
    from worldlm.topology import Node

AnyBlocks: TypeAlias = Blocks | MixedBlocks | UnitBlocks | ConversationRows


def cut(node: Node, split: SplitName, parts: Mapping[str, PackedCorpus], seq_len: int) -> AnyBlocks:
    """Cut the text of a node into sequences.

    Args:
        node: The node.
        split: The split.
        parts: Its corpora by name.
        seq_len: Tokens of an input sequence.

    Raises:
        ValueError: As `join`; the message names the node, the corpus and the split.
    """
    only = next(iter(parts)) if len(parts) == 1 else node.corpus
    with naming(title_of([node], split) + (f": {only}" if only != node.corpus else "")):
        return join(parts, seq_len, unit_of(node) if split == "train" else None)


def join(parts: Mapping[str, PackedCorpus], seq_len: int, unit: Unit | None = None) -> AnyBlocks:
    """Cut corpora into sequences of one length, and join them as one data set.

    A warning says how many conversations are too long for a sequence, and are left out.

    Args:
        parts: The corpora by name.
        seq_len: Tokens of an input sequence.
        unit: The unit of example-level privacy; None if there is none.

    Raises:
        ValueError: If there is too little text, or it is partly plain text and partly conversations.
    """
    plain = [name for name, part in parts.items() if part.targets is None]
    if plain and len(plain) < len(parts):
        others = join_names(name for name in parts if name not in plain)
        raise ValueError(f"plain text ({join_names(plain)}) and conversations ({others}) cannot be mixed in one node")
    if not plain:
        return _conversations(parts, seq_len, unit)
    if unit in ("document", "person"):
        return UnitBlocks(list(parts.values()), seq_len, unit)
    blocks = []
    for name, packed in parts.items():
        with naming(name) if len(parts) > 1 else nullcontext():
            blocks.append(Blocks(packed, seq_len, disjoint=unit == "block"))
    return join_blocks(blocks)


def _conversations(parts: Mapping[str, PackedCorpus], seq_len: int, unit: Unit | None) -> ConversationRows:
    rows = ConversationRows(list(parts.values()), seq_len, unit)
    if rows.num_too_long:
        rank_zero_warn(
            f"{join_names(parts)}: {rows.num_too_long} of {rows.num_conversations + rows.num_too_long} conversations "
            f"have more tokens than max_seq_len, {seq_len}, and are left out"
        )
    return rows


def packed_of(blocks: Any) -> list[PackedCorpus | None]:
    """Return the packed corpora of a data set; None for a part that is of another kind."""
    parts = getattr(blocks, "parts", (blocks,))
    return [part if isinstance(part, PackedCorpus) else getattr(part, "packed", None) for part in parts]


def describe(blocks: AnyBlocks) -> str:
    """Return the number of sequences of a text in words, and of conversations how much of them is padding."""
    if isinstance(blocks, ConversationRows):
        return f"{blocks.num_conversations} conversations in {len(blocks)} rows ({blocks.padding:.0%} padding)"
    return f"{len(blocks)} blocks"


def check_conversations(requests: Sequence[Request], tokenizer: Tokenizer, architecture: Any) -> None:
    """Check, before anything is packed, that a model can be trained on the corpora that are conversations.

    Args:
        requests: The corpora.
        tokenizer: The tokenizer.
        architecture: The model's description.

    Raises:
        ValueError: If it cannot keep the conversations of a row apart.
    """
    names = [request.name for request in requests if request.corpus.encoder(tokenizer).has_targets]
    check: Any = getattr(architecture, "why_no_conversations", None)
    if names and check is not None and (reason := check()):
        raise ValueError(f"conversations ({join_names(names)}) are not possible with this model: {reason}")


def unit_of(node: Node) -> Unit | None:
    """Return the unit that example-level privacy protects in a node's training; None if there is none."""
    privacy = node.settings.example_privacy
    return privacy.unit if privacy is not None and node.fits else None


def title_of(nodes: Sequence[Node], split: SplitName | None = None) -> str:
    """Return the names of nodes, corpora and split, for errors."""
    names = join_names(repr(node.name) for node in nodes)
    corpora = ", ".join(dict.fromkeys(repr(node.corpus) for node in nodes))
    title = f"node {names}, corpus {corpora}"
    return f"{title} ({split})" if split else title
