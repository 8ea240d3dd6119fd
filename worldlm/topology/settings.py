"""The settings of a node or federation: steps, optimizer, privacy, residuals, jurisdiction, link."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worldlm.topology.checks import bad_name, out_of_range, raise_mistakes

FOR_CHILDREN = (
    "num_subrounds",
    "participation",
    "sampling",
    "deadline_seconds",
    "min_participants",
    "max_update_norm",
    "outer_optimizer",
)
"""Settings for a node's children, which have no effect at a leaf."""


KINDS_OF_PRIVACY = ("privacy", "example_privacy")
"""Settings that enable differential privacy of updates and of examples. A descendant may only tighten them."""


MIN_NOISE_MULTIPLIER = 0.001
"""The smallest noise that can be drawn; its epsilon is in the hundreds of thousands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Privacy:
    """Differential privacy: clipping to a norm, Gaussian noise, and a limit on the budget.

    Raises:
        FieldError: (a ValueError) naming every field that is out of range.
    """

    clip_norm: float
    """Largest L2 norm that is not scaled down; above 0."""

    noise_multiplier: float = 0.0
    """Standard deviation of the noise divided by `clip_norm`; 0, which only clips, or at least 0.001."""

    delta: float = 1e-5
    """The delta at which epsilon is computed; between 0 and 1, both excluded."""

    max_epsilon: float | None = None
    """Participation ends before epsilon would exceed this; above 0. None sets no limit."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        max_epsilon = out_of_range(self.max_epsilon, above=0)
        if self.max_epsilon is not None and self.noise_multiplier == 0:
            max_epsilon = max_epsilon or "needs a noise_multiplier above 0, but it is 0"
        raise_mistakes(
            {
                "clip_norm": out_of_range(self.clip_norm, above=0),
                "noise_multiplier": _noise_problem(self.noise_multiplier),
                "delta": out_of_range(self.delta, above=0, below=1),
                "max_epsilon": max_epsilon,
            }
        )

    def loosened_by(self, below: Privacy) -> dict[str, str]:
        """Return the fields in which a descendant's privacy is weaker than this.

        Args:
            below: the privacy of a descendant of the node that has this setting.

        Returns:
            Field name -> the problem; empty if `below` is as tight or tighter.
        """
        falling = {name: (getattr(self, name), getattr(below, name)) for name in ("clip_norm", "delta", "max_epsilon")}
        problems = {
            name: f"may only be tightened: at most {demand:g} as above, but is {value!r}"
            for name, (demand, value) in falling.items()
            if demand is not None and (value is None or value > demand)
        }
        demand, value = self.noise_multiplier, below.noise_multiplier
        if value < demand:
            problems["noise_multiplier"] = f"may only be tightened: at least {demand:g} as above, but is {value!r}"
        return problems


UNITS = ("block", "document", "person")
"""Units of example-level privacy; each contains the ones before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyOfExamples(Privacy):
    """Differential privacy of a node's training text.

    Raises:
        FieldError: (a ValueError) naming every field that is out of range.
    """

    unit: Literal["block", "document", "person"] = "block"
    """What is protected: `block`, a piece of text as long as the model's input; `document`, a whole document; `person`,
    all documents of a person, whom the corpus names (`person`)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super(PrivacyOfExamples, self).__post_init__()
        raise_mistakes({"unit": _one_of(self.unit, *UNITS)})

    def loosened_by(self, below: Privacy) -> dict[str, str]:
        """Return the fields in which a descendant's privacy is weaker than this; see `Privacy.loosened_by`."""
        problems = super(PrivacyOfExamples, self).loosened_by(below)
        unit = getattr(below, "unit", UNITS[0])
        if UNITS.index(unit) < UNITS.index(self.unit):
            problems["unit"] = f"may only be tightened: {' or '.join(UNITS[UNITS.index(self.unit) :])}, but is {unit!r}"
        return problems


@dataclass(frozen=True, kw_only=True, slots=True)
class Residuals:
    """Whether a node shares its residuals, the (K, V) pair, and of whose residuals it accepts mixtures.

    Raises:
        FieldError: if a jurisdiction is not a name.
    """

    share: bool = True
    """Whether this node's layers, and residuals from below it, may climb towards the root."""

    accept_from: tuple[str, ...] | None = None
    """Jurisdictions whose residuals may be part of a mixture that reaches this node. None accepts all, an empty tuple
    none. The node's ancestors apply this: the node cannot see what is in a mixture."""

    def __post_init__(self) -> None:
        """Check the names."""
        if isinstance(self.accept_from, str):
            raise_mistakes({"accept_from": f"must be a list of names, but is {self.accept_from!r}"})
        problems = [bad_name(name) for name in self.accept_from or ()]
        raise_mistakes({"accept_from": next(filter(None, problems), "")})


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """The link from a node to its parent, which sets how long messages take, in simulated seconds.

    Raises:
        FieldError: naming every field that is out of range.
    """

    bandwidth_mbps: float
    """Megabits (10^6) per second in each direction; above 0."""

    latency_ms: float = 0.0
    """Milliseconds before a message's first byte arrives; at least 0."""

    jitter: float = 0.0
    """Variation of the time: messages of a sub-round take exp(jitter * N(0, 1)) times as long; at least 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        raise_mistakes(
            {
                "bandwidth_mbps": out_of_range(self.bandwidth_mbps, above=0),
                "latency_ms": out_of_range(self.latency_ms, at_least=0),
                "jitter": out_of_range(self.jitter, at_least=0),
            }
        )

    def seconds(self, num_bytes: float) -> float:
        """Return the seconds that a message takes without jitter: latency + bytes / bandwidth."""
        return self.latency_ms / 1000 + num_bytes * 8 / (self.bandwidth_mbps * 1e6)


@dataclass(frozen=True, kw_only=True, slots=True)
class OuterOptimizer:
    """The optimizer that applies the mean pseudo-gradient of a federation.

    Raises:
        FieldError: if the class name or an argument's name is not an identifier.
    """

    name: str
    """A class of `torch.optim`, such as `SGD`; it is looked up when the optimizer is built."""

    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Its keyword arguments, such as `lr`, `momentum`, `nesterov`."""

    def __post_init__(self) -> None:
        """Check the names and copy the arguments."""
        object.__setattr__(self, "arguments", dict(self.arguments))
        invalid = next((key for key in self.arguments if not key.isidentifier()), None)
        raise_mistakes(
            {
                "name": "" if self.name.isidentifier() else f"must be a class of torch.optim, but is {self.name!r}",
                "arguments": "" if invalid is None else f"must have Python names, but has {invalid!r}",
            }
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The settings of a node, with those inherited from its ancestors.

    Raises:
        FieldError: naming every field that is out of range.
    """

    num_local_steps: int | None = None
    """Optimizer steps per fit; at least 0. Required at a node that holds data; a leaf with 0 only listens."""

    batch_size: int | None = None
    """Sequences per local step; at least 1. None takes the batch size of the data module."""

    num_subrounds: int = 1
    """Rounds of this node's federation per round of its parent's federation; at least 1."""

    participation: float = 1.0
    """Fraction of the children that take part in a sub-round; above 0, at most 1."""

    sampling: Literal["auto", "fixed", "poisson"] = "auto"
    """How the participants are drawn. `fixed` draws that fraction. `poisson` draws each child independently with that
    probability. `auto` is poisson if noise is added to a child's uploads, else fixed."""

    dropout: float = 0.0
    """Probability that the node's upload of a sub-round is not sent; at least 0, below 1."""

    deadline_seconds: float | None = None
    """Seconds for a child's download and upload together; a slower child is left out of the sub-round; above 0. None
    waits for all."""

    min_participants: int = 0
    """Least number of uploads per sub-round, the node's own fit included; with fewer, the run ends; at least 0."""

    max_update_norm: float | None = None
    """Largest L2 norm of a participant's update; a larger update is rejected; above 0. None sets no limit."""

    outer_optimizer: OuterOptimizer | None = None
    """Applies the mean pseudo-gradient of the children. None leaves the choice to the callback."""

    privacy: Privacy | None = None
    """Update-level DP: the unit is the node with all its descendants. They may only tighten it."""

    example_privacy: PrivacyOfExamples | None = None
    """Example-level DP: DP-SGD in the fit. Descendants may only tighten it."""

    residuals: Residuals = field(default_factory=Residuals)
    """Whether (K, V) pairs are shared, and of whom they are accepted."""

    jurisdiction: str | None = None
    """The name of the jurisdiction of the node, such as `eu`."""

    link: Link | None = None
    """The link to the parent. With None, messages take no time."""

    optimizer_state: Literal["keep", "reset"] = "keep"
    """Whether the inner optimizer's state is kept between the fits of a node."""

    @property
    def is_private(self) -> bool:
        """Whether either level of privacy is enabled. If so, the node sends nothing about its text but the model."""
        return self.privacy is not None or self.example_privacy is not None

    def __post_init__(self) -> None:
        """Check the ranges."""
        state, sampling = self.optimizer_state, self.sampling
        raise_mistakes(
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
                "example_privacy": _kind_problem(self.example_privacy),
                "jurisdiction": "" if self.jurisdiction is None else bad_name(self.jurisdiction),
                "optimizer_state": _one_of(state, "keep", "reset"),
            }
        )


def _kind_problem(privacy: object) -> str:
    return "" if isinstance(privacy, PrivacyOfExamples | None) else f"must be a PrivacyOfExamples, but is {privacy!r}"


def _noise_problem(value: float) -> str:
    """Return why a noise multiplier is not allowed; noise below 0.001 is too small for the grid that it is drawn on."""
    if value == 0:
        return ""
    return out_of_range(value, at_least=0) or out_of_range(value, at_least=MIN_NOISE_MULTIPLIER)


def _one_of(value: str, *allowed: str) -> str:
    return "" if value in allowed else f"must be {' or '.join(map(repr, allowed))}, but is {value!r}"
