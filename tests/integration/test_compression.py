"""What travels is small, arrives as it was meant but for one rounding, and can be written down on the way."""

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
from worldlm.federation.messages import Download, Residual, Upload
from worldlm.federation.parameters import PARTS, clone
from worldlm.topology import Node, Topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
VALUES = {"none": 4, "bf16": 2, "int8": 1}


def everything(*more: Callback) -> list[Callback]:
    """All that puts something into a message."""
    attention = AttentionAggregation(temperature=0.5)
    exchange = ResidualExchange(min_similarity=-2.0)
    return [Averaging(download_rate=0.5), TokenRows(), attention, exchange, UpdatePrivacy(), *more]


def flat(parts: Mapping[Any, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: tensor for tensors in parts.values() for name, tensor in tensors.items()}


class Ends(FederationCallback):
    """Stands before `Compression`, and so sees messages before they are packed and after they are unpacked."""

    def __init__(self) -> None:
        self.meant: list[tuple[str, Any]] = []
        self.arrived: list[tuple[str, Any]] = []

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        self.meant.append((receiver.name, _copied(message)))
        return message

    def on_unpack(self, context: Any, sender: Any, message: Any) -> Any:
        self.arrived.append((context.node.name, _copied(message)))
        return message

    def uploads(self, what: list[tuple[str, Any]], node: str) -> list[dict[str, torch.Tensor]]:
        return [flat(one.parts) for _, one in what if isinstance(one, Upload) and one.node == node]

    def downloads(self, what: list[tuple[str, Any]], node: str) -> list[dict[str, torch.Tensor]]:
        return [flat(one.parts) for name, one in what if not isinstance(one, Upload) and name == node]


def _copied(message: Any) -> Any:
    return replace(message, parts={part: clone(tensors) for part, tensors in message.parts.items()})


class Transport(FederationCallback):
    """Stands behind `Compression`: writes every message to bytes and JSON, and reads it back."""

    def __init__(self) -> None:
        self.travelled: list[Any] = []
        self.bytes = 0

    def on_send(self, context: Any, receiver: Any, message: Any) -> Any:
        self.travelled.append(message)
        tensors = {f"{part}:{name}": one for part in message.parts for name, one in message.parts[part].items()}
        plain: dict[str, Any] = {"round": message.round, "parts": list(message.parts), "residuals": []}
        for i, residual in enumerate(message.residuals):
            tensors |= {f"{i}:keys:{name}": one for name, one in residual.keys.items()}
            tensors |= {f"{i}:values:{name}": one for name, one in residual.values.items()}
            named = ("origin", "federation", "jurisdiction", "round")
            plain["residuals"].append({name: getattr(residual, name) for name in named})
        if isinstance(message, Upload):
            tensors |= {f"row_counts:{name}": one for name, one in message.row_counts.items()}
            plain |= {"node": message.node, "num_tokens": message.num_tokens, "metrics": dict(message.metrics)}
        self.bytes += sum(one.numel() * one.element_size() for one in tensors.values())
        return _read(type(message), save({name: one.contiguous() for name, one in tensors.items()}), json.dumps(plain))


def _read(kind: Any, tensors: bytes, plain: str) -> Any:
    loaded, options = load(tensors), json.loads(plain)

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): one for name, one in loaded.items() if name.startswith(prefix)}

    options["parts"] = {part: under(f"{part}:") for part in options["parts"]}
    if kind is Upload:
        options["row_counts"] = under("row_counts:")
    options["residuals"] = tuple(
        Residual(keys=under(f"{i}:keys:"), values=under(f"{i}:values:"), **one)
        for i, one in enumerate(options["residuals"])
    )
    return kind(**options)


# ---------------------------------------------------------------------- what is sent


def test_none_both_ways_is_no_compression_at_all(
    busy_tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    plain, none = (snapshot(fit(busy_tree, everything(*more))) for more in ((), (Compression("none", "none"),)))
    none["callbacks"].pop("Compression")
    assert differences(none, plain) == []


@pytest.mark.parametrize(("down", "up"), [("bf16", "int8"), ("int8", "bf16"), ("none", "int8"), ("int8", "none")])
def test_bytes_are_edges_times_the_encoded_payload(
    down: Any, up: Any, star: Make, fit: Make, make_module: Make
) -> None:
    def payload(encoding: str) -> int:
        sizes = [value.numel() for value in make_module().parameters()]
        scales = sum(4 * -(-size // BLOCK) for size in sizes) if encoding == "int8" else 0
        return VALUES[encoding] * sum(sizes) + scales

    trainer = fit(star("abc", "num_subrounds: 2"), [Averaging(parts=PARTS), Compression(down, up)])
    found = {name: (state.bytes_down, state.bytes_up) for name, state in trainer.world.states.items()}
    each = (4 * payload(down), 4 * payload(up))
    assert found == {"world": (0, 0), "a": each, "b": each, "c": each}


@pytest.mark.parametrize("error_feedback", [True, False])
def test_nothing_else_is_needed_on_the_way(
    error_feedback: bool, busy_tree: Topology, fit: Make, snapshot: Make, differences: Make
) -> None:
    """Written to bytes in the middle, and read back, nothing changes: weights, residuals and counts travelled."""
    wire = Transport()
    plain, written = (
        fit(busy_tree, everything(Compression(error_feedback=error_feedback), *more), max_epochs=3)
        for more in ((), (wire,))
    )
    assert differences(snapshot(written)["world"], snapshot(plain)["world"]) == []
    assert wire.bytes == sum(state.bytes_down + state.bytes_up for state in written.world.states.values())
    for message in wire.travelled:
        inside = [*message.parts.values(), *(part for one in message.residuals for part in (one.keys, one.values))]
        kinds = {one.dtype for part in inside for one in part.values() if one.dtype != torch.float32}
        assert kinds == {torch.int8 if isinstance(message, Upload) else torch.bfloat16}
        assert all(
            one.dtype != torch.float32 or name.endswith("/scales") for part in inside for name, one in part.items()
        )
    assert any(message.residuals for message in wire.travelled if isinstance(message, Upload))
    assert any(message.residuals for message in wire.travelled if not isinstance(message, Upload))
    assert any(message.row_counts for message in wire.travelled if isinstance(message, Upload))


def test_counts_of_tokens_arrive_exactly(star: Make, fit: Make, differences: Make) -> None:
    class Counts(FederationCallback):
        def __init__(self) -> None:
            self.seen: list[dict[str, torch.Tensor]] = []

        def on_aggregate(self, context: Any, uploads: Any) -> None:
            self.seen += [dict(one.row_counts) for one in uploads]

    plain, small = Counts(), Counts()
    fit(star("ab"), [Averaging(), TokenRows(), plain])
    fit(star("ab"), [Averaging(), TokenRows(), small, Compression("int8", "int8")])
    assert len(plain.seen) == 4
    assert all(plain.seen)
    assert differences(small.seen, plain.seen) == []


# ---------------------------------------------------------------------- what arrives


def test_all_children_are_sent_the_same(star: Make, fit: Make, differences: Make) -> None:
    ends = Ends()
    fit(star("abc"), [Averaging(parts=PARTS), ends, Compression("int8", "int8")])
    a, b, c = (ends.downloads(ends.arrived, name) for name in "abc")
    assert len(a) == 2
    assert differences(a, b) == differences(a, c) == []
    assert differences(a, ends.downloads(ends.meant, "a")) != []


@pytest.mark.parametrize("settings", ["", "privacy: {clip_norm: 0.5, noise_multiplier: 0.3}"], ids=["open", "private"])
@pytest.mark.parametrize("down", ["none", "int8"])
def test_with_feedback_all_updates_arrive_but_for_the_last_error(
    down: Any, settings: str, star: Make, fit: Make
) -> None:
    """In sub-rounds, and by nodes that are not drawn every time; what was meant is what was sanitised."""
    ends, topology = (
        Ends(),
        star("abc", f"num_subrounds: 2, participation: 0.67, sampling: fixed{settings and ', ' + settings}"),
    )
    callbacks = [Averaging(parts=PARTS), UpdatePrivacy(), ends, Compression(down, "int8")]
    world = fit(topology, callbacks, max_epochs=4).world
    for name in "abc":
        error = world.states[name].memory["Compression"]["error"]
        meant, arrived = ends.uploads(ends.meant, name), ends.uploads(ends.arrived, name)
        received, sent = ends.downloads(ends.arrived, name), ends.downloads(ends.meant, name)
        assert len(meant) == len(arrived) == len(received) == len(sent) > 2
        for key, left in error.items():
            at_home = sum(one[key] - start[key] for one, start in zip(meant, received, strict=True))
            away = sum(one[key] - start[key] for one, start in zip(arrived, sent, strict=True))
            torch.testing.assert_close(away + left, at_home, rtol=1e-5, atol=1e-6)
        assert any(bool(left.any()) for left in error.values())
    assert {len(ends.uploads(ends.meant, name)) for name in "abc"} != {8}  # some missed some


def test_rounded_downloads_do_not_wear_the_model_out(star: Make, fit: Make, make_module: Make) -> None:
    """Where nobody learns, a parent's model stays as it is, however coarse what it sends."""
    for up in ("none", "int8"):
        trainer = fit(star("ab"), [Averaging(parts=PARTS), Compression("int8", up)], module=make_module(lr=1e-30))
        start = dict(make_module().named_parameters())
        states = trainer.world.states
        for name, value in states["world"].parameters.items():
            torch.testing.assert_close(value, start[name].detach(), rtol=1e-6, atol=1e-7)
        assert any(not torch.equal(value, start[name]) for name, value in states["a"].parameters.items())


@pytest.mark.parametrize("callbacks", [lambda: [FedAMP(self_weight=0.3), Proximal(0.1)], lambda: [Averaging(PARTS)]])
def test_a_fine_rounding_changes_little(callbacks: Make, star: Make, fit: Make) -> None:
    """Also where every child is sent a model of its own."""
    plain, small = (
        fit(star("abc"), [*callbacks(), *more]).world.states for more in ((), (Compression("none", "bf16"),))
    )
    start = fit(star("abc"), callbacks(), max_epochs=1).world.states
    for name, state in plain.items():
        for key, value in state.parameters.items():
            learnt = float((value - start[name].parameters[key]).norm())
            assert float((small[name].parameters[key] - value).norm()) < 0.1 * learnt


@pytest.mark.parametrize(("down", "up"), [("bf16", "int8"), ("int8", "none"), ("none", "bf16")])
def test_messages_arrive_but_for_one_rounding(down: Any, up: Any, busy_tree: Topology, fit: Make) -> None:
    """Weights and residuals, up and down, and exactly where nothing is rounded."""
    ends = Ends()
    fit(busy_tree, everything(ends, Compression(down, up, error_feedback=False)), max_epochs=3)
    residuals = {Upload: 0, Download: 0}
    for (_, meant), (_, arrived) in zip(ends.meant, ends.arrived, strict=True):
        encoding = up if isinstance(meant, Upload) else down
        pairs = [(flat(meant.parts), flat(arrived.parts))]
        for one, other in zip(meant.residuals, arrived.residuals, strict=True):
            pairs += [(one.keys, other.keys), (one.values, other.values)]
            assert replace(one, keys={}, values={}) == replace(other, keys={}, values={})
            residuals[type(meant)] += 1
        for one, other in pairs:
            assert list(one) == list(other)
            for name, tensor in one.items():
                exact = encoding == "none" and type(meant) is Download
                size = 0.0 if exact else 6 / 127 * float(tensor.abs().max())  # of its difference, each way
                assert float((other[name] - tensor).abs().max()) <= size
    assert min(residuals.values()) > 0


def test_a_node_that_diverged_is_not_hidden(star: Make, fit: Make) -> None:
    class Diverges(FederationCallback):
        def on_upload(self, context: Any, upload: Any) -> Any:
            if (context.node.name, context.round) != ("a", 0):
                return upload
            parts = {part: {name: one * float("nan") for name, one in upload.parts[part].items()} for part in PARTS}
            return replace(upload, parts=parts)

    states = fit(star("ab"), [Averaging(parts=PARTS), Diverges(), Compression()], max_epochs=1).world.states
    assert states["world"].refused == {"a": 1}  # what is packed is still seen to be broken
    assert all(bool(one.isfinite().all()) for one in states["world"].parameters.values())
    assert all(bool(one.isfinite().all()) for one in states["a"].memory["Compression"]["error"].values())


def _mirrored(node: Node) -> Node:
    return replace(node, children=tuple(_mirrored(child) for child in reversed(node.children)))


def test_neither_order_nor_copies_matter(busy_tree: Topology, fit: Make, snapshot: Make, differences: Make) -> None:
    mirrored = Topology(name="mirrored", root=_mirrored(busy_tree.root))
    runs = [(busy_tree, None), (mirrored, None), (busy_tree, False)]
    one, *others = (
        snapshot(fit(topology, everything(Compression()), share_memory=share))["world"]["states"]
        for topology, share in runs
    )
    assert all(differences(one, other) == [] for other in others)


# ---------------------------------------------------------------------- stopping, refusing


@pytest.mark.parametrize("kind", ["tree", "amp"])
def test_resume_from_every_step(
    kind: str, busy_tree: Topology, star: Make, fit: Make, make_module: Make, save_everywhere: Make, snapshot: Make,
    differences: Make,
) -> None:  # fmt: skip
    topology = busy_tree if kind == "tree" else star("abc", "participation: 0.67, num_subrounds: 2")

    def build() -> list[Callback]:
        return everything(Compression()) if kind == "tree" else [FedAMP(), Compression("int8", "int8")]

    saver = save_everywhere("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")
    whole = snapshot(fit(topology, [*build(), saver], limit_val_batches=0))
    for path in saver.saved[::5]:
        resumed = fit(topology, build(), resume=path, module=make_module(99), limit_val_batches=0)
        assert differences(snapshot(resumed), whole) == [], path.name


def test_it_cannot_come_in_within_a_round(star: Make, fit: Make, save_everywhere: Make) -> None:
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    fit(star("ab"), [Averaging(PARTS), saver])
    within, after = (next(one for one in saver.saved if hook in one.name) for hook in ("batch", "epoch"))
    with pytest.raises(ValueError, match="Compression was not there when world sent its weights to a"):
        fit(star("ab"), [Averaging(PARTS), Compression()], resume=within)
    states = fit(star("ab"), [Averaging(PARTS), Compression()], resume=after).world.states
    assert states["a"].bytes_up < 0.7 * 2 * 4 * sum(one.numel() for one in states["a"].parameters.values())


def test_a_ledger_is_what_it_was(star: Make, fit: Make) -> None:
    topology = star("ab", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}")
    ledgers = [
        fit(topology, [Averaging(parts=PARTS), UpdatePrivacy(), *more]).world.states["a"].memory["UpdatePrivacy"]
        for more in ((), (Compression("int8", "int8"),))
    ]
    assert ledgers[0] == ledgers[1]


def test_what_has_nothing_to_do_is_refused(star: Make, single: Topology, fit: Make) -> None:
    for wrong in ({"down": "int4"}, {"up": "fp8"}):
        with pytest.raises(ValueError, match=r"(down|up) must be one of none, bf16, int8, got '(int4|fp8)'"):
            Compression(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Compression is among trainer.callbacks more than once"):
        fit(star("ab"), [Averaging(), Compression(), Compression()])
    with pytest.raises(ValueError, match="no other callback lets a part of the model travel"):
        fit(star("ab"), [Compression()])
    with pytest.raises(ValueError, match="single is one node, which sends nothing"):
        fit(single, [Averaging(), Compression()])
    with pytest.raises(ValueError, match="down is bf16, but weights of bfloat16 have 2 bytes already; use int8"):
        fit(star("ab"), [Averaging(), Compression()], precision="bf16-true")


def test_weights_of_two_bytes(star: Make, fit: Make) -> None:
    states = fit(star("ab"), [Averaging(PARTS), Compression("none", "int8")], precision="bf16-true").world.states
    assert all(one.dtype == torch.bfloat16 and one.isfinite().all() for one in states["world"].parameters.values())
    assert states["a"].bytes_up < 0.6 * states["a"].bytes_down
