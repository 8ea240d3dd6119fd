"""The state of a node, which checkpoints store and processes exchange."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from worldlm.federation.messages import (
    Download,
    Upload,
    download_from_state,
    message_state,
    upload_from_state,
)
from worldlm.federation.parameters import PARTS, Part, Tensors
from worldlm.federation.type_checks import check_fields


@dataclass(slots=True, kw_only=True)
class NodeState:
    """The weights of a node, its counters, and its position in the round.

    The training loop stores the state of the inner optimizer.
    """

    parameters: Tensors
    """All weights, by name."""
    num_visits: int = 0
    """Number of finished fits."""
    num_steps: int = 0
    """Number of optimizer steps."""
    num_batches: int = 0
    """Number of batches drawn from the node's data, at which a sampler continues."""
    num_tokens: int = 0
    """Tokens trained on in all rounds."""
    fit_tokens: int = 0
    """Tokens of the last fit."""
    unsent_tokens: int = 0
    """Tokens that the node and its descendants trained on since its last upload."""
    bytes_down: int = 0
    """Bytes that its parent sent to it in all rounds."""
    bytes_up: int = 0
    """Bytes that it sent to its parent in all rounds."""
    num_messages: int = 0
    """Number of messages between it and its parent, in both directions."""
    num_missed: int = 0
    """Number of its parent's sub-rounds in which it took part but its upload was missing."""
    refused: dict[str, int] = field(default_factory=dict)
    """Participant -> number of its uploads that this node rejected."""
    link_seconds: float = 0.0
    """Simulated seconds of all its messages on its link."""
    download_seconds: float = 0.0
    """Simulated seconds of the last download."""
    extra_steps: int = 0
    """Difference between its optimizer steps in the whole run and the steps of all rounds with the current topology. It
    is below 0 for a node that joined late, and also accounts for other numbers of steps before the topology changed."""

    takes_part: bool = False
    """Whether it takes part in the current sub-round of its parent's federation."""
    participants: tuple[str, ...] = ()
    """Participants of the current sub-round of its own federation; a node with data is one of them itself."""
    start: Tensors | None = None
    """The tensors that its children receive, if the node trains first and must not send them the result."""
    download: Download | None = None
    """The last download, until the node has sent its upload."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    """Pending uploads by sender, until they are aggregated."""

    attention: dict[str, dict[str, float]] = field(default_factory=dict)
    """Receiver -> source -> weight of the source in the last mixture that this node made for the receiver. A receiver
    is a child, or a node below it whose residual this node answered."""
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`state_key` of a callback -> its memory at this node: plain containers and tensors. Callbacks replace tensors and
    do not write into them."""

    def part(self, part: Part, partition: Mapping[str, Part]) -> Tensors:
        """Return the tensors of one part, not copied."""
        return {name: tensor for name, tensor in self.parameters.items() if partition[name] == part}

    def parts(self, names: frozenset[Part], partition: Mapping[str, Part]) -> dict[Part, Tensors]:
        """Return the tensors of several parts, not copied, in the order of `PARTS`."""
        return {part: self.part(part, partition) for part in PARTS if part in names}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, not copied."""
        state = {field_.name: getattr(self, field_.name) for field_ in fields(self)}
        state["download"] = None if self.download is None else message_state(self.download)
        state["uploads"] = [message_state(upload) for upload in self.uploads.values()]
        # the order in which a node serves its children, or a callback looks, depends on the number of processes
        state["attention"] = {receiver: dict(sorted(row.items())) for receiver, row in sorted(self.attention.items())}
        state["memory"] = {key: memory for key, memory in sorted(self.memory.items()) if memory}
        return state

    def figures(self) -> dict[str, Any]:
        """Return the state without tensors, and so without pending messages."""
        state = {field_.name: getattr(self, field_.name) for field_ in fields(self)}
        figures = {name: _without_tensors(value) for name, value in state.items() if name not in _WITH_TENSORS}
        return {**figures, "parameters": {}}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "NodeState":
        """Reverse `state_dict`.

        Raises:
            TypeError: If a value does not have its declared type.
        """
        download, uploads = state["download"], [upload_from_state(upload) for upload in state["uploads"]]
        messages = {
            "download": None if download is None else download_from_state(download),
            "uploads": {upload.node: upload for upload in uploads},
        }
        older = {"inbox"}  # residuals that waited, in checkpoints of versions that delivered them
        attention = {key: row for key, row in state["attention"].items() if not isinstance(row, float)}  # as of these
        kept = {name: value for name, value in state.items() if name not in older}
        node_state = cls(**{**kept, "attention": attention, **messages})
        check_fields(node_state)
        return node_state


_WITH_TENSORS = ("parameters", "start", "download", "uploads")


def _without_tensors(value: Any) -> Any:
    """Drop tensors, and lists with values that are not plain, from nested dicts."""
    if not isinstance(value, dict):
        return value
    entries = {key: _without_tensors(entry) for key, entry in value.items() if not isinstance(entry, Tensor)}
    return {
        key: entry for key, entry in entries.items() if not (isinstance(entry, list | tuple) and not _is_plain(entry))
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
