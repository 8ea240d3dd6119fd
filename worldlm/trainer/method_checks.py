"""Checks that the callbacks of a trainer form one method, and that it enforces what the topology demands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import lightning.pytorch as pl

from worldlm.federation.parameters import PARTS
from worldlm.rounds.callback import RoundCallback
from worldlm.topology import Settings, Shape, Topology
from worldlm.topology.settings import KINDS_OF_PRIVACY

_PROVIDERS = {
    "privacy": "worldlm.callbacks.UpdatePrivacy",
    "example_privacy": "worldlm.callbacks.ExamplePrivacy",
    "outer_optimizer": "worldlm.callbacks.Averaging",
    "weight": "worldlm.callbacks.Averaging",
}


def check_listed_once(callbacks: pl.Callback | Iterable[pl.Callback]) -> None:
    """Check that no callback which is saved, or keeps a node's privacy, is listed twice.

    Raises:
        ValueError: Names the callback; or the two of them, where they keep the same kind of privacy.
    """
    seen: dict[str, str] = {}
    for one in [callbacks] if isinstance(callbacks, pl.Callback) else callbacks:
        name, kinds = type(one).__name__, frozenset(KINDS_OF_PRIVACY) & getattr(one, "enforces", frozenset())
        is_saved = type(one).state_dict is not pl.Callback.state_dict
        for what in (*sorted(kinds), *([one.state_key] if is_saved else ())):
            other = seen.setdefault(what, "")
            if other == name:
                raise ValueError(f"{name} is among trainer.callbacks more than once")
            if other:
                raise ValueError(f"{what} is kept by {other} and by {name} too: let one callback keep it")
            seen[what] = name


def check_parts(callbacks: Sequence[RoundCallback]) -> None:
    """Check that every part of the model is merged by one callback at most.

    Raises:
        ValueError: Names a part and the callbacks that would both overwrite it.
    """
    for i, one in enumerate(callbacks):
        for other in callbacks[i + 1 :]:
            if shared := ", ".join(sorted(one.parts & other.parts)):
                raise ValueError(
                    f"{shared}: merged by {type(one).__name__} and by {type(other).__name__} too; "
                    "let one callback merge each part"
                )


def check_handed_out(topology: Topology, shape: Shape, callbacks: Sequence[RoundCallback]) -> None:
    """Check that the one model of a centralised run reaches, as a whole, the nodes that it is measured at.

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
    """Check that some callback obeys every setting of the topology that asks for one.

    Rules on residuals and links ask for nothing where no residuals are exchanged, or no traffic is measured.

    Raises:
        ValueError: Names the settings, and the nodes that ask for them.
    """
    enforced = frozenset().union(*(callback.enforces for callback in callbacks))
    nothing = Settings()
    asked: dict[str, list[str]] = {}
    for node in topology.nodes.values():
        for name in ("privacy", "example_privacy", "outer_optimizer"):
            if getattr(node.settings, name) != getattr(nothing, name) and name not in enforced:
                asked.setdefault(name, []).append(node.name)
        if node.weight is not None and "weight" not in enforced:
            asked.setdefault("weight", []).append(node.name)
    if asked:
        raise ValueError(
            "\n".join(
                f"the topology {topology.name} asks for {name} at {', '.join(nodes)}, and no callback provides it: "
                f"add {_PROVIDERS[name]} to trainer.callbacks"
                for name, nodes in asked.items()
            )
        )
