"""The result of a round: compared with a loop written by hand, in any order of the children, and its bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.data import BlockBatchSampler
from worldlm.federation.parameters import PARTS
from worldlm.topology import Node, Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


def fedavg() -> Averaging:
    return Averaging(parts=PARTS)


def test_fedavg_on_a_star_equals_local_adamw_and_a_weighted_mean(
    star: Make, fit: Make, make_module: Make, make_data: Make, tolerance: float
) -> None:
    sizes = {"a": 2, "b": 4, "c": 3}
    own = {name: f"settings: {{batch_size: {size}}}" for name, size in sizes.items()}
    trainer = fit(star("abc", **own), [fedavg()], max_epochs=1)

    mean: dict[str, torch.Tensor] = {}
    for name, size in sizes.items():
        module = make_module()
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
        blocks = make_data().blocks(name, "train")
        sampler = BlockBatchSampler(len(blocks), size, 7, name)
        sampler.length = 2
        for indices in sampler:  # a run of 2 steps, 1 of warmup: both at the peak learning rate
            optimizer.zero_grad()
            module.loss(blocks.__getitems__(indices)).backward()
            optimizer.step()
        for key, value in module.named_parameters():
            part = value.detach() * (size / sum(sizes.values()))
            mean[key] = mean[key] + part if key in mean else part

    actual = trainer.world.states["world"].parameters
    assert actual.keys() == mean.keys()
    for key, value in mean.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-6, atol=2 * tolerance)
    assert trainer.world.states["world"].unsent_tokens == sum(size * 2 * 8 for size in sizes.values())


@pytest.mark.parametrize(
    ("weights", "own", "expected"),
    [("num_tokens", {}, 1 / 3), ("uniform", {}, 1 / 2), ("num_tokens", {"a": "weight: 96"}, 96 / (96 + 64))],
    ids=str,
)
def test_weights_of_the_mean(weights: Any, own: dict[str, str], expected: float, star: Make, fit: Make) -> None:
    own = {"b": "settings: {batch_size: 4}"} | own  # a trains on 32 tokens, b on 64
    states = fit(star("ab", **own), [Averaging(parts=PARTS, weights=weights)], max_epochs=1).world.states
    for name, value in states["world"].parameters.items():
        a, b = (states[leaf].parameters[name] for leaf in "ab")
        torch.testing.assert_close(value, expected * a + (1 - expected) * b, rtol=1e-5, atol=1e-6)


def _mirrored(node: Node) -> Node:
    children = tuple(_mirrored(child) for child in reversed(node.children))
    return Node(name=node.name, corpus=node.corpus, weight=node.weight, settings=node.settings, children=children)


def test_the_order_of_children_does_not_matter(
    busy_tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    other = Topology(name="mirrored", root=_mirrored(busy_tree.root))
    assert [*other.nodes] != [*busy_tree.nodes]
    left, right = (snapshot(fit(topology, whole_method())) for topology in (busy_tree, other))
    for content in (left, right):
        content["world"]["topology"] = {name: sorted(names) for name, names in content["world"]["topology"].items()}
    assert differences(left, right) == []


def test_copied_weights_give_the_same_result_as_shared_weights(
    tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    shared, copied = (snapshot(fit(tree, whole_method(), share_memory=share)) for share in (True, False))
    assert differences(shared, copied) == []


# ---------------------------------------------------------------------- bytes


def _sizes(module: Any) -> dict[str, int]:
    parts = module.partition()
    return {
        part: sum(4 * value.numel() for name, value in module.named_parameters() if parts[name] == part)
        for part in PARTS
    }


@pytest.mark.parametrize("parts", [("backbone",), ("keys", "values"), PARTS], ids=str)
def test_bytes_equal_the_size_of_the_sent_parts(parts: Any, star: Make, fit: Make, make_module: Make) -> None:
    states = fit(star("ab"), [Averaging(parts=parts)]).world.states
    expected = 2 * sum(_sizes(make_module())[part] for part in parts)
    traffic = {name: (state.bytes_down, state.bytes_up) for name, state in states.items()}
    assert traffic == {"world": (0, 0), "a": (expected, expected), "b": (expected, expected)}


def test_bytes_of_residuals(tree: Topology, fit: Make, make_module: Make, recorder: Any, whole_method: Make) -> None:
    exchange_callback = ResidualExchange(num_residuals=1)
    others = [callback for callback in whole_method() if not isinstance(callback, ResidualExchange)]
    callbacks = [*others[:2], exchange_callback, *others[2:]]
    world = fit(tree, callbacks, logger=recorder).world
    states = world.states
    size = _sizes(make_module())
    model, residual = sum(size.values()), size["keys"] + size["values"]
    assert sum(exchange_callback.routes(world).values()) == 2
    for name in "abcd":  # leaves neither send residuals nor receive answers
        assert states[name].bytes_up == states[name].bytes_down == 2 * model
    for name in ("north", "south"):  # each sends one per round, and receives the answer to the first in the second
        assert states[name].bytes_up == 2 * (model + residual)
        assert states[name].bytes_down == 2 * model + residual
    total = sum(state.bytes_up + state.bytes_down for state in states.values())
    assert recorder.last("world/bytes") == total
    assert recorder.last("a/bytes_up") == states["a"].bytes_up


class MessageRecorder(FederationCallback):
    """Records downloads and uploads."""

    def __init__(self) -> None:
        self.downloads: list[Any] = []
        self.uploads: list[Any] = []

    def on_receive(self, context: Any, download: Any) -> None:
        self.downloads.append(download)

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        self.uploads.append(upload)
        return upload


def test_fedper_never_sends_keys_and_values(star: Make, fit: Make, make_module: Make) -> None:
    recorder_ = MessageRecorder()
    trainer = fit(star("ab"), [Averaging(parts=["backbone"]), recorder_])
    messages = [*recorder_.downloads, *recorder_.uploads]
    assert len(messages) == 8
    assert all(set(message.parts) == {"backbone"} for message in messages)
    a, b = (trainer.world.states[name].parameters for name in "ab")
    parts = make_module().partition()
    assert all(not torch.equal(a[name], b[name]) for name in parts if parts[name] == "keys")


# ---------------------------------------------------------------------- participation


class Visits(FederationCallback):
    """Records the fits, and keeps the nodes of a list from taking part."""

    def __init__(self, absent: str = "") -> None:
        self.absent = absent
        self.seen: list[tuple[int, str]] = []
        self.draws: dict[tuple[int, str, int], float] = {}

    def participates(self, context: Any) -> bool:
        return context.node.name not in self.absent

    def on_local_fit_start(self, context: Any, fit: Any) -> None:
        self.seen.append((context.round, context.node.name))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.draws[(trainer.world.round, trainer.active_node, batch_idx)] = float(torch.rand(()))


def test_participation_depends_on_the_seed_only(star: Make, fit: Make) -> None:
    def run(leaves: str, seed: int) -> list[tuple[int, str]]:
        visits = Visits()
        fit(star(leaves, "participation: 0.5"), [fedavg(), visits], max_epochs=6, seed=seed, limit_val_batches=0)
        return sorted(visits.seen)

    drawn = run("abcd", 7)
    assert drawn == run("dbca", 7)
    assert drawn != run("abcd", 8)
    assert [sum(r == number for r, _ in drawn) for number in range(6)] == [2] * 6
    assert len({name for _, name in drawn}) > 2


def test_nodes_below_a_federation_that_is_not_drawn_do_not_train(tree: Topology, fit: Make) -> None:
    from dataclasses import replace

    root = replace(tree.root, settings=replace(tree.root.settings, participation=0.5))
    nodes = {name for name, node in tree.nodes.items() if node.settings.privacy}
    assert nodes == {"south", "c", "d"}
    root = replace(root, children=tuple(_without_privacy(child) for child in root.children))
    visits = Visits()
    trainer = fit(Topology(name="half", root=root), [fedavg(), visits], max_epochs=4)
    by_round = [sorted(name for r, name in visits.seen if r == number) for number in range(4)]
    assert all(names in (["a", "b"], ["c", "d"]) for names in by_round)
    assert {name: state.num_visits for name, state in trainer.world.states.items() if name in "abcd"} == {
        name: sum(name == seen for _, seen in visits.seen) for name in "abcd"
    }


def _without_privacy(node: Node) -> Node:
    from dataclasses import replace

    children = tuple(_without_privacy(child) for child in node.children)
    return replace(node, children=children, settings=replace(node.settings, privacy=None))


def test_without_participants_the_model_does_not_change(
    star: Make, fit: Make, make_module: Make, differences: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "worldlm"):
        trainer = fit(star("ab"), [fedavg(), Visits(absent="ab")])
    start = {name: value.detach() for name, value in make_module().named_parameters()}
    assert differences(trainer.world.states["world"].parameters, start) == []
    assert "no node took part in world" in caplog.text
    assert trainer.current_epoch == 2


# ---------------------------------------------------------------------- state and randomness


class OptimizerSteps(Callback):
    """Records the step count in the optimizer state of node a after each of its steps."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.active_node == "a":
            (steps,) = {int(entry["step"]) for entry in trainer.optimizers[0].state.values()}
            self.seen.append(steps)


@pytest.mark.parametrize(("setting", "steps"), [("keep", [1, 2, 3, 4]), ("reset", [1, 2, 1, 2])])
def test_optimizer_state(setting: str, steps: list[int], star: Make, fit: Make) -> None:
    watch = OptimizerSteps()
    trainer = fit(star("ab", f"optimizer_state: {setting}"), [fedavg(), watch])
    assert watch.seen == steps
    state = trainer.fit_loop.slot.state_dict()["a"]
    assert bool(state["optimizer"]["state"]) == (setting == "keep")  # with reset, no state is stored
    assert all(parameter.grad is None for parameter in trainer.lightning_module.parameters())
    assert state["schedulers"][0]["last_epoch"] == 4  # the schedule spans the run, not one fit


def test_global_randomness_does_not_depend_on_the_number_of_nodes(star: Make, fit: Make) -> None:
    states = []
    for leaves in ("ab", "abcde"):
        torch.manual_seed(5)
        fit(star(leaves), [fedavg(), Visits()])
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_draws_within_a_fit_depend_on_seed_node_and_round(star: Make, fit: Make) -> None:
    def run(leaves: str, seed: int = 7) -> dict[tuple[int, str, int], float]:
        visits = Visits()
        torch.manual_seed(len(leaves))
        fit(star(leaves), [fedavg(), visits], seed=seed)
        return visits.draws

    small, large = run("ab"), run("cba")
    assert len(small) == 8
    assert small == {key: value for key, value in large.items() if key[1] in "ab"}
    assert len(set(small.values())) == 8  # no two nodes, rounds or steps draw the same
    assert small != run("ab", seed=8)


def test_fedavg_with_one_child_equals_the_child(star: Make, fit: Make, differences: Make) -> None:
    """With one child, FedAvg returns the weights of the child."""
    trainer = fit(star("a"), [fedavg()])
    states = trainer.world.states
    for name, value in states["a"].parameters.items():
        torch.testing.assert_close(states["world"].parameters[name], value, rtol=1e-6, atol=1e-7)


def test_no_checkpoint_while_nodes_exchange_messages(star: Make, fit: Make, tmp_path: Any) -> None:
    class Careless(FederationCallback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.trainer = trainer

        def on_merged(self, context: Any) -> None:
            self.trainer.save_checkpoint(tmp_path / "half.ckpt", weights_only=False)

    with pytest.raises(RuntimeError, match="while nodes exchange messages"):
        fit(star("ab"), [AttentionAggregation(), Averaging(), Careless()])
    assert not (tmp_path / "half.ckpt").exists()


def test_a_parents_own_fit_is_ordered_by_name(fit: Make) -> None:
    text = """
name: middle
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: m
  corpus: m
  children: [{name: z, corpus: z}, {name: a, corpus: a}]
"""
    seen: list[list[str]] = []

    class Order(FederationCallback):
        def on_aggregate(self, context: Any, uploads: Any) -> None:
            seen.append([upload.node for upload in uploads])

    fit(parse_topology(text, "middle.yaml"), [fedavg(), Order()], max_epochs=2)
    assert seen == [["a", "m", "z"]] * 2
