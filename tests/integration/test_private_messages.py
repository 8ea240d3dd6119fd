"""No message tells more of a private node than its privacy allows, in whatever world, by whatever way.

Every node with `privacy` learns a mark that nobody else can: a long step on coordinates of its own. What crosses the
node's border may hold of it what clipping and noise let through, and no more, whether it left with an upload, an
average, attention, a residual, or with what compression owed.
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
from worldlm.federation.parameters import PARTS, Tensors, clone, norm, subtract
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

EVERY = 7
"""Nodes of a world, at most: of every tensor, each marks the coordinates that are its own modulo this."""
STEP = 30.0
"""How far a mark moves a coordinate from its start: 1000 in L2, where clipping lets through 0.5 a release."""
MOST = 15.0
"""What may be found of a mark outside of its node: all releases of a test together, and their noise."""


def _mine(tensor: Tensor, number: int) -> Tensor:
    """Return the coordinates of a node's mark."""
    return tensor.view(-1)[number::EVERY]


class Customs(FederationCallback):
    """Marks private nodes; stands at every border, last in the list, and remembers what should not have passed."""

    def __init__(self, initial: Mapping[str, Tensor]) -> None:
        self.initial = initial
        self.raw: dict[str, Tensors] = {}  # what a node held before its upload was made safe
        self.secrets: list[Tensor] = []
        self.noises: list[Tensor] = []
        self.leaks: list[str] = []
        self.num_seen = 0

    # ------------------------------------------------------------------ what must not leave

    def _mark(self, context: Any) -> None:
        if context.node.settings.privacy is not None:
            number = _number(context.node.name)
            for name, tensor in context.state.parameters.items():
                _mine(tensor, number).copy_(_mine(self.initial[name], number) + STEP)
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

    # ------------------------------------------------------------------ what leaves

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        told = bool(upload.metrics) or any(bool(counts.any()) for counts in upload.row_counts.values())
        if told and context.node.settings.is_private:
            self.leaks.append(f"{upload.node} tells of its text")
        privacy = context.node.settings.privacy
        if privacy is not None and privacy.noise_multiplier > 0 and upload.parts:
            start = {**context.world.reference, **joined(download.parts)}
            deviation = privacy.noise_multiplier * privacy.clip_norm
            self._see_noise(upload.node, joined(upload.parts), start, privacy.clip_norm, deviation)
        return upload

    def _see_noise(self, name: str, sent: Tensors, start: Tensors, clip_norm: float, deviation: float) -> None:
        """Take off what clipping leaves of the update: the rest must be noise that is blind to it."""
        update = subtract({one: self.raw[name][one] for one in sent}, start)
        scale = min(1.0, clip_norm / max(norm(update), 1e-9))
        rest = _flat({one: tensor - start[one] - scale * update[one] for one, tensor in sent.items()}) / deviation
        self.noises.append(rest)
        chance = 6 / len(rest) ** 0.5
        if abs(float(rest.std()) - 1) > chance or abs(float(rest.mean())) > chance:
            self.leaks.append(f"{name} has noise of another kind: {float(rest.std()):.3f}")
        if abs(_correlation(rest, _flat(update))) > chance:
            self.leaks.append(f"{name} has noise that knows its update")

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        tensors = [tensor for each in _models(message) for tensor in each.values()]
        crosses = not isinstance(message, Download) or context.node.settings.privacy is None
        for tensor in tensors if crosses else ():
            if any(tensor.shape == one.shape and torch.equal(tensor, one) for one in self.secrets):
                self.leaks.append(f"{context.node.name} sends a tensor as it is")
        return message

    # ------------------------------------------------------------------ what arrives

    def on_receive(self, context: Any, download: Any) -> None:
        self._inspect(context.world.topology.parent(context.node.name).name, False, download, context)

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        for upload in uploads:
            if upload.node != context.node.name:
                self._inspect(upload.node, True, upload, context)

    def _inspect(self, sender: str, goes_up: bool, message: Any, context: Any) -> None:
        for private in _borders(context.world.topology, sender, goes_up):
            for model in filter(None, _models(message)):
                self.num_seen += 1
                if (found := self.marked(private, model)) > MOST:
                    self.leaks.append(f"{found:.1f} of {private} in a {type(message).__name__} of {sender}")

    def marked(self, name: str, model: Tensors) -> float:
        """Return the length of a node's mark in a model, in L2, along the mark."""
        rest = [_mine(tensor - self.initial[one], _number(name)) for one, tensor in model.items()]
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


def _borders(topology: Topology, sender: str, goes_up: bool) -> Iterator[str]:
    """Name the private nodes whose border a message crosses: all but those that the sender is below, or is."""
    around = {node.name for node in topology.path(sender)} - ({sender} if goes_up else set())
    for node in topology.nodes.values():
        if node.settings.privacy is not None and node.name not in around and node is not topology.root:
            yield node.name


def _method(draw: Callable[..., Any]) -> list[Any]:
    """Draw a method; the order of its pieces must not matter."""
    attention = draw(st.booleans())
    pieces: list[Any] = [Averaging(parts=("backbone",) if attention else PARTS), UpdatePrivacy()]
    if attention:
        pieces.append(AttentionAggregation(temperature=0.5, query=draw(st.sampled_from(["own", "mean"]))))
    if attention and draw(st.booleans()):
        pieces.append(ResidualExchange(num_residuals=2, min_similarity=-2.0))
    if draw(st.booleans()):
        pieces.append(TokenRows("wte.weight"))
    if draw(st.booleans()):
        pieces.append(Compression(error_feedback=draw(st.booleans())))
    return draw(st.permutations(pieces))


def _initial(make_module: Make) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in make_module(0).named_parameters()}


def _check(data: st.DataObject, topology: Topology, fit: Make, make_module: Make, more: list[Any]) -> None:
    customs = Customs(_initial(make_module))
    fit(topology, [*more, *_method(data.draw), customs], limit_val_batches=0)
    assert customs.leaks == []
    assert not _shares_noise(customs.noises)


def _shares_noise(noises: list[Tensor]) -> bool:
    """Whether two releases of one world were hidden by the same noise, which their difference would be without."""
    for left, right in combinations(noises, 2):
        size = min(len(left), len(right))
        if abs(_correlation(left[:size], right[:size])) > 6 / size**0.5:
            return True
    return False


def few(num: int) -> Any:
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=num, suppress_health_check=quiet, phases=[Phase.generate])


@few(6)
@given(data=st.data())
def test_nothing_private_crosses_a_border(data: st.DataObject, worlds: Make, fit: Make, make_module: Make) -> None:
    _check(data, data.draw(worlds()), fit, make_module, [])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@few(400)
@given(data=st.data())
def test_nothing_private_crosses_a_border_in_many_worlds(
    data: st.DataObject, worlds: Make, fit: Make, make_module: Make
) -> None:
    examples = data.draw(st.booleans())
    more = [ExamplePrivacy()] if examples else []
    _check(data, data.draw(worlds(examples=examples)), fit, make_module, more)


# ---------------------------------------------------------------------- that the customs see what they should


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


class Forgets(UpdatePrivacy):
    """Leaves residuals as their origin made them."""

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        return replace(super().on_sanitise(context, upload, download), residuals=upload.residuals)


class Repeats(UpdatePrivacy):
    """Draws the same noise in every round."""

    def _release(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._release(replace(context, round=0), *args, **kwargs)


class Late(FederationCallback):
    """Puts a node's own tensors back into its upload, after all sanitising."""

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        half = {
            name: (tensor + download.parts["backbone"][name]) / 2 for name, tensor in context.part("backbone").items()
        }
        return replace(upload, parts={**upload.parts, "backbone": half})


BOUND = "privacy: {clip_norm: 0.5, noise_multiplier: 0.5}"


@pytest.mark.parametrize(
    ("privacy", "pieces", "told"),
    [
        (BOUND, lambda: [UpdatePrivacy()], ""),
        (BOUND, lambda: [UpdatePrivacy(), Compression()], ""),
        ("privacy: {clip_norm: 1.0e+9}", lambda: [UpdatePrivacy()], "n1 sends a tensor as it is"),
        ("privacy: {clip_norm: 1.0e+9}", lambda: [UpdatePrivacy(), Compression()], " of n2 in a Upload of n2"),
        (BOUND, lambda: [Forgets()], " of n1 in a Upload of n1"),
        (BOUND, lambda: [Repeats()], "share their noise"),
        (BOUND, lambda: [UpdatePrivacy(), Late()], "n1 has noise of another kind"),
    ],
    ids=[
        "kept",
        "kept in int8",
        "not bound",
        "not bound, in int8",
        "residuals forgotten",
        "noise repeated",
        "added late",
    ],
)
def test_what_would_be_found(
    privacy: str, pieces: Callable[[], list[Any]], told: str, fit: Make, make_module: Make
) -> None:
    customs = Customs(_initial(make_module))
    method = [Averaging(), AttentionAggregation(temperature=0.5), ResidualExchange(min_similarity=-2.0), *pieces()]
    fit(_deep(privacy), [*method, customs], limit_val_batches=0)
    found = [*customs.leaks, *(["share their noise"] if _shares_noise(customs.noises) else [])]
    assert any(told in leak for leak in found) if told else found == []


@pytest.mark.parametrize(
    ("privacy", "pieces"),
    [
        ("example_privacy: {clip_norm: 0.5, noise_multiplier: 1.0}", lambda: [Averaging(), ExamplePrivacy()]),
        (BOUND, lambda: [UpdatePrivacy()]),  # no part of the model travels
    ],
    ids=["in examples", "nothing travels"],
)
def test_figures_of_a_private_node_stay_at_home(
    privacy: str, pieces: Callable[[], list[Any]], fit: Make, make_module: Make
) -> None:
    told: dict[str, Any] = {}

    class Look(FederationCallback):
        def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
            if not isinstance(message, Download):
                told[message.node] = dict(message.metrics)
            return message

    customs = Customs(_initial(make_module))
    fit(_deep(privacy), [*pieces(), customs, Look()], limit_val_batches=0)
    assert customs.leaks == []
    assert told == {"n1": {}, "n2": {}, "n3": {}, "n4": {"loss": 1.0}}
