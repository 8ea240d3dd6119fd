"""What a federation is told about models that it cannot measure itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from worldlm.callbacks import NodeMetrics, Record
from worldlm.federation.messages import Download, Upload, joined
from worldlm.monitoring.organisation_scores import OrganisationScores
from worldlm.organisations.organisation import Organisation
from worldlm.rounds import Context
from worldlm.topology import parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

THREE_LEVELS = """
name: three
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: north
      corpus: n
      children:
        - {name: a, corpus: a}
        - {name: b, corpus: b}
    - {name: c, corpus: c}
    - {name: d, corpus: d, settings: {privacy: {noise_multiplier: 1.0, clip_norm: 1.0}}}
"""


class Keep(FederationCallback):
    """Keeps the model that each node received in the last round."""

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Any]] = {}

    def on_receive(self, context: Context, download: Download) -> None:
        own = {name: value.clone() for name, value in context.state.parameters.items()}
        self.models[context.node.name] = {**own, **{n: value.clone() for n, value in joined(download.parts).items()}}


@pytest.fixture
def told(at_home: Make, fit: Make, whole_method: Make, make_module: Make) -> dict[str, dict[str, Any]]:
    """What each node is told and measures, by node."""

    def job(organisation: Organisation, folder: Path) -> dict[str, Any]:
        scores = OrganisationScores()
        callbacks = [*whole_method(), scores, Record()]
        options = {"organisation": organisation, "default_root_dir": folder}
        trainer = fit(parse_topology(THREE_LEVELS, "three.yaml"), callbacks, module=make_module(), **options)
        (results,) = folder.rglob("results.json")
        return {
            "reported": dict(scores.reported),
            "received": scores.received(trainer.topology.nodes[organisation.node]),
            "results": json.loads(results.read_text())["rounds"][-1]["nodes"],
            "state": scores.state_dict(),
        }

    return at_home(parse_topology(THREE_LEVELS, "three.yaml"), job)  # type: ignore[no-any-return]


def test_children_report_unless_they_are_private(
    told: dict[str, dict[str, Any]], fit: Make, whole_method: Make, make_module: Make
) -> None:
    keep = Keep()
    topology = parse_topology(THREE_LEVELS, "three.yaml")
    whole = fit(topology, [keep, *whole_method()], module=make_module())  # `keep` first: before anything is merged
    metrics, module = whole.find_callback(NodeMetrics), whole.lightning_module
    loaders = whole.fit_loop.val_loaders()
    limits = dict(zip(loaders, whole.num_val_batches, strict=True))
    measured = {}
    for name in ("a", "b", "c", "north"):
        for key, parameter in module.named_parameters():
            parameter.data = keep.models[name][key]
        assert math.isinf(limits[name]) or limits[name] > 0
        measured[name] = math.exp(module.evaluate(loaders[name]).nats)

    for name in ("a", "b", "c"):
        parent = "world" if name == "c" else "north"
        reported = told[parent]["reported"][name]
        scores = metrics.scores(whole.world.states[name])
        assert reported["received"] == pytest.approx(measured[name], rel=1e-6)
        assert reported["received"] == told[name]["received"]
        assert {k: v for k, v in reported.items() if k != "received"} == {k: s.perplexity for k, s in scores.items()}
    # a federation passes on the mean over itself and those below it
    of_north = math.prod(measured[name] for name in ("a", "b", "north")) ** (1 / 3)
    assert told["north"]["received"] == pytest.approx(of_north, rel=1e-6)
    assert told["world"]["reported"]["north"]["received"] == told["north"]["received"]
    # in the mean of the world, north counts for three nodes
    assert told["world"]["received"] == pytest.approx((of_north**3 * measured["c"]) ** (1 / 4), rel=1e-6)
    # a private node knows its own figures, and reports nothing
    assert set(told["world"]["reported"]) == {"north", "c"}
    assert told["d"]["received"] > 1.0

    results = told["world"]["results"]
    assert results["world"]["received"]["perplexity"] == told["world"]["received"]
    assert results["c"]["received"]["perplexity"] == told["c"]["received"]
    assert results["c"]["after_fit"]["perplexity"] == told["world"]["reported"]["c"]["after_fit"]
    assert results["d"] == {}

    again = OrganisationScores()
    again.load_state_dict(told["north"]["state"])
    assert again.reported == told["north"]["reported"]
    assert again.received(topology.nodes["north"]) == told["north"]["received"]


def test_figures_of_a_child_that_is_absent_are_dropped() -> None:
    node = parse_topology(THREE_LEVELS, "three.yaml").root
    scores, context = OrganisationScores(), cast(Context, SimpleNamespace(node=node, log=lambda figures: None))
    scores._trainer = cast(Any, SimpleNamespace(fit_loop=SimpleNamespace(evaluates=True)))

    def upload(name: str) -> Upload:
        return Upload(node=name, round=0, parts={}, num_tokens=1, metrics={"received": 5.0})

    scores.after_aggregate(context, [upload("c"), upload("north")])
    assert set(scores.reported) == {"c", "north"}
    scores.after_aggregate(context, [upload("north")])
    assert set(scores.reported) == {"north"}


def test_impossible_figures_are_ignored() -> None:
    node = parse_topology(THREE_LEVELS, "three.yaml").root
    scores, context = OrganisationScores(), cast(Context, SimpleNamespace(node=node, log=lambda figures: None))
    for value in (math.nan, math.inf, 0.0, -1.0):
        upload = Upload(node="c", round=0, parts={}, num_tokens=1, metrics={"received": value, "after_fit": value})
        scores.after_aggregate(context, [upload])
    assert scores.reported == {}
    assert math.isnan(scores.received(node))
