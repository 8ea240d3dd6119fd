"""A topology as a text tree."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from worldlm.topology.settings import (
    FOR_CHILDREN,
    Link,
    OuterOptimizer,
    Privacy,
    PrivacyOfExamples,
    Residuals,
    Settings,
)
from worldlm.topology.tree import Node, Topology


def draw_tree(topology: Topology) -> str:
    """Draw the tree, one line per node, for terminals and TensorBoard.

    The line of a data node shows its corpus and its local steps, or that it only listens. Any other setting is shown at
    the highest node that has it; it holds for all descendants until one shows another value. Of the copies of a node,
    the first is drawn and the others are counted.
    """
    head = f"{topology.name}: {topology.description}" if topology.description else topology.name
    root = topology.root
    rows = list(_walk(root, None))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([head, *(line.rstrip() for line in lines)])


def _walk(node: Node, above: Node | None, prefix: str = "", indent: str = "") -> Iterator[tuple[str, str]]:
    yield f"{prefix}{node.name}", " · ".join(facts(node, above))
    runs = _runs(node.children)
    for position, run in enumerate(runs, start=1):
        branch, stem = ("└── ", "    ") if position == len(runs) else ("├── ", "│   ")
        if run[0].copy > 1:
            yield f"{indent}{branch}...", f"{len(run):,} more copies, up to {run[-1].name}"
        else:
            yield from _walk(run[0], node, indent + branch, indent + stem)


def _runs(children: Sequence[Node]) -> list[list[Node]]:
    """Group the second and further copies of a node; every other node is a group of its own."""
    runs: list[list[Node]] = []
    for child in children:
        if child.copy > 1 and runs and runs[-1][0].copy > 1:
            runs[-1].append(child)
        else:
            runs.append([child])
    return runs


def facts(node: Node, above: Node | None) -> Iterator[str]:
    """Yield what a node is, and those of its settings that differ from its parent's.

    Args:
        node: The node.
        above: Its parent, None for the root.
    """
    settings, inherited = node.settings, above.settings if above else Settings()
    if node.holds_data:
        yield f"corpus {node.corpus}"
        yield f"{settings.num_local_steps} steps" if node.fits else "listens"
    if node.weight is not None:
        yield f"weight {node.weight:g}"
    unused = FOR_CHILDREN if above and node.is_leaf else ()
    for key, text in _texts(settings).items():
        if getattr(settings, key) != getattr(inherited, key) and key not in unused:
            yield text


def _texts(settings: Settings) -> dict[str, str]:
    return {
        "batch_size": f"batch {settings.batch_size or 'by default'}",
        "num_subrounds": f"sub-rounds {settings.num_subrounds}",
        "participation": f"participation {settings.participation:g}",
        "sampling": f"sampling {settings.sampling}",
        "dropout": f"dropout {settings.dropout:g}",
        "deadline_seconds": f"deadline {f'{settings.deadline_seconds:g} s' if settings.deadline_seconds else 'none'}",
        "min_participants": f"at least {settings.min_participants} participant{'s' * (settings.min_participants > 1)}",
        "max_update_norm": f"update norm up to {settings.max_update_norm or math.inf:g}",
        "outer_optimizer": _outer_optimizer(settings.outer_optimizer),
        "optimizer_state": f"optimizer state {settings.optimizer_state}",
        "jurisdiction": f"jurisdiction {settings.jurisdiction or 'none'}",
        "privacy": f"privacy {_privacy(settings.privacy)}",
        "example_privacy": f"example privacy {_privacy(settings.example_privacy)}",
        "residuals": _residuals(settings.residuals),
        "link": _link(settings.link),
    }


def _outer_optimizer(outer: OuterOptimizer | None) -> str:
    if outer is None:
        return "outer optimizer by default"
    arguments = ", ".join(f"{key}={value}" for key, value in outer.arguments.items())
    return f"outer {outer.name}({arguments})"


def _privacy(privacy: Privacy | None) -> str:
    if privacy is None:
        return "off"
    limit = "" if privacy.max_epsilon is None else f" ε≤{privacy.max_epsilon:g}"
    unit = f"per {privacy.unit} " if isinstance(privacy, PrivacyOfExamples) else ""
    return f"{unit}C={privacy.clip_norm:g} σ={privacy.noise_multiplier:g} δ={privacy.delta:g}{limit}"


def _residuals(residuals: Residuals) -> str:
    share = "shared" if residuals.share else "kept"
    accepted = "any" if residuals.accept_from is None else ", ".join(residuals.accept_from)
    return f"residuals {share}, accepted from {accepted or 'none'}"


def _link(link: Link | None) -> str:
    if link is None:
        return "link none"
    jitter = f" jitter {link.jitter:g}" if link.jitter else ""
    return f"link {link.bandwidth_mbps:g} Mbit/s {link.latency_ms:g} ms{jitter}"
