"""Checks that the callbacks of a trainer form one method, and that it enforces the settings of the topology."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import lightning.pytorch as pl

from worldlm.federation.parameters import PARTS
from worldlm.rounds.callback import RoundCallback
from worldlm.topology import Settings, Shape, Topology
from worldlm.topology.errors import join_names
from worldlm.topology.settings import KINDS_OF_PRIVACY
from worldlm.topology.shape import gone_as_one

log = logging.getLogger(__name__)

_PROVIDERS = {
    "privacy": "worldlm.callbacks.UpdatePrivacy",
    "example_privacy": "worldlm.callbacks.ExamplePrivacy",
    "outer_optimizer": "worldlm.callbacks.Averaging",
    "weight": "worldlm.callbacks.Averaging",
}


def wrong_base(kind: type) -> str:
    """Return why a class cannot be among a trainer's callbacks, or an empty string if it can."""
    if not issubclass(kind, RoundCallback) or issubclass(kind, pl.Callback):
        return ""
    return f"{kind.__name__} is a RoundCallback, which a trainer cannot run: derive it from FederationCallback"


def check_listed_once(callbacks: pl.Callback | Iterable[pl.Callback]) -> None:
    """Check that all are Lightning's, and that none that is saved in checkpoints or enforces privacy is listed twice.

    Raises:
        ValueError: Names the callback, or two different callbacks that enforce the same kind of privacy.
    """
    seen: dict[str, str] = {}
    for callback in [callbacks] if isinstance(callbacks, pl.Callback) else callbacks:
        if problem := wrong_base(type(callback)):
            raise ValueError(problem)
        name, kinds = type(callback).__name__, frozenset(KINDS_OF_PRIVACY) & getattr(callback, "enforces", frozenset())
        is_saved = type(callback).state_dict is not pl.Callback.state_dict
        for key in (*sorted(kinds), *([callback.state_key] if is_saved else ())):
            earlier = seen.setdefault(key, "")
            if earlier == name:
                raise ValueError(f"{name} is among trainer.callbacks more than once")
            if earlier:
                raise ValueError(f"{earlier} and {name} both provide {key}: list only one of them")
            seen[key] = name


def check_method(topology: Topology, shape: Shape, callbacks: Sequence[RoundCallback]) -> None:
    """Check that the callbacks form a method that suits a topology of a shape.

    Raises:
        ValueError: As the three checks below.
    """
    check_settings(topology, callbacks)
    check_parts(callbacks)
    check_handed_out(topology, shape, callbacks)


def check_parts(callbacks: Sequence[RoundCallback]) -> None:
    """Check that at most one callback merges each part of the model.

    Raises:
        ValueError: Names the parts, and two callbacks that would both overwrite them.
    """
    for i, callback in enumerate(callbacks):
        for later in callbacks[i + 1 :]:
            if shared := ", ".join(sorted(callback.parts & later.parts)):
                raise ValueError(
                    f"{type(callback).__name__} and {type(later).__name__} both merge {shared}: "
                    "only one callback may merge each part"
                )


def check_handed_out(topology: Topology, shape: Shape, callbacks: Sequence[RoundCallback]) -> None:
    """Check that every node of a centralised run receives the whole model, at which it is measured.

    Raises:
        ValueError: If no callback merges all parts of the model.
    """
    is_whole = any(callback.parts == set(PARTS) for callback in callbacks)
    if shape in ("single", "single_all_tokens") and topology.root.children and not is_whole:
        raise ValueError(
            f"shape {shape} measures one whole model at every node: let one callback merge {', '.join(PARTS)}, as "
            "--recipe methods/centralized_steps does"
        )


def check_settings(topology: Topology, callbacks: Sequence[RoundCallback]) -> None:
    """Check that a callback enforces every setting of the topology that requires one.

    Rules on residuals and links require none: without residuals or traffic figures they have no effect.

    Raises:
        ValueError: Names the settings, and the nodes at which they are set.
    """
    enforced = frozenset().union(*(callback.enforces for callback in callbacks))
    default = Settings()
    missing: dict[str, list[str]] = {}
    for node in topology.nodes.values():
        for name in ("privacy", "example_privacy", "outer_optimizer"):
            if getattr(node.settings, name) != getattr(default, name) and name not in enforced:
                missing.setdefault(name, []).append(node.name)
        if node.weight is not None and "weight" not in enforced:
            missing.setdefault("weight", []).append(node.name)
    if missing:
        raise ValueError(
            "\n".join(
                f"the topology {topology.name} asks for {name} at {join_names(nodes)}, and no callback provides it: "
                f"add {_PROVIDERS[name]} to trainer.callbacks"
                for name, nodes in missing.items()
            )
        )


def warn_of_lost_protection(tree: Topology, shaped: Topology, shape: Shape) -> None:
    """Log which federations of a topology are no longer protected as a unit in another shape."""
    for name in gone_as_one(tree, shaped):
        log.warning(
            "shape %s removes %s, whose privacy protected all nodes below it as a unit; now only the privacy of each "
            "node holds", shape, name,
        )  # fmt: skip
