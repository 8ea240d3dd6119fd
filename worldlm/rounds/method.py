"""A federated method: a list of callbacks whose hooks run in order."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

from worldlm.federation.messages import Download, MessageT, Upload
from worldlm.federation.parameters import Part
from worldlm.federation.state import NodeState
from worldlm.rounds.callback import HOOKS, RoundCallback
from worldlm.rounds.context import Context, LocalFit
from worldlm.rounds.world import World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes

_RENAMED = {"on_arrive": "on_unpack", "on_emit": "after_aggregate", "honours": "enforces", "kept": "memory_schema"}
"""Former names of hooks and attributes."""


class Method:
    """Runs the hooks of its callbacks, each in the order of the list.

    Args:
        callbacks: The recipe's callbacks. Only instances of `RoundCallback` are used.

    Raises:
        ValueError: If a callback overrides a hook whose name or signature has changed.
    """

    def __init__(self, callbacks: Iterable[object]) -> None:
        self.callbacks = tuple(callback for callback in callbacks if isinstance(callback, RoundCallback))
        for callback in self.callbacks:
            _check_hooks(type(callback))

    @property
    def parts(self) -> frozenset[Part]:
        """Parts of the model that the callbacks merge. Messages carry them."""
        return frozenset().union(*(callback.parts for callback in self.callbacks))

    def context(self, world: World, name: str, subround: int = 0) -> Context:
        """Return what the hooks of a node receive."""
        return Context(
            world=world,
            node=world.topology.nodes[name],
            state=world.states[name],
            round=world.round,
            subround=subround,
            callbacks=self.callbacks,
        )

    def check(self, topology: Topology) -> None:
        """Check the order of the callbacks, and that they suit each other and the topology.

        Raises:
            ValueError: If the order is wrong, or a callback does not suit the others or the topology.
        """
        for i, callback in enumerate(self.callbacks):
            for later in self.callbacks[i + 1 :]:
                if reason := callback.must_follow(later):
                    raise ValueError(reason)
        for callback in self.callbacks:
            callback.check_method(self.callbacks, topology)

    # ------------------------------------------------------------------ hooks, in the order of a round

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        """Let every callback drop what no longer applies."""
        for callback in self.callbacks:
            callback.on_topology_change(world, changes, states)

    def participates(self, context: Context) -> bool:
        """Return whether all callbacks let a node take part."""
        return all(callback.participates(context) for callback in self.callbacks)

    def on_download(self, context: Context, child: Node, download: Download) -> Download:
        """Compose a download."""
        for callback in self.callbacks:
            download = callback.on_download(context, child, download)
        return download

    def on_send(self, context: Context, receiver: Node, message: MessageT) -> MessageT:
        """Pack a message."""
        for callback in self.callbacks:
            message = callback.on_send(context, receiver, message)
        return message

    def on_unpack(self, context: Context, sender: Node, message: MessageT) -> MessageT:
        """Unpack a message, in the reverse order."""
        for callback in reversed(self.callbacks):
            message = callback.on_unpack(context, sender, message)
        return message

    def on_route(self, context: Context, download: Download) -> Download:
        """Take from a download what the node does not merge."""
        for callback in self.callbacks:
            download = callback.on_route(context, download)
        return download

    def on_receive(self, context: Context, download: Download) -> None:
        """Merge a download."""
        for callback in self.callbacks:
            callback.on_receive(context, download)

    def on_merged(self, context: Context) -> None:
        """Let the callbacks observe a leaf before its fit, or a federation after it aggregated."""
        for callback in self.callbacks:
            callback.on_merged(context)

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        """Prepare a fit."""
        for callback in self.callbacks:
            callback.on_local_fit_start(context, fit)

    def on_local_fit_end(self, context: Context) -> None:
        """Let the callbacks observe a node after its fit."""
        for callback in self.callbacks:
            callback.on_local_fit_end(context)

    def on_upload(self, context: Context, upload: Upload) -> Upload:
        """Compose an upload."""
        for callback in self.callbacks:
            upload = callback.on_upload(context, upload)
        return upload

    def packed_bytes(self, context: Context, receiver: Node, upload: Upload) -> int:
        """Return the bytes that an upload would have after it is packed."""
        num_bytes = upload.num_bytes
        for callback in self.callbacks:
            num_bytes = callback.packed_bytes(context, receiver, upload, num_bytes)
        return num_bytes

    def on_missed(self, context: Context, upload: Upload) -> None:
        """Handle an upload that does not leave its node."""
        for callback in self.callbacks:
            callback.on_missed(context, upload)

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        """Make an upload safe to leave."""
        for callback in self.callbacks:
            upload = callback.on_sanitise(context, upload, download)
        return upload

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Merge uploads."""
        for callback in self.callbacks:
            callback.on_aggregate(context, uploads)

    def after_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        """Let the callbacks observe a federation after it aggregated."""
        for callback in self.callbacks:
            callback.after_aggregate(context, uploads)

    # ------------------------------------------------------------------ reporting

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        """Return the figures of all callbacks for a node, by column."""
        return {
            column: value for callback in self.callbacks for column, value in callback.node_figures(node, state).items()
        }

    def routes(self, world: World) -> Counter[str]:
        """Count the answered residuals of all callbacks."""
        return sum((callback.routes(world) for callback in self.callbacks), Counter[str]())

    def refusals(self, world: World) -> Counter[str]:
        """Count the rejected residuals of all callbacks."""
        return sum((callback.refusals(world) for callback in self.callbacks), Counter[str]())


@cache
def _near_hook(name: str) -> str:
    """Return the hook of nearly the same name, or "" if there is none."""
    return "".join(get_close_matches(name, HOOKS, n=1, cutoff=0.9))


def _check_hooks(kind: type[RoundCallback]) -> None:
    """Check that a class overrides hooks by their current names and signatures.

    Raises:
        ValueError: Names the hook, and its current name or signature.
    """
    for old, new in _RENAMED.items():
        if any(old in vars(base) for base in kind.__mro__):
            raise ValueError(f"{kind.__name__}.{old} is now called {new}: rename it")
    for base in (base for base in kind.__mro__ if issubclass(base, RoundCallback)):
        own = [name for name in vars(base) if not name.startswith("_") and name not in HOOKS]
        for name in own:
            if (near := _near_hook(name)) and callable(getattr(base, name)):
                raise ValueError(f"{kind.__name__}.{name} is not a hook and would never run; did you mean {near!r}?")
    for name in HOOKS:
        hook: Any = getattr(kind, name)
        if "trainer" in list(inspect.signature(hook).parameters)[1:2]:
            expected = ", ".join(inspect.signature(getattr(RoundCallback, name)).parameters)
            raise ValueError(
                f"{kind.__name__}.{name} expects a trainer, which hooks of a round no longer receive: write "
                f"{name}({expected}), and use the context's `log`, `find` and `num_rounds`"
            )
