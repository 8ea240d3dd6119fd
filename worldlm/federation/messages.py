"""The three messages between nodes, which are the only way in which nodes exchange data.

Messages are immutable, and a receiver must not write into their tensors. To avoid a copy, the tensors may share memory
with the sender, which does not change them until the message has been used. In transit, the parts and residuals of a
message may be encoded (`worldlm.federation.compression`); its size is then that of the encoded tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NotRequired, TypedDict, TypeVar

from torch import Tensor

from worldlm.federation.parameters import Part, Tensors, num_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Residual:
    """A (K, V) pair on its way to the root, or the answer of an ancestor on its way back to the pair's origin."""

    keys: Tensors
    """Key layers: those of the origin, sanitised by it, or a mixture for the origin."""
    values: Tensors
    """Value layers: the same."""
    row_shares: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a value tensor that is mixed row by row -> the distribution of the pair's weight over its rows, float32
    [vocab]."""
    origin: str
    """Name of the node whose layers climbed."""
    federation: str
    """Name of the federation that selected the pair, or that answered it."""
    jurisdiction: str | None
    """Jurisdiction of the origin; None if it has none."""
    round: int
    """Round in which the pair was selected or answered, from 0."""
    share: float = 0.0
    """Its share in the average that comes with the same upload, from 0 to 1; 0 in an answer."""
    num_nodes: float = 1.0
    """How many nodes the pair counts for in attention, above 0."""
    scale: float = 0.0
    """Mean over these nodes of the L2 norm of the change of their keys since the common initial keys."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return num_bytes(self.keys) + num_bytes(self.values) + num_bytes(self.row_shares)


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """The message from a parent to a child."""

    round: int
    """Round of the world, from 0."""
    parts: Mapping[Part, Tensors]
    """The parent's tensors, by part; a part that is not sent is missing."""
    reliability: float = 1.0
    """How far the receiver should follow averaged parts, from 0 to 1: below 1 only if privacy noise outweighs all that
    the averaged nodes learnt."""
    own_weight: float = 0.0
    """Weight, from 0 to 1, that the receiver should give to its own keys and values; those of the download have the
    rest."""
    row_shares: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of a value tensor that is mixed row by row -> the distribution of the mixture's weight over its rows,
    float32 [vocab]."""
    own_row_weights: Mapping[str, Tensor] = field(default_factory=dict)
    """Name of such a tensor -> what `own_weight` is for each of its rows, float32 [vocab]."""
    num_nodes: float = 0.0
    """How many nodes the keys and values count for in further attention; 0 if no attention mixed them."""
    scale: float = 0.0
    """Mean over these nodes of the L2 norm of the change of their keys since the common initial keys."""
    residuals: tuple[Residual, ...] = ()
    """Answers to the residuals that the receiver sent up, by their origin."""

    @property
    def num_bytes(self) -> int:
        """Payload in bytes."""
        return _num_bytes(self) + num_bytes(self.row_shares) + num_bytes(self.own_row_weights)


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
    noise_variance: Mapping[Part, float] = field(default_factory=dict)
    """Variance of the privacy noise in each coordinate, by part; a part without noise is missing. It is public."""
    reliability: Mapping[Part, float] = field(default_factory=dict)
    """Share of `num_tokens` that counts, by part, in (0, 1]: noise outweighs the rest. A missing part has 1."""
    scale: float = 0.0
    """Mean, over the nodes that the keys average, of the L2 norm of the change of their keys since the common initial
    keys; 0 if it is unknown."""
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
    for name in ("parts", "row_counts", "row_shares", "own_row_weights"):
        if name in state:
            state[name] = dict(state[name])
    if "residuals" in state:
        state["residuals"] = [message_state(residual) for residual in state["residuals"]]
    return state


class SavedResidual(TypedDict):
    """The plain form of a residual, as `message_state` returns it."""

    keys: Tensors
    values: Tensors
    row_shares: NotRequired[Tensors]
    origin: str
    federation: str
    jurisdiction: str | None
    round: int
    share: NotRequired[float]
    num_nodes: NotRequired[float]
    scale: NotRequired[float]


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
