"""The world as a tree of nodes: frozen, checked, walked in preorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from worldlm.topology.checks import bad_name, out_of_range, refuse
from worldlm.topology.settings import KINDS_OF_PRIVACY, Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One participant; with children, also the parent of a federation.

    Raises:
        FieldError: (a ValueError) for a bad name or weight, a leaf without a corpus, or a corpus
            without `num_local_steps`, which may be 0 only at a leaf, or more `min_participants` than it has.
    """

    name: str
    """Letters, digits, '_' and '-'; unique in its topology."""

    corpus: str | None = None
    """The corpus this node fits. None only for a node with children."""

    weight: float | None = None
    """Its weight in the parent's mean; above 0. None leaves it to the callback."""

    settings: Settings = field(default_factory=Settings)
    """What holds here, inheritance already applied."""

    children: tuple[Node, ...] = ()
    """The participants of this node's federation."""

    source: str = field(default="", compare=False)
    """File and line where it was written."""

    copy: int = field(default=0, compare=False)
    """Which of the copies that its file asks for it is, from 1; 0 where it asks for none."""

    def __post_init__(self) -> None:
        """Check the node by itself."""
        refuse(
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
        """Whether nobody is below this node."""
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
        """Whether what its inner optimizer knows waits from one fit to the next."""
        return self.fits and self.settings.optimizer_state == "keep"

    @property
    def listens(self) -> bool:
        """Whether nobody here or below trains: a listener receives and is evaluated, and sends nothing."""
        return not self.fits and all(child.listens for child in self.children)

    def walk(self) -> Iterator[Node]:
        """Yield this node and all below it, parents first, siblings in order."""
        yield self
        for child in self.children:
            yield from child.walk()

    def leaves(self) -> Iterator[Node]:
        """Yield the leaves at or below this node, in preorder."""
        return (node for node in self.walk() if node.is_leaf)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A named tree of nodes.

    Raises:
        FieldError: for a bad name, two nodes with one name, a world in which nobody trains, or a node that asks for
            less privacy than the one above it.
    """

    name: str
    """Letters, digits, '_' and '-'."""

    root: Node
    """The node above all others."""

    description: str = ""
    """A sentence for the reader."""

    def __post_init__(self) -> None:
        """Check what only the whole tree can tell."""
        counts = Counter(node.name for node in self.root.walk())
        doubled = [name for name, count in counts.items() if count > 1]
        wrong = f"must not hold one name twice, but holds {', '.join(doubled)}" if doubled else _idle(self.root)
        refuse({"name": bad_name(self.name), "root": wrong or "; ".join(_loosened(self.root))})

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
        """Return the nodes on the way from the root to a node, both among them.

        Raises:
            KeyError: if no node has that name.
        """
        parent = self.parent(name)
        return [*(self.path(parent.name) if parent else []), self.nodes[name]]

    @property
    def data_nodes(self) -> list[Node]:
        """The nodes that hold a corpus, in preorder; listeners are among them."""
        return [node for node in self.root.walk() if node.holds_data]

    @cached_property
    def depth(self) -> int:
        """The number of levels: 1 for a root alone."""
        return _depth(self.root)


def _depth(node: Node) -> int:
    return 1 + max(map(_depth, node.children), default=0)


def _bad_corpus(node: Node) -> str:
    if node.corpus is not None:
        return bad_name(node.corpus)
    return f"is needed at node {node.name!r}, which has no children" if node.is_leaf else ""


def _bad_steps(node: Node) -> str:
    steps = node.settings.num_local_steps
    if node.holds_data and steps is None:
        return f"is needed at node {node.name!r}, which holds data: set neither here nor above"
    if node.holds_data and steps == 0 and node.children:
        return f"is 0 at node {node.name!r}, which has children: only a leaf can just listen"
    return ""


def _bad_minimum(node: Node) -> str:
    if node.is_leaf or node.listens:
        return ""
    most = sum(not child.listens for child in node.children) + node.fits
    wanted = node.settings.min_participants
    return f"is {wanted} at node {node.name!r}, which has {most} participants" if wanted > most else ""


def _loosened(root: Node) -> Iterator[str]:
    """Yield where a node asks for less privacy than its parent; files are refused line by line before."""
    for node in root.walk():
        for child in node.children:
            for kind in KINDS_OF_PRIVACY:
                demand, below = getattr(node.settings, kind), getattr(child.settings, kind)
                if demand is None or below is demand:
                    continue
                told = {"": "may only be tightened, but is removed"} if below is None else demand.loosened_by(below)
                yield from (
                    f"must not loosen privacy: {kind}{field and '.'}{field} of {child.name!r} {wrong}"
                    for field, wrong in told.items()
                )


def _idle(root: Node) -> str:
    return "must hold a node that trains, but num_local_steps is 0 wherever there is data" if root.listens else ""
