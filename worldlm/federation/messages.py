"""The three messages: all that one node ever learns of another.

Messages are frozen, and whoever receives one must not write into its tensors: to spare a copy, they may share
memory with the sender, who leaves them alone until the message has been used. While a message travels, its parts and
residuals may hold encoded tensors (`worldlm.federation.compression`): its bytes are then theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from worldlm.federation.parameters import Part, Tensors, num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """A (K, V) pair alone, on its way to the federation it fits best."""

    keys: Tensors
    """Key layers, as sanitised by their origin."""
    values: Tensors
    """Value layers, as sanitised by their origin."""
    origin: str
    """Name of the node they come from."""
    federation: str
    """Name of the federation, that is the parent, that could not absorb them."""
    jurisdiction: str | None
    """Jurisdiction of the origin; None where its topology names none."""
    round: int
    """Round in which it was selected, from 0."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return num_bytes(self.keys) + num_bytes(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """What a parent sends to a child."""

    round: int
    """Round of the world, from 0."""
    parts: Mapping[Part, Tensors]
    """The parent's tensors, by part; a part that does not travel is missing."""
    residuals: tuple[Residual, ...] = ()
    """Residuals routed to this child, or to one of its descendants."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return _num_bytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """What a child sends to its parent, as sanitised."""

    node: str
    """Name of the sender."""
    round: int
    """Round of the world, from 0."""
    parts: Mapping[Part, Tensors]
    """The child's tensors, by part; a part that does not travel is missing."""
    num_tokens: int
    """Tokens the sender, and all that is below it, trained on since its last upload."""
    row_counts: Mapping[str, Tensor] = field(default_factory=dict)
    """How often the token of each row occurred in that, float32 [vocab], by the name of a tensor that is averaged
    row by row; empty where rows are not told apart, or the sender is private."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Figures about the sender's fit; empty where the sender is private."""
    residuals: tuple[Residual, ...] = ()
    """Residuals climbing towards the root."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return _num_bytes(self) + num_bytes(self.row_counts)


def joined(parts: Mapping[Part, Tensors]) -> Tensors:
    """Return the tensors of all parts of a message by name, not copied."""
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


MessageT = TypeVar("MessageT", Download, Upload)


def message_state(message: Download | Upload | Residual) -> dict[str, Any]:
    """Return a message as plain containers and tensors, not copied, for a checkpoint."""
    state = {one.name: getattr(message, one.name) for one in fields(message)}
    for name in ("parts", "row_counts"):
        if name in state:
            state[name] = dict(state[name])
    if "residuals" in state:
        state["residuals"] = [message_state(residual) for residual in state["residuals"]]
    return state


class SavedResidual(TypedDict):
    """A residual as `message_state` writes it."""

    keys: Tensors
    values: Tensors
    origin: str
    federation: str
    jurisdiction: str | None
    round: int


def residual_from_state(state: Mapping[str, Any]) -> Residual:
    """Undo `message_state`."""
    return Residual(**state)


def download_from_state(state: Mapping[str, Any]) -> Download:
    """Undo `message_state`."""
    return _with_residuals(Download(**{**state, "residuals": ()}), state)


def upload_from_state(state: Mapping[str, Any]) -> Upload:
    """Undo `message_state`."""
    return _with_residuals(Upload(**{**state, "residuals": ()}), state)


def _with_residuals(message: MessageT, state: Mapping[str, Any]) -> MessageT:
    return replace(message, residuals=tuple(residual_from_state(one) for one in state["residuals"]))


def _num_bytes(message: Download | Upload) -> int:
    parts = sum(num_bytes(tensors) for tensors in message.parts.values())
    return parts + sum(residual.num_bytes for residual in message.residuals)
