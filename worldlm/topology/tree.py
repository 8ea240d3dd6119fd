"""The world as a tree of nodes, immutable and validated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from worldlm.topology.checks import bad_name, out_of_range, raise_mistakes
from worldlm.topology.errors import join_names
from worldlm.topology.settings import KINDS_OF_PRIVACY, Settings

MAX_LEVELS = 64
"""Nodes on the path from the root to the deepest leaf, both included. Each level takes a few frames of Python's stack
wherever the tree is visited."""

_STAR = "*"
"""In the name of a corpus: the number of the node among all that name the corpus."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A participant; with children, also the parent of a federation.

    Raises:
        FieldError: (a ValueError) for an invalid name or weight, a leaf without a corpus, a corpus without
            `num_local_steps`, `num_local_steps: 0` at a node with children, or too large `min_participants`.
    """

    name: str
    """Letters, digits, '_' and '-'; unique in its topology."""

    corpus: str | None = None
    """The corpus this node trains on. None only for a node with children. A `*` in it is the number of this node among
    all nodes of the topology that name the same corpus: the first of `it_*` trains on `it_1`."""

    weight: float | None = None
    """Its weight in the parent's mean; above 0. None leaves the choice to the callback."""

    settings: Settings = field(default_factory=Settings)
    """The settings of this node, the inherited ones included."""

    children: tuple[Node, ...] = ()
    """The participants of this node's federation."""

    source: str = field(default="", compare=False)
    """File and line of its definition."""

    copy: int = field(default=0, compare=False)
    """The number of this copy, from 1; 0 for a node without `copies`."""

    listens: bool = field(init=False, compare=False, repr=False)
    """Whether neither this node nor a descendant trains: a listener only receives and evaluates models."""

    levels: int = field(init=False, compare=False, repr=False)
    """The number of levels of this node and its descendants: 1 for a leaf."""

    def __post_init__(self) -> None:
        """Check the node on its own."""
        object.__setattr__(self, "listens", not self.fits and all(child.listens for child in self.children))
        object.__setattr__(self, "levels", 1 + max((child.levels for child in self.children), default=0))
        raise_mistakes(
            {
                "name": bad_name(self.name),
                "weight": out_of_range(self.weight, above=0),
                "corpus": _bad_corpus(self),
                "num_local_steps": _bad_steps(self),
                "min_participants": _bad_minimum(self),
            }
        )

    @property
    def is_leaf(self) -> bool:
        """Whether this node has no children."""
        return not self.children

    @property
    def holds_data(self) -> bool:
        """Whether this node has a corpus of its own."""
        return self.corpus is not None

    @property
    def fits(self) -> bool:
        """Whether this node trains on its corpus."""
        return self.holds_data and self.settings.num_local_steps != 0

    @property
    def keeps_moments(self) -> bool:
        """Whether the state of its inner optimizer is kept from one fit to the next."""
        return self.fits and self.settings.optimizer_state == "keep"

    def walk(self) -> Iterator[Node]:
        """Yield this node and its descendants in preorder: parents first, siblings in order."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending += reversed(node.children)

    def leaves(self) -> Iterator[Node]:
        """Yield the leaves among this node and its descendants, in preorder."""
        return (node for node in self.walk() if node.is_leaf)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A named tree of nodes.

    Raises:
        FieldError: for an invalid name, two nodes with the same name, a world in which no node trains, or a node with
            less privacy than its parent.
    """

    name: str
    """Letters, digits, '_' and '-'."""

    root: Node
    """The ancestor of all other nodes. Each `*` in the name of a corpus is replaced by a number."""

    description: str = ""
    """A sentence that describes the topology."""

    def __post_init__(self) -> None:
        """Number the corpora and check the rules that need the whole tree."""
        if any(_STAR in (node.corpus or "") for node in self.root.walk()):
            object.__setattr__(self, "root", _number_corpora(self.root, Counter()))
        counts = Counter(node.name for node in self.root.walk())
        duplicates = [name for name, count in counts.items() if count > 1]
        repeats = f"must have unique node names, but repeats {join_names(duplicates)}" if duplicates else ""
        problem = repeats or _too_deep(self.root) or _idle(self.root)
        raise_mistakes({"name": bad_name(self.name), "root": problem or "; ".join(_loosened(self.root))})

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """All nodes by name, in preorder."""
        return {node.name: node for node in self.root.walk()}

    @cached_property
    def _parents(self) -> dict[str, Node]:
        return {child.name: node for node in self.root.walk() for child in node.children}

    def parent(self, name: str) -> Node | None:
        """Return the parent of a node, None for the root.

        Raises:
            KeyError: if no node has that name.
        """
        return self._parents.get(self.nodes[name].name)

    def path(self, name: str) -> list[Node]:
        """Return the nodes on the path from the root to a node, both included.

        Raises:
            KeyError: if no node has that name.
        """
        path = [self.nodes[name]]
        while (parent := self._parents.get(path[-1].name)) is not None:
            path.append(parent)
        return path[::-1]

    @property
    def data_nodes(self) -> list[Node]:
        """The nodes that hold a corpus, in preorder; listeners are among them."""
        return [node for node in self.root.walk() if node.holds_data]

    @property
    def demands_privacy(self) -> bool:
        """Whether any node has either level of privacy."""
        return any(node.settings.is_private for node in self.nodes.values())

    @property
    def depth(self) -> int:
        """The number of levels: 1 for a root alone."""
        return self.root.levels


def _number_corpora(node: Node, counts: Counter[str]) -> Node:
    """Replace `*` in the corpora of a node and its descendants, in preorder, given the numbers that are in use."""
    corpus = node.corpus
    if corpus is not None and _STAR in corpus:
        counts[corpus] += 1
        corpus = corpus.replace(_STAR, str(counts[corpus]))
    children = tuple(_number_corpora(child, counts) for child in node.children)
    return replace(node, corpus=corpus, children=children)


def _bad_corpus(node: Node) -> str:
    if node.corpus is not None:
        return bad_name(node.corpus.replace(_STAR, "1") if node.corpus.count(_STAR) == 1 else node.corpus)
    return f"is needed at node {node.name!r}, which has no children" if node.is_leaf else ""


def _bad_steps(node: Node) -> str:
    steps = node.settings.num_local_steps
    if node.holds_data and steps is None:
        return f"is needed at node {node.name!r}, which holds data: neither the node nor an ancestor sets it"
    if node.holds_data and steps == 0 and node.children:
        return f"is 0 at node {node.name!r}, which has children: only a leaf can be a listener"
    return ""


def _bad_minimum(node: Node) -> str:
    if node.is_leaf or node.listens:
        return ""
    available = sum(not child.listens for child in node.children) + node.fits
    required = node.settings.min_participants
    return f"is {required} at node {node.name!r}, which has {available} participants" if required > available else ""


def _loosened(root: Node) -> Iterator[str]:
    """Yield each field in which a node has less privacy than its parent. For files, the loader checks this first."""
    for node in root.walk():
        for child in node.children:
            for kind in KINDS_OF_PRIVACY:
                demand, below = getattr(node.settings, kind), getattr(child.settings, kind)
                if demand is None or below is demand:
                    continue
                problems = {"": "may only be tightened, but is removed"} if below is None else demand.loosened_by(below)
                yield from (
                    f"must not loosen privacy: {kind}{field and '.'}{field} of {child.name!r} {problem}"
                    for field, problem in problems.items()
                )


def _too_deep(root: Node) -> str:
    """Return why a tree has too many levels, or an empty string."""
    return f"has {root.levels} levels of nodes; {MAX_LEVELS} are allowed" if root.levels > MAX_LEVELS else ""


def _idle(root: Node) -> str:
    return "must contain a node that trains, but num_local_steps is 0 at every data node" if root.listens else ""
