"""What each federation decides for itself: steps, optimizer, privacy, residuals, governance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worldlm.topology.checks import bad_name, out_of_range, refuse

FOR_CHILDREN = (
    "num_subrounds",
    "participation",
    "sampling",
    "deadline_seconds",
    "min_participants",
    "max_update_norm",
    "outer_optimizer",
)
"""Settings of a federation, which have no effect at a leaf."""


KINDS_OF_PRIVACY = ("privacy", "example_privacy")
"""Settings that ask for differential privacy: of updates, of examples. Below a node they may only be tightened."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Privacy:
    """Clip to a norm, add Gaussian noise, and keep account of the budget.

    Raises:
        FieldError: (a ValueError) naming every field that is out of range.
    """

    clip_norm: float
    """Largest L2 norm that leaves unscaled; above 0."""

    noise_multiplier: float = 0.0
    """Noise deviation over `clip_norm`; at least 0; 0 only clips."""

    delta: float = 1e-5
    """The delta at which epsilon is told; between 0 and 1, both excluded."""

    max_epsilon: float | None = None
    """Participation ends before epsilon would pass this; above 0. None sets no limit."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        max_epsilon = out_of_range(self.max_epsilon, above=0)
        if self.max_epsilon is not None and self.noise_multiplier == 0:
            max_epsilon = max_epsilon or "needs a noise_multiplier above 0 to be kept, but it is 0"
        refuse(
            {
                "clip_norm": out_of_range(self.clip_norm, above=0),
                "noise_multiplier": out_of_range(self.noise_multiplier, at_least=0),
                "delta": out_of_range(self.delta, above=0, below=1),
                "max_epsilon": max_epsilon,
            }
        )

    def loosened_by(self, below: Privacy) -> dict[str, str]:
        """Say where a node below loosens this demand.

        Args:
            below: the privacy of a node somewhere below the one that set this.

        Returns:
            Field name -> what is wrong; empty if `below` is as tight or tighter.
        """
        falling = {name: (getattr(self, name), getattr(below, name)) for name in ("clip_norm", "delta", "max_epsilon")}
        wrong = {
            name: f"may only be tightened: at most {demand:g} as above, but is {value!r}"
            for name, (demand, value) in falling.items()
            if demand is not None and (value is None or value > demand)
        }
        demand, value = self.noise_multiplier, below.noise_multiplier
        if value < demand:
            told = f"may only be tightened: at least {demand:g} as above, but is {value!r}"
            wrong["noise_multiplier"] = told
        return wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class Residuals:
    """Whether a node's (K, V) pair may travel, and whose it takes in.

    Raises:
        FieldError: if a jurisdiction is not a name.
    """

    share: bool = True
    """Whether this node's residuals may leave for other federations."""

    accept_from: tuple[str, ...] | None = None
    """Jurisdictions whose residuals are taken in. None takes any, an empty tuple none."""

    def __post_init__(self) -> None:
        """Check the names."""
        if isinstance(self.accept_from, str):
            refuse({"accept_from": f"must be a list of names, but is {self.accept_from!r}"})
        wrong = [bad_name(name) for name in self.accept_from or ()]
        refuse({"accept_from": next(filter(None, wrong), "")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The line from a node to its parent: what its messages take, in simulated seconds.

    Raises:
        FieldError: naming every field that is out of range.
    """

    bandwidth_mbps: float
    """Megabits (10^6) a second in each direction; above 0."""

    latency_ms: float = 0.0
    """Milliseconds before a message's first byte arrives; at least 0."""

    jitter: float = 0.0
    """How unsteady the line is: in a sub-round it takes exp(jitter * N(0, 1)) times as long; at least 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        refuse(
            {
                "bandwidth_mbps": out_of_range(self.bandwidth_mbps, above=0),
                "latency_ms": out_of_range(self.latency_ms, at_least=0),
                "jitter": out_of_range(self.jitter, at_least=0),
            }
        )

    def seconds(self, num_bytes: float) -> float:
        """Return the seconds that a message of so many bytes takes on a steady line: latency, and bytes / bandwidth."""
        return self.latency_ms / 1000 + num_bytes * 8 / (self.bandwidth_mbps * 1e6)


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimizer:
    """The optimizer that applies a federation's mean pseudo-gradient.

    Raises:
        FieldError: if the class name or an argument's name is not an identifier.
    """

    name: str
    """A class of `torch.optim`, as `SGD`; looked up where it is built, not here."""

    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Its keyword arguments, as `lr`, `momentum`, `nesterov`."""

    def __post_init__(self) -> None:
        """Check the names and keep a copy of the arguments."""
        object.__setattr__(self, "arguments", dict(self.arguments))
        wrong = next((key for key in self.arguments if not key.isidentifier()), None)
        refuse(
            {
                "name": "" if self.name.isidentifier() else f"must be a class of torch.optim, but is {self.name!r}",
                "arguments": "" if wrong is None else f"must have Python names, but has {wrong!r}",
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What holds at a node, after what its ancestors set has come down to it.

    Raises:
        FieldError: naming every field that is out of range.
    """

    num_local_steps: int | None = None
    """Optimizer steps of one fit; at least 0. A node that holds data needs it; a leaf with 0 only listens."""

    batch_size: int | None = None
    """Sequences of one local step; at least 1. None takes the data module's."""

    num_subrounds: int = 1
    """Rounds of this node's federation in one round of its parent's; at least 1."""

    participation: float = 1.0
    """Fraction of the children that take part in a sub-round; above 0, at most 1."""

    sampling: Literal["auto", "fixed", "poisson"] = "auto"
    """How they are drawn: `fixed` draws that fraction, `poisson` each child by itself with that probability, `auto`
    as poisson where a child's uploads are noised, else as fixed."""

    dropout: float = 0.0
    """Probability that what the node would send up in a sub-round does not leave it; at least 0, below 1."""

    deadline_seconds: float | None = None
    """Seconds on its link, download and upload together, after which a child is left out of a sub-round; above 0. None
    waits for all."""

    min_participants: int = 0
    """Uploads of a sub-round, a federation's own fit among them, with fewer of which the run ends; at least 0."""

    max_update_norm: float | None = None
    """Largest L2 norm of what a participant changed, beyond which it is refused; above 0. None sets no limit."""

    outer_optimizer: OuterOptimizer | None = None
    """Applies the mean pseudo-gradient of the children. None leaves it to the callback."""

    privacy: Privacy | None = None
    """Update level: the unit is the node and all below it. Below it may only be tightened."""

    example_privacy: Privacy | None = None
    """Example level: DP-SGD in the fit. Below it may only be tightened."""

    residuals: Residuals = field(default_factory=Residuals)
    """Whether (K, V) pairs may leave, and whose may enter."""

    jurisdiction: str | None = None
    """The name of the law the node is under, as `eu`."""

    link: Link | None = None
    """The line to the parent. None takes no time."""

    optimizer_state: Literal["keep", "reset"] = "keep"
    """Whether the inner optimizer's moments live on between a node's visits."""

    @property
    def is_private(self) -> bool:
        """Whether privacy is asked for, at either level: what would tell of the text beside the model stays at home."""
        return self.privacy is not None or self.example_privacy is not None

    def __post_init__(self) -> None:
        """Check the ranges."""
        state, sampling = self.optimizer_state, self.sampling
        refuse(
            {
                "num_local_steps": out_of_range(self.num_local_steps, at_least=0),
                "batch_size": out_of_range(self.batch_size, at_least=1),
                "num_subrounds": out_of_range(self.num_subrounds, at_least=1),
                "participation": out_of_range(self.participation, above=0, at_most=1),
                "sampling": _one_of(sampling, "auto", "fixed", "poisson"),
                "dropout": out_of_range(self.dropout, at_least=0, below=1),
                "deadline_seconds": out_of_range(self.deadline_seconds, above=0),
                "min_participants": out_of_range(self.min_participants, at_least=0),
                "max_update_norm": out_of_range(self.max_update_norm, above=0),
                "jurisdiction": "" if self.jurisdiction is None else bad_name(self.jurisdiction),
                "optimizer_state": _one_of(state, "keep", "reset"),
            }
        )


def _one_of(value: str, *allowed: str) -> str:
    return "" if value in allowed else f"must be {' or '.join(map(repr, allowed))}, but is {value!r}"
