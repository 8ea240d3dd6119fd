"""Averaging that is robust against a minority of bad participants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from worldlm.callbacks.averaging import Averaging
from worldlm.callbacks.noise import Weighed
from worldlm.federation.messages import Upload
from worldlm.federation.parameters import Part, Tensors
from worldlm.federation.robust import median, norm_bounded_mean, trimmed_mean
from worldlm.rounds import Context
from worldlm.topology.errors import check_choice

Rule = Literal["median", "trimmed_mean", "norm_bound"]


class RobustAveraging(Averaging):
    """Averages like `Averaging`, with a robust rule in place of the weighted mean.

    `median` and `trimmed_mean` work on each coordinate separately and weigh all participants equally, whatever their
    tokens (Yin et al., arXiv 1803.01498). `norm_bound` scales large updates down to a maximum norm and then takes the
    weighted mean (Sun et al., arXiv 1911.07963). No rule needs to identify the bad participants. All require that fewer
    than half are bad, and `trimmed_mean` that `trim` leaves all of them out. They cost less accuracy the better the
    participants agree. Uploads that are not finite or do not fit the model are rejected earlier, by the parent.

    Args:
        rule: `median`, `trimmed_mean` or `norm_bound`.
        trim: For `trimmed_mean`: share of the participants that is left out at each end, rounded down; in [0, 0.5).
            None is 0.2.
        max_norm: For `norm_bound`: largest L2 norm of a participant's update; above 0. None takes the median of the
            participants' norms.
        **kwargs: As for `Averaging`.

    Raises:
        ValueError: If an argument is out of range, or has no effect under the rule.
    """

    def __init__(
        self,
        rule: Rule = "median",
        trim: float | None = None,
        max_norm: float | None = None,
        parts: Sequence[Part] = ("backbone",),
        **kwargs: Any,
    ) -> None:
        super().__init__(parts, **kwargs)
        check_choice("rule", rule, get_args(Rule))
        for name, value, its_rule in (("trim", trim, "trimmed_mean"), ("max_norm", max_norm, "norm_bound")):
            if value is not None and rule != its_rule:
                raise ValueError(f"{name} has no effect with the rule {rule}; it belongs to {its_rule}")
        self.trim = 0.2 if trim is None else trim
        if not 0 <= self.trim < 0.5 or not (max_norm is None or max_norm > 0):
            raise ValueError(f"trim must be in [0, 0.5), got {trim}, and max_norm above 0, got {max_norm}")
        self.rule = rule
        self.max_norm = max_norm

    def mean(self, context: Context, uploads: list[Upload], weighed: Weighed) -> Tensors:
        models = [self._tensors(upload) for upload in uploads]
        if self.rule == "median":
            return median(models)
        if self.rule == "trimmed_mean":
            return trimmed_mean(models, int(self.trim * len(models)))
        return norm_bounded_mean(models, weighed.weights, context.state.parameters, self.max_norm)
