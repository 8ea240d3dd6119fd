"""What a node is between rounds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from worldlm.federation.messages import Residual, message_state, residual_from_state
from worldlm.federation.parameters import PARTS, Part, Tensors


@dataclass(slots=True, kw_only=True)
class NodeState:
    """The weights of a node and how far it has come. Its optimizer is kept by the loop."""

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

    attention: dict[str, float] = field(default_factory=dict)
    """Weight that the node's last aggregation gave to every participant."""
    inbox: list[Residual] = field(default_factory=list)
    """Residuals delivered here, waiting to be attended to, once."""

    def part(self, part: Part, partition: Mapping[str, Part]) -> Tensors:
        """Return the tensors of one part, not copied."""
        return {name: tensor for name, tensor in self.parameters.items() if partition[name] == part}

    def parts(self, wanted: frozenset[Part], partition: Mapping[str, Part]) -> dict[Part, Tensors]:
        """Return the tensors of several parts, not copied, in the order of `PARTS`."""
        return {part: self.part(part, partition) for part in PARTS if part in wanted}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, not copied."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        return {**state, "inbox": [message_state(residual) for residual in self.inbox]}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "NodeState":
        """Undo `state_dict`."""
        return cls(**{**state, "inbox": [residual_from_state(one) for one in state["inbox"]]})
