"""The three messages between nodes, which are the only way in which nodes exchange data.

Messages are immutable, and a receiver must not write into their tensors. To avoid a copy, the tensors may share memory
with the sender, which does not change them until the message has been used. In transit, the parts and residuals of a
message may be encoded (`worldlm.federation.compression`); its size is then that of the encoded tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypedDict, TypeVar

from torch import Tensor

from worldlm.federation.parameters import Part, Tensors, num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """A (K, V) pair that is routed to the federation it fits best."""

    keys: Tensors
    """Key layers, sanitised by their origin."""
    values: Tensors
    """Value layers, sanitised by their origin."""
    origin: str
    """Name of the node that the layers come from."""
    federation: str
    """Name of the federation (its parent node) whose attention gave the pair too little weight."""
    jurisdiction: str | None
    """Jurisdiction of the origin; None if it has none."""
    round: int
    """Round in which the pair was selected, from 0."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return num_bytes(self.keys) + num_bytes(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """The message from a parent to a child."""

    round: int
    """Round of the world, from 0."""
    parts: Mapping[Part, Tensors]
    """The parent's tensors, by part; a part that is not sent is missing."""
    residuals: tuple[Residual, ...] = ()
    """Residuals routed to this child, or to one of its descendants."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return _num_bytes(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """The message from a child to its parent, sanitised."""

    node: str
    """Name of the sender."""
    round: int
    """Round of the world, from 0."""
    parts: Mapping[Part, Tensors]
    """The child's tensors, by part; a part that is not sent is missing."""
    num_tokens: int
    """Tokens that the sender and its descendants trained on since its last upload."""
    row_counts: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a tensor that is averaged by rows -> how often the token of each row occurred, float32 [vocab]. Empty if
    no tensor is averaged by rows, or if the sender is private."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the sender's fit; empty if the sender is private."""
    residuals: tuple[Residual, ...] = ()
    """Residuals on the way to the root."""

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
    state = {field_.name: getattr(message, field_.name) for field_ in fields(message)}
    for name in ("parts", "row_counts"):
        if name in state:
            state[name] = dict(state[name])
    if "residuals" in state:
        state["residuals"] = [message_state(residual) for residual in state["residuals"]]
    return state


class SavedResidual(TypedDict):
    """The plain form of a residual, as `message_state` returns it."""

    keys: Tensors
    values: Tensors
    origin: str
    federation: str
    jurisdiction: str | None
    round: int


def residual_from_state(state: Mapping[str, Any]) -> Residual:
    """Reverse `message_state`."""
    return Residual(**state)


def download_from_state(state: Mapping[str, Any]) -> Download:
    """Reverse `message_state`."""
    return _with_residuals(Download(**{**state, "residuals": ()}), state)


def upload_from_state(state: Mapping[str, Any]) -> Upload:
    """Reverse `message_state`."""
    return _with_residuals(Upload(**{**state, "residuals": ()}), state)


def _with_residuals(message: MessageT, state: Mapping[str, Any]) -> MessageT:
    return replace(message, residuals=tuple(residual_from_state(residual) for residual in state["residuals"]))


def _num_bytes(message: Download | Upload) -> int:
    parts = sum(num_bytes(tensors) for tensors in message.parts.values())
    return parts + sum(residual.num_bytes for residual in message.residuals)
