"""FedAMP: the mixture of each child, compared with a computation by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tested_family import EMBEDDING
from torch import Tensor

from worldlm.callbacks import FedAMP, UpdatePrivacy
from worldlm.federation.parameters import PARTS, clone
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class MessageRecorder(FederationCallback):
    """Records messages; keeps some nodes from taking part in some rounds."""

    def __init__(self, absent: str = "", rounds: tuple[int, ...] = ()) -> None:
        self.absent, self.rounds = absent, rounds
        self.down: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.up: dict[tuple[int, str], dict[str, Tensor]] = {}
        self.tokens: dict[tuple[int, str], int] = {}

    def participates(self, context: Any) -> bool:
        return not (context.round in self.rounds and context.node.name in self.absent)

    def on_receive(self, context: Any, download: Any) -> None:
        tensors = {name: tensor for part in download.parts.values() for name, tensor in part.items()}
        self.down[context.round, context.node.name] = clone(tensors)
        assert all(torch.equal(context.state.parameters[name], tensor) for name, tensor in tensors.items())

    def on_aggregate(self, context: Any, uploads: list[Any]) -> None:
        for upload in uploads:
            tensors = {name: tensor for part in upload.parts.values() for name, tensor in part.items()}
            self.up[context.round, upload.node] = clone(tensors)
            self.tokens[context.round, upload.node] = upload.num_tokens


def mixture(models: dict[str, dict[str, Tensor]], child: str, self_weight: float, sigma: float) -> dict[str, Tensor]:
    def square(left: str, right: str) -> float:
        return sum(float((models[left][name] - models[right][name]).double().square().sum()) for name in models[left])

    names = sorted(models)
    pairs = [square(left, right) for i, left in enumerate(names) for right in names[i + 1 :]]
    mean = sum(pairs) / len(pairs)
    near = {name: math.exp(-square(child, name) / mean / sigma) for name in names if name != child}
    xi = {name: (1 - self_weight) * value / sum(near.values()) for name, value in near.items()} | {child: self_weight}
    return {key: torch.stack([xi[name] * models[name][key] for name in names]).sum(0) for key in models[child]}


def assert_models(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6)


def test_every_child_gets_its_own_mixture(star: Make, fit: Make, make_module: Make, recorder: Any) -> None:
    messages = MessageRecorder()
    trainer = fit(star("abc"), [FedAMP(self_weight=0.4, sigma=0.3), messages], logger=recorder)
    start = {name: value.detach() for name, value in make_module().named_parameters()}
    models = {name: messages.up[0, name] for name in "abc"}
    for name in "abc":
        assert_models(messages.down[0, name], start)
        assert messages.down[1, name].keys() == start.keys()
        assert_models(messages.down[1, name], mixture(models, name, 0.4, 0.3))
    assert not torch.equal(*(messages.down[1, name][EMBEDDING] for name in "ab"))
    assert sum(recorder.last(f"a/mixture/{other}") for other in "abc") == pytest.approx(1.0)
    assert recorder.last("a/mixture/a") == 0.4
    total = 2 * sum(4 * value.numel() for value in start.values())
    states = trainer.world.states
    traffic = {name: (state.bytes_down, state.bytes_up) for name, state in states.items()}
    assert traffic == {"world": (0, 0)} | dict.fromkeys("abc", (total, total))


def test_the_federations_own_model_is_the_mean_by_tokens(star: Make, fit: Make) -> None:
    messages = MessageRecorder()
    states = fit(star("ab", b="settings: {batch_size: 6}"), [FedAMP(), messages], max_epochs=1).world.states
    a, b = messages.up[0, "a"], messages.up[0, "b"]
    assert_models(states["world"].parameters, {name: 0.25 * a[name] + 0.75 * b[name] for name in a})


def test_absent_children_keep_their_last_upload_and_new_ones_get_the_mean(star: Make, fit: Make) -> None:
    messages = MessageRecorder(absent="c", rounds=(0,))
    fit(star("abc"), [FedAMP(self_weight=0.4, sigma=0.3), messages], max_epochs=2)
    assert (0, "c") not in messages.up
    a, b = messages.up[0, "a"], messages.up[0, "b"]
    assert_models(messages.down[1, "c"], {name: (a[name] + b[name]) / 2 for name in a})

    messages = MessageRecorder(absent="c", rounds=(1,))
    fit(star("abc"), [FedAMP(self_weight=0.4, sigma=0.3), messages], max_epochs=3)
    models = {"a": messages.up[1, "a"], "b": messages.up[1, "b"], "c": messages.up[0, "c"]}
    for name in "abc":
        assert_models(messages.down[2, name], mixture(models, name, 0.4, 0.3))


def test_a_private_update_is_relative_to_the_mixture(star: Make, fit: Make, recorder: Any) -> None:
    settings = "privacy: {clip_norm: 0.25, noise_multiplier: 0.0}"
    messages = MessageRecorder()
    fit(star("abc", settings), [FedAMP(), UpdatePrivacy(), messages], logger=recorder)
    for name in "abc":
        update = [messages.up[1, name][key] - messages.down[1, name][key] for key in messages.up[1, name]]
        assert recorder.last(f"{name}/update_clipped") == 1.0
        assert float(torch.cat([tensor.flatten() for tensor in update]).norm()) == pytest.approx(0.25, rel=1e-4)


def test_more_levels_are_rejected(tree: Topology, fit: Make) -> None:
    with pytest.raises(ValueError, match=r"^FedAMP needs a star \(a root and its leaves\), but tree has 3 levels$"):
        fit(tree, [FedAMP(), UpdatePrivacy()])


def test_all_parts_travel() -> None:
    assert FedAMP().parts == frozenset(PARTS)
