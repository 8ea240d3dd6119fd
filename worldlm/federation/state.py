"""All that a node is: what a checkpoint keeps of it, and what moves with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from worldlm.federation.messages import (
    Download,
    Residual,
    Upload,
    download_from_state,
    message_state,
    residual_from_state,
    upload_from_state,
)
from worldlm.federation.parameters import PARTS, Part, Tensors
from worldlm.federation.type_checks import check_fields


@dataclass(slots=True, kw_only=True)
class NodeState:
    """The weights of a node, how far it has come, and where it stands in the round.

    Its inner optimizer is kept by the loop.
    """

    parameters: Tensors
    """All weights, by name."""
    num_visits: int = 0
    """Fits finished."""
    num_steps: int = 0
    """Optimizer steps taken."""
    num_batches: int = 0
    """Batches drawn from the node's data: the position a sampler continues from."""
    num_tokens: int = 0
    """Tokens trained on, all rounds together."""
    fit_tokens: int = 0
    """Tokens of the last fit."""
    unsent_tokens: int = 0
    """Tokens trained on, here and below, since the last upload."""
    bytes_down: int = 0
    """Bytes that its parent sent to it, all rounds together."""
    bytes_up: int = 0
    """Bytes that it sent to its parent."""
    num_messages: int = 0
    """Messages between it and its parent, both ways."""
    num_missed: int = 0
    """Sub-rounds of its parent's in which it took part and nothing of it arrived."""
    refused: dict[str, int] = field(default_factory=dict)
    """How many uploads of each participant it refused."""
    link_seconds: float = 0.0
    """Simulated seconds that its messages spent on its link."""
    download_seconds: float = 0.0
    """Those of what its parent sent last."""
    extra_steps: int = 0
    """By how many optimizer steps its whole run differs from all rounds as they are now: it joined late (below 0), or
    took another number of steps in rounds before its topology changed."""

    takes_part: bool = False
    """Whether it takes part in what its parent's federation does now."""
    participants: tuple[str, ...] = ()
    """Its children, and itself where it holds data, that take part in its own federation's sub-round."""
    start: Tensors | None = None
    """What its children receive, where the node trains first and they must not see what it learnt."""
    download: Download | None = None
    """What its parent sent last, until it has answered."""
    uploads: dict[str, Upload] = field(default_factory=dict)
    """Uploads that wait to be aggregated, by sender."""

    attention: dict[str, float] = field(default_factory=dict)
    """Weight that the node's last aggregation gave to every participant."""
    inbox: list[Residual] = field(default_factory=list)
    """Residuals delivered here, waiting to be attended to, once."""
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What every piece of the method keeps at this node, by its `state_key`: plain containers and tensors.
    Tensors are replaced, not written into."""

    def part(self, part: Part, partition: Mapping[str, Part]) -> Tensors:
        """Return the tensors of one part, not copied."""
        return {name: tensor for name, tensor in self.parameters.items() if partition[name] == part}

    def parts(self, wanted: frozenset[Part], partition: Mapping[str, Part]) -> dict[Part, Tensors]:
        """Return the tensors of several parts, not copied, in the order of `PARTS`."""
        return {part: self.part(part, partition) for part in PARTS if part in wanted}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, not copied."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        state["download"] = None if self.download is None else message_state(self.download)
        state["uploads"] = [message_state(upload) for upload in self.uploads.values()]
        state["inbox"] = [message_state(residual) for residual in self.inbox]
        return state

    def figures(self) -> dict[str, Any]:
        """Return what is known of the node without its tensors, and so without what waits to be sent or merged."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        found = {name: _without_tensors(value) for name, value in state.items() if name not in _HEAVY}
        return {**found, "parameters": {}}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "NodeState":
        """Undo `state_dict`.

        Raises:
            TypeError: If something in it is not of the type that is declared here.
        """
        download, uploads = state["download"], [upload_from_state(one) for one in state["uploads"]]
        messages = {
            "download": None if download is None else download_from_state(download),
            "uploads": {upload.node: upload for upload in uploads},
            "inbox": [residual_from_state(one) for one in state["inbox"]],
        }
        made = cls(**{**state, **messages})
        check_fields(made)
        return made


_HEAVY = ("parameters", "start", "download", "uploads", "inbox")


def _without_tensors(value: Any) -> Any:
    """Drop from dicts, at any depth, what is a tensor or a list of anything but plain values."""
    if not isinstance(value, dict):
        return value
    kept = {key: _without_tensors(one) for key, one in value.items() if not isinstance(one, Tensor)}
    return {key: one for key, one in kept.items() if not (isinstance(one, list | tuple) and not _is_plain(one))}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)
