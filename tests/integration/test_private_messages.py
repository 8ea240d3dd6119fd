"""No message reveals more about a private node than its privacy allows, in any world and by any route.

The tests plant a marker at every node with `privacy`: a large step on coordinates that no other node changes. They
search every message that leaves the node for the marker. A message may contain no more of it than clipping and noise
let through, whether it is in an upload, an average, attention, a residual, or the error feedback of compression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tested_family import EMBEDDING
from torch import Tensor

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    Compression,
    ExamplePrivacy,
    ResidualExchange,
    TokenRows,
    UpdatePrivacy,
)
from worldlm.federation.messages import Download, Residual, joined
from worldlm.federation.noise_key import NoiseKey, RandomStream
from worldlm.federation.parameters import PARTS, Tensors, clone, norm, subtract
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

MAX_NODES = 7
"""Largest number of nodes: node i marks the coordinates of each tensor that equal i modulo this number."""
STEP = 30.0
"""How far a marker moves a coordinate from its initial value: 1000 in L2, while clipping allows 0.5 per release."""
MAX_LENGTH = 15.0
"""Largest length of a marker that is allowed outside its node: all releases of a test together, and their noise."""


def _marked(tensor: Tensor, number: int) -> Tensor:
    """Return the coordinates of a node's marker."""
    return tensor.view(-1)[number::MAX_NODES]


class LeakDetector(FederationCallback):
    """Plants markers at private nodes and records every leak in a message; must be listed last."""

    def __init__(self, initial: Mapping[str, Tensor]) -> None:
        self.initial = initial
        self.raw: dict[str, Tensors] = {}  # a node's weights before its upload was sanitised
        self.secrets: list[Tensor] = []
        self.noises: list[Tensor] = []
        self.leaks: list[str] = []
        self.num_seen = 0

    # ------------------------------------------------------------------ planting markers

    def _mark(self, context: Any) -> None:
        if context.node.settings.privacy is not None:
            number = _number(context.node.name)
            for name, tensor in context.state.parameters.items():
                _marked(tensor, number).copy_(_marked(self.initial[name], number) + STEP)
            self.secrets += clone(context.state.parameters).values()

    def on_local_fit_end(self, context: Any) -> None:
        self._mark(context)

    def on_merged(self, context: Any) -> None:
        if context.node.children:
            self._mark(context)

    def on_upload(self, context: Any, upload: Any) -> Any:
        if context.node.settings.privacy is not None:
            self.raw[upload.node] = clone(context.state.parameters)
        return replace(upload, metrics={"loss": 1.0})

    # ------------------------------------------------------------------ sent messages

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        reveals = bool(upload.metrics) or any(bool(counts.any()) for counts in upload.row_counts.values())
        if reveals and context.node.settings.is_private:
            self.leaks.append(f"{upload.node} reveals its text")
        privacy = context.node.settings.privacy
        if privacy is not None and privacy.noise_multiplier > 0 and upload.parts:
            start = {**context.world.reference, **joined(download.parts)}
            deviation = privacy.noise_multiplier * privacy.clip_norm
            self._see_noise(upload.node, joined(upload.parts), start, privacy.clip_norm, deviation)
        return upload

    def _see_noise(self, name: str, sent: Tensors, start: Tensors, clip_norm: float, deviation: float) -> None:
        """Subtract the clipped update from the upload; the rest must be noise that does not depend on the update."""
        update = subtract({key: self.raw[name][key] for key in sent}, start)
        scale = min(1.0, clip_norm / max(norm(update), 1e-9))
        rest = _flat({key: tensor - start[key] - scale * update[key] for key, tensor in sent.items()}) / deviation
        self.noises.append(rest)
        chance = 6 / len(rest) ** 0.5
        if abs(float(rest.std()) - 1) > chance or abs(float(rest.mean())) > chance:
            self.leaks.append(f"{name} has noise of the wrong scale: {float(rest.std()):.3f}")
        if abs(_correlation(rest, _flat(update))) > chance:
            self.leaks.append(f"{name} has noise that depends on its update")

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        tensors = [tensor for each in _models(message) for tensor in each.values()]
        crosses = not isinstance(message, Download) or context.node.settings.privacy is None
        for tensor in tensors if crosses else ():
            if any(tensor.shape == secret.shape and torch.equal(tensor, secret) for secret in self.secrets):
                self.leaks.append(f"{context.node.name} sends an unprotected tensor")
        return message

    # ------------------------------------------------------------------ received messages

    def on_receive(self, context: Any, download: Any) -> None:
        self._inspect(context.world.topology.parent(context.node.name).name, False, download, context)

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        for upload in uploads:
            if context.node.settings.privacy is not None:  # what its children sent may leave it only with its own noise
                self.secrets += clone(joined(upload.parts)).values()
            if upload.node != context.node.name:
                self._inspect(upload.node, True, upload, context)

    def _inspect(self, sender: str, goes_up: bool, message: Any, context: Any) -> None:
        for private in _nodes_left(context.world.topology, sender, goes_up):
            for model in filter(None, _models(message)):
                self.num_seen += 1
                if (length := self.marked(private, model)) > MAX_LENGTH:
                    self.leaks.append(f"{length:.1f} of {private} in a {type(message).__name__} of {sender}")

    def marked(self, name: str, model: Tensors) -> float:
        """Return the L2 length of a node's marker in a model."""
        rest = [_marked(tensor - self.initial[key], _number(name)) for key, tensor in model.items()]
        return abs(float(torch.cat(rest).double().sum())) / sum(map(len, rest)) ** 0.5


def _number(name: str) -> int:
    return int(name[1:])


def _flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in tensors.values()])


def _correlation(left: Tensor, right: Tensor) -> float:
    return float(left @ right / (left.norm() * right.norm()).clamp(min=1e-300))


def _models(message: Any) -> Iterator[Tensors]:
    yield joined(message.parts)
    for residual in message.residuals:
        assert isinstance(residual, Residual)
        yield {**residual.keys, **residual.values}


def _nodes_left(topology: Topology, sender: str, goes_up: bool) -> Iterator[str]:
    """Yield the private nodes that a message leaves: not the sender's ancestors, nor the sender if it sends down."""
    around = {node.name for node in topology.path(sender)} - ({sender} if goes_up else set())
    for node in topology.nodes.values():
        if node.settings.privacy is not None and node.name not in around and node is not topology.root:
            yield node.name


def _method(draw: Callable[..., Any]) -> list[Any]:
    """Draw a method; the order of its callbacks must not matter."""
    attention = draw(st.booleans())
    pieces: list[Any] = [Averaging(parts=("backbone",) if attention else PARTS), UpdatePrivacy()]
    if attention:
        pieces.append(AttentionAggregation(temperature=0.5))
    if attention and draw(st.booleans()):
        pieces.append(ResidualExchange(num_residuals=2))
    if draw(st.booleans()):
        pieces.append(TokenRows(EMBEDDING))
    if draw(st.booleans()):
        pieces.append(Compression(error_feedback=draw(st.booleans())))
    return draw(st.permutations(pieces))


def _initial(make_module: Make) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in make_module(0).named_parameters()}


def _check(data: st.DataObject, topology: Topology, fit: Make, make_module: Make, more: list[Any]) -> None:
    detector = LeakDetector(_initial(make_module))
    fit(topology, [*more, *_method(data.draw), detector], limit_val_batches=0)
    assert detector.leaks == []
    assert not _shares_noise(detector.noises)


def _shares_noise(noises: list[Tensor]) -> bool:
    """Return whether two releases used the same noise, which would cancel in their difference."""
    for left, right in combinations(noises, 2):
        size = min(len(left), len(right))
        if abs(_correlation(left[:size], right[:size])) > 6 / size**0.5:
            return True
    return False


def examples(num: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num, suppress_health_check=quiet, phases=[Phase.generate])


@examples(6)
@given(data=st.data())
def test_no_message_contains_a_marker(data: st.DataObject, worlds: Make, fit: Make, make_module: Make) -> None:
    _check(data, data.draw(worlds()), fit, make_module, [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@examples(400)
@given(data=st.data())
def test_no_message_contains_a_marker_in_many_worlds(
    data: st.DataObject, worlds: Make, fit: Make, make_module: Make
) -> None:
    examples = data.draw(st.booleans())
    more = [ExamplePrivacy()] if examples else []
    _check(data, data.draw(worlds(examples=examples)), fit, make_module, more)


# ---------------------------------------------------------------------- the detector finds leaks


DEEP = """
name: deep
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: n0
  children:
    - name: n1
      settings: {PRIVACY}
      children: [{name: n2, corpus: a}, {name: n3, corpus: b}]
    - {name: n4, corpus: c}
"""


def _deep(privacy: str) -> Topology:
    return parse_topology(DEEP.replace("PRIVACY", privacy), "deep.yaml")


class SkipsResiduals(UpdatePrivacy):
    """Does not sanitise residuals."""

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        return replace(super().on_sanitise(context, upload, download), residuals=upload.residuals)


class SameStream(NoiseKey):
    """Has the same stream for every purpose and all values."""

    def stream(self, *purpose: str | int, values: Any = ()) -> RandomStream:
        return super().stream()


class RepeatsNoise(UpdatePrivacy):
    """Draws the same noise in every round."""

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        context.world.noise_key = SameStream(bytes(32))
        return super().on_sanitise(context, upload, download)


class AddsWeights(FederationCallback):
    """Adds a node's own weights to its upload after sanitising."""

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        half = {
            name: (tensor + download.parts["backbone"][name]) / 2 for name, tensor in context.part("backbone").items()
        }
        return replace(upload, parts={**upload.parts, "backbone": half})


BOUND = "privacy: {clip_norm: 0.5, noise_multiplier: 0.5}"


@pytest.mark.parametrize(
    ("privacy", "pieces", "expected"),
    [
        (BOUND, lambda: [UpdatePrivacy()], ""),
        (BOUND, lambda: [UpdatePrivacy(), Compression()], ""),
        ("privacy: {clip_norm: 1.0e+9}", lambda: [UpdatePrivacy()], "n1 sends an unprotected tensor"),
        ("privacy: {clip_norm: 1.0e+9}", lambda: [UpdatePrivacy(), Compression()], " of n2 in a Upload of n2"),
        (BOUND, lambda: [SkipsResiduals()], "n1 sends an unprotected tensor"),
        (BOUND, lambda: [RepeatsNoise()], "share their noise"),
        (BOUND, lambda: [UpdatePrivacy(), AddsWeights()], "n1 has noise of the wrong scale"),
    ],
    ids=[
        "private",
        "private in int8",
        "no bound",
        "no bound, in int8",
        "residuals not sanitised",
        "noise repeated",
        "weights added after sanitising",
    ],
)
def test_the_detector_finds_leaks(
    privacy: str, pieces: Callable[[], list[Any]], expected: str, fit: Make, make_module: Make
) -> None:
    detector = LeakDetector(_initial(make_module))
    method = [Averaging(), AttentionAggregation(temperature=0.5), ResidualExchange(num_residuals=1), *pieces()]
    fit(_deep(privacy), [*method, detector], limit_val_batches=0)
    leaks = [*detector.leaks, *(["share their noise"] if _shares_noise(detector.noises) else [])]
    assert any(expected in leak for leak in leaks) if expected else leaks == []


@pytest.mark.parametrize(
    ("privacy", "pieces"),
    [
        ("example_privacy: {clip_norm: 0.5, noise_multiplier: 1.0}", lambda: [Averaging(), ExamplePrivacy()]),
        (BOUND, lambda: [UpdatePrivacy()]),  # no part of the model travels
    ],
    ids=["example privacy", "no parts sent"],
)
def test_metrics_of_a_private_node_are_not_sent(
    privacy: str, pieces: Callable[[], list[Any]], fit: Make, make_module: Make
) -> None:
    metrics: dict[str, Any] = {}

    class MetricsRecorder(FederationCallback):
        def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
            if not isinstance(message, Download):
                metrics[message.node] = dict(message.metrics)
            return message

    detector = LeakDetector(_initial(make_module))
    fit(_deep(privacy), [*pieces(), detector, MetricsRecorder()], limit_val_batches=0)
    assert detector.leaks == []
    assert metrics == {"n1": {}, "n2": {}, "n3": {}, "n4": {"loss": 1.0}}
