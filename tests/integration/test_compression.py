"""Compressed messages are small, arrive with one rounding, and can be serialized on the way."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from safetensors.torch import load, save

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    Compression,
    FedAMP,
    Proximal,
    ResidualExchange,
    TokenRows,
    UpdatePrivacy,
)
from worldlm.federation.compression import BLOCK
from worldlm.federation.messages import Download, Residual, Upload, message_state
from worldlm.federation.parameters import PARTS, clone
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
VALUES = {"none": 4, "bf16": 2, "int8": 1}


def everything(*more: Callback) -> list[Callback]:
    """Every callback that adds something to a message."""
    attention = AttentionAggregation(temperature=0.5)
    exchange = ResidualExchange(num_residuals=1)
    return [Averaging(download_rate=0.5), TokenRows(), attention, exchange, UpdatePrivacy(), *more]


def flat(parts: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


class EndpointRecorder(FederationCallback):
    """Listed before `Compression`: records messages before they are packed and after they are unpacked."""

    def __init__(self) -> None:
        self.meant: list[tuple[str, Any]] = []
        self.arrived: list[tuple[str, Any]] = []

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        self.meant.append((receiver.name, _copied(message)))
        return message

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        self.arrived.append((context.node.name, _copied(message)))
        return message

    def uploads(self, log: list[tuple[str, Any]], node: str) -> list[dict[str, torch.Tensor]]:
        return [flat(message.parts) for _, message in log if isinstance(message, Upload) and message.node == node]

    def downloads(self, log: list[tuple[str, Any]], node: str) -> list[dict[str, torch.Tensor]]:
        return [flat(message.parts) for name, message in log if not isinstance(message, Upload) and name == node]


def _copied(message: Any) -> Any:
    return replace(message, parts={part: clone(tensors) for part, tensors in message.parts.items()})


PAIR = ("keys", "values", "row_shares")
BY_ROW = ("row_counts", "row_shares", "own_row_weights")
"""Fields of messages with one number for each row."""


class Serializer(FederationCallback):
    """Listed after `Compression`: writes every message to bytes and JSON, and reads it back."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.bytes = 0

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        self.messages.append(message)
        tensors = {f"{part}:{name}": tensor for part in message.parts for name, tensor in message.parts[part].items()}
        state = message_state(message)
        by_row = [name for name in BY_ROW if name in state]
        plain: dict[str, Any] = {name: value for name, value in state.items() if name not in ("parts", *by_row)}
        plain |= {"parts": list(message.parts), "residuals": []}
        for i, residual in enumerate(message.residuals):
            tensors |= {f"{i}:keys:{name}": tensor for name, tensor in residual.keys.items()}
            tensors |= {f"{i}:values:{name}": tensor for name, tensor in residual.values.items()}
            tensors |= {f"{i}:row_shares:{name}": tensor for name, tensor in residual.row_shares.items()}
            plain["residuals"].append(
                {name: value for name, value in message_state(residual).items() if name not in PAIR}
            )
        for field in by_row:
            tensors |= {f"{field}:{name}": tensor for name, tensor in state[field].items()}
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        return _read(type(message), data, json.dumps(plain))


def _read(kind: Any, tensors: bytes, plain: str) -> Any:
    loaded, options = load(tensors), json.loads(plain)

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in loaded.items() if name.startswith(prefix)}

    options["parts"] = {part: under(f"{part}:") for part in options["parts"]}
    fields = ("row_counts",) if kind is Upload else ("row_shares", "own_row_weights")
    options |= {field: under(f"{field}:") for field in fields}
    options["residuals"] = tuple(
        Residual(**{field: under(f"{i}:{field}:") for field in PAIR}, **residual)
        for i, residual in enumerate(options["residuals"])
    )
    return kind(**options)


# ---------------------------------------------------------------------- sending


def test_none_in_both_directions_changes_nothing(
    busy_tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    plain, none = (snapshot(fit(busy_tree, everything(*more))) for more in ((), (Compression("none", "none"),)))
    none["callbacks"].pop("Compression")
    assert differences(none, plain) == []


@pytest.mark.parametrize(("down", "up"), [("bf16", "int8"), ("int8", "bf16"), ("none", "int8"), ("int8", "none")])
def test_bytes_are_counted_after_encoding(down: Any, up: Any, star: Make, fit: Make, make_module: Make) -> None:
    def payload(encoding: str) -> int:
        sizes = [value.numel() for value in make_module().parameters()]
        scales = sum(4 * -(-size // BLOCK) for size in sizes) if encoding == "int8" else 0
        return VALUES[encoding] * sum(sizes) + scales

    trainer = fit(star("abc", "num_subrounds: 2"), [Averaging(parts=PARTS), Compression(down, up)])
    traffic = {name: (state.bytes_down, state.bytes_up) for name, state in trainer.world.states.items()}
    each = (4 * payload(down), 4 * payload(up))
    assert traffic == {"world": (0, 0), "a": each, "b": each, "c": each}


@pytest.mark.parametrize("error_feedback", [True, False])
def test_serialized_messages_give_the_same_result(
    error_feedback: bool, busy_tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    """Serializing each message and reading it back changes nothing; weights, residuals and counts are sent."""
    serializer = Serializer()
    plain, written = (
        fit(busy_tree, everything(Compression(error_feedback=error_feedback), *more), max_epochs=3)
        for more in ((), (serializer,))
    )
    assert differences(snapshot(written)["world"], snapshot(plain)["world"]) == []
    assert serializer.bytes == sum(state.bytes_down + state.bytes_up for state in written.world.states.values())
    for message in serializer.messages:
        residuals = [part for residual in message.residuals for part in (residual.keys, residual.values)]
        packed = [item for part in (*message.parts.values(), *residuals) for item in part.items()]
        dtypes = {tensor.dtype for _, tensor in packed if tensor.dtype != torch.float32}
        assert dtypes == {torch.int8 if isinstance(message, Upload) else torch.bfloat16}
        assert all(tensor.dtype != torch.float32 or name.endswith("/scales") for name, tensor in packed)
    assert any(message.residuals for message in serializer.messages if isinstance(message, Upload))
    assert any(message.residuals for message in serializer.messages if not isinstance(message, Upload))
    assert any(message.row_counts for message in serializer.messages if isinstance(message, Upload))


def test_token_counts_are_not_rounded(star: Make, fit: Make, differences: Make) -> None:
    class Counts(FederationCallback):
        def __init__(self) -> None:
            self.seen: list[dict[str, torch.Tensor]] = []

        def on_aggregate(self, context: Any, uploads: Any) -> None:
            self.seen += [dict(upload.row_counts) for upload in uploads]

    plain, small = Counts(), Counts()
    fit(star("ab"), [Averaging(PARTS), TokenRows(), plain])
    fit(star("ab"), [Averaging(PARTS), TokenRows(), small, Compression("int8", "int8")])
    assert len(plain.seen) == 4
    assert all(plain.seen)
    assert differences(small.seen, plain.seen) == []


# ---------------------------------------------------------------------- receiving


def test_all_children_get_the_same_rounding(star: Make, fit: Make, differences: Make) -> None:
    endpoints = EndpointRecorder()
    fit(star("abc"), [Averaging(parts=PARTS), endpoints, Compression("int8", "int8")])
    a, b, c = (endpoints.downloads(endpoints.arrived, name) for name in "abc")
    assert len(a) == 2
    assert differences(a, b) == differences(a, c) == []
    assert differences(a, endpoints.downloads(endpoints.meant, "a")) != []


@pytest.mark.parametrize("settings", ["", "privacy: {clip_norm: 0.5, noise_multiplier: 0.3}"], ids=["open", "private"])
@pytest.mark.parametrize("down", ["none", "int8"])
def test_with_error_feedback_only_the_last_error_is_missing(down: Any, settings: str, star: Make, fit: Make) -> None:
    """With sub-rounds and partial participation; the sanitised update is what must arrive."""
    endpoints, topology = (
        EndpointRecorder(),
        star("abc", f"num_subrounds: 2, participation: 0.67, sampling: fixed{settings and ', ' + settings}"),
    )
    callbacks = [Averaging(parts=PARTS), UpdatePrivacy(), endpoints, Compression(down, "int8")]
    world = fit(topology, callbacks, max_epochs=4).world
    for name in "abc":
        error = world.states[name].memory["Compression"]["error"]
        meant, arrived = endpoints.uploads(endpoints.meant, name), endpoints.uploads(endpoints.arrived, name)
        received, sent = endpoints.downloads(endpoints.arrived, name), endpoints.downloads(endpoints.meant, name)
        assert len(meant) == len(arrived) == len(received) == len(sent) > 2
        for key, rest in error.items():
            at_child = sum(upload[key] - start[key] for upload, start in zip(meant, received, strict=True))
            at_parent = sum(upload[key] - start[key] for upload, start in zip(arrived, sent, strict=True))
            torch.testing.assert_close(at_parent + rest, at_child, rtol=1e-5, atol=1e-6)
        assert any(bool(rest.any()) for rest in error.values())
    assert {len(endpoints.uploads(endpoints.meant, name)) for name in "abc"} != {8}  # some children missed sub-rounds


def test_download_rounding_is_not_averaged_into_the_model(star: Make, fit: Make, make_module: Make) -> None:
    """If no node learns, the parent's model does not change, however coarse the downloads are."""
    for up in ("none", "int8"):
        trainer = fit(star("ab"), [Averaging(parts=PARTS), Compression("int8", up)], module=make_module(lr=1e-30))
        start = dict(make_module().named_parameters())
        states = trainer.world.states
        for name, value in states["world"].parameters.items():
            torch.testing.assert_close(value, start[name].detach(), rtol=1e-6, atol=1e-7)
        assert any(not torch.equal(value, start[name]) for name, value in states["a"].parameters.items())


@pytest.mark.parametrize("callbacks", [lambda: [FedAMP(self_weight=0.3), Proximal(0.1)], lambda: [Averaging(PARTS)]])
def test_a_fine_rounding_changes_little(callbacks: Make, star: Make, fit: Make) -> None:
    """Also if every child receives a different model."""
    plain, small = (
        fit(star("abc"), [*callbacks(), *more]).world.states for more in ((), (Compression("none", "bf16"),))
    )
    start = fit(star("abc"), callbacks(), max_epochs=1).world.states
    for name, state in plain.items():
        for key, value in state.parameters.items():
            learnt = float((value - start[name].parameters[key]).norm())
            assert float((small[name].parameters[key] - value).norm()) < 0.1 * learnt


@pytest.mark.parametrize(("down", "up"), [("bf16", "int8"), ("int8", "none"), ("none", "bf16")])
def test_messages_are_rounded_once(down: Any, up: Any, busy_tree: Topology, fit: Make) -> None:
    """Weights and residuals, in both directions; without rounding they arrive exactly."""
    endpoints = EndpointRecorder()
    fit(busy_tree, everything(endpoints, Compression(down, up, error_feedback=False)), max_epochs=3)
    residuals = {Upload: 0, Download: 0}
    for (_, meant), (_, arrived) in zip(endpoints.meant, endpoints.arrived, strict=True):
        encoding = up if isinstance(meant, Upload) else down
        pairs = [(flat(meant.parts), flat(arrived.parts))]
        for sent_residual, received_residual in zip(meant.residuals, arrived.residuals, strict=True):
            pairs += [(sent_residual.keys, received_residual.keys), (sent_residual.values, received_residual.values)]
            assert replace(sent_residual, keys={}, values={}) == replace(received_residual, keys={}, values={})
            residuals[type(meant)] += 1
        for sent_tensors, received_tensors in pairs:
            assert list(sent_tensors) == list(received_tensors)
            for name, tensor in sent_tensors.items():
                exact = encoding == "none" and type(meant) is Download
                size = 0.0 if exact else 6 / 127 * float(tensor.abs().max())  # of the difference, in either direction
                assert float((received_tensors[name] - tensor).abs().max()) <= size
    assert min(residuals.values()) > 0


def test_a_diverged_upload_is_still_rejected(star: Make, fit: Make) -> None:
    class Diverges(FederationCallback):
        def on_upload(self, context: Any, upload: Any) -> Any:
            if (context.node.name, context.round) != ("a", 0):
                return upload
            broken = {part: {name: tensor * torch.nan for name, tensor in upload.parts[part].items()} for part in PARTS}
            return replace(upload, parts=broken)

    states = fit(star("ab"), [Averaging(parts=PARTS), Diverges(), Compression()], max_epochs=1).world.states
    assert states["world"].refused == {"a": 1}  # NaN values survive packing
    assert all(bool(tensor.isfinite().all()) for tensor in states["world"].parameters.values())
    assert all(bool(tensor.isfinite().all()) for tensor in states["a"].memory["Compression"]["error"].values())


def _mirrored(node: Node) -> Node:
    return replace(node, children=tuple(_mirrored(child) for child in reversed(node.children)))


def test_the_order_of_children_and_shared_memory_do_not_matter(
    busy_tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    mirrored = Topology(name="mirrored", root=_mirrored(busy_tree.root))
    runs = [(busy_tree, None), (mirrored, None), (busy_tree, False)]
    expected, *others = (
        snapshot(fit(topology, everything(Compression()), share_memory=share))["world"]["states"]
        for topology, share in runs
    )
    assert all(differences(expected, other) == [] for other in others)


# ---------------------------------------------------------------------- resuming and rejecting


@pytest.mark.parametrize(
    ("kind", "every"), [("tree", 8), *(pytest.param(kind, 1, marks=pytest.mark.slow) for kind in ("tree", "amp"))]
)
def test_resume_from_steps(
    kind: str,
    every: int,
    busy_tree: Topology,
    star: Make,
    fit: Make,
    make_module: Make,
    save_everywhere: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    topology = busy_tree if kind == "tree" else star("abc", "participation: 0.67, num_subrounds: 2")

    def build() -> list[Callback]:
        return everything(Compression()) if kind == "tree" else [FedAMP(), Compression("int8", "int8")]

    saver = save_everywhere("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")
    whole = snapshot(fit(topology, [*build(), saver], limit_val_batches=0))
    for path in saver.saved[::every]:
        resumed = fit(topology, build(), resume=path, module=make_module(99), limit_val_batches=0)
        assert differences(snapshot(resumed), whole) == [], path.name


def test_compression_cannot_be_added_within_a_round(star: Make, fit: Make, save_everywhere: Make) -> None:
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    fit(star("ab"), [Averaging(PARTS), saver])
    within, after = (next(path for path in saver.saved if hook in path.name) for hook in ("batch", "epoch"))
    with pytest.raises(ValueError, match="world sent its weights to a without Compression"):
        fit(star("ab"), [Averaging(PARTS), Compression()], resume=within)
    states = fit(star("ab"), [Averaging(PARTS), Compression()], resume=after).world.states
    assert states["a"].bytes_up < 0.7 * 2 * 4 * sum(tensor.numel() for tensor in states["a"].parameters.values())


def test_compression_does_not_change_the_ledger(star: Make, fit: Make) -> None:
    topology = star("ab", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}")
    ledgers = [
        fit(topology, [Averaging(parts=PARTS), UpdatePrivacy(), *more]).world.states["a"].memory["UpdatePrivacy"]
        for more in ((), (Compression("int8", "int8"),))
    ]
    assert ledgers[0] == ledgers[1]


def test_compression_without_effect_is_rejected(star: Make, single: Topology, fit: Make) -> None:
    for arguments in ({"down": "int4"}, {"up": "fp8"}):
        with pytest.raises(ValueError, match=r"(down|up) must be one of none, bf16, int8, got '(int4|fp8)'"):
            Compression(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trainer.callbacks lists Compression more than once"):
        fit(star("ab"), [Averaging(), Compression(), Compression()])
    with pytest.raises(ValueError, match="no other callback sends a part of the model"):
        fit(star("ab"), [Compression()])
    with pytest.raises(ValueError, match="single has one node, which sends no messages"):
        fit(single, [Averaging(), Compression()])
    with pytest.raises(ValueError, match="down is bf16, but bfloat16 weights already have 2 bytes; use int8"):
        fit(star("ab"), [Averaging(), Compression()], precision="bf16-true")


def test_weights_of_two_bytes(star: Make, fit: Make) -> None:
    states = fit(star("ab"), [Averaging(PARTS), Compression("none", "int8")], precision="bf16-true").world.states
    tensors = states["world"].parameters.values()
    assert all(tensor.dtype == torch.bfloat16 and tensor.isfinite().all() for tensor in tensors)
    assert states["a"].bytes_up < 0.6 * states["a"].bytes_down
