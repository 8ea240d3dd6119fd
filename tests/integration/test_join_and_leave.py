"""A run that resumes with a changed topology keeps all state that still applies, and nothing else."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tested_family import EMBEDDING

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    ClusteredAveraging,
    Compression,
    FedAMP,
    LastCheckpoint,
    NodeMetrics,
    Record,
    ResidualExchange,
    Summary,
    TokenRows,
    Traffic,
    UpdatePrivacy,
)
from worldlm.federation.parameters import PARTS
from worldlm.federation.privacy import PrivacyLedger
from worldlm.storage.paged_store import Paging
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]

NORTH = "children: [{name: a, corpus: a}, {name: b, corpus: b, settings: {num_local_steps: 1}}]"
PRIVATE = "privacy: {clip_norm: 0.5, noise_multiplier: 0.3}"


def tree(
    north: str = NORTH, south: str = "{name: c, corpus: c}, {name: d, corpus: d}", privacy: str = PRIVATE
) -> Topology:
    text = f"""
name: tree
settings: {{num_local_steps: 2, batch_size: 2}}
root:
  name: world
  children:
    - name: north
      {north}
    - name: south
      settings: {{jurisdiction: eu, {privacy}}}
      children: [{south}]
"""
    return parse_topology(text, "tree.yaml")


B = "{name: b, corpus: b, settings: {num_local_steps: 1}}"
LARGER = tree(f"children: [{{name: a, corpus: a}}, {B}, {{name: e, corpus: e}}]")
SMALLER = tree("children: [{name: a, corpus: a}]")


def average() -> list[Callback]:
    return [Averaging()]


def amplified() -> list[Callback]:
    return [FedAMP()]


def clustered() -> list[Callback]:
    return [ClusteredAveraging(min_similarity=1.0)]  # every child is a cluster


def whole_average() -> list[Callback]:
    return [Averaging(["backbone", "keys", "values"]), UpdatePrivacy(), NodeMetrics()]


_CHECKPOINTS: dict[str, bytes] = {}


@pytest.fixture
def after(fit: Make, whole_method: Make, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains a world for some rounds and gives its last checkpoint, made once."""

    def run(topology: Topology, make: Make = whole_method, rounds: int = 2, **options: Any) -> Path:
        path = tmp_path / "before.ckpt"
        key = repr((topology, make.__qualname__, rounds, options))
        if key not in _CHECKPOINTS:
            trainer = fit(topology, [*make(), StopAfter(rounds, path)], **{"max_epochs": rounds, **options})
            assert trainer.current_epoch == rounds
            _CHECKPOINTS[key] = path.read_bytes()
        path.write_bytes(_CHECKPOINTS[key])
        return path

    return run


class StopAfter(Callback):
    """Saves a checkpoint at the end of a round and stops there."""

    def __init__(self, rounds: int, path: Path) -> None:
        self.rounds = rounds
        self.path = path

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.world.round + 1 == self.rounds:
            trainer.save_checkpoint(self.path, weights_only=False)
            trainer.should_stop = True


def saved(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True)["loops"]["fit_loop"]["state_dict"]
    return state


class StateCopy(Callback):
    """Copies the state of all nodes before the first step."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, *args: Any) -> None:
        states = {name: state.state_dict() for name, state in trainer.world.states.items()}
        self.found = deepcopy({"states": states, "optimizers": trainer.fit_loop.slot.state_dict()})


@pytest.fixture
def loaded(fit: Make, whole_method: Make, make_module: Make) -> Callable[..., dict[str, Any]]:
    """Return a function that resumes with another topology for one round and returns the nodes' state before it."""

    def run(path: Path, topology: Topology, callbacks: list[Callback] | None = None, **options: Any) -> dict[str, Any]:
        copied = StateCopy()
        ours = [copied, *(whole_method() if callbacks is None else callbacks)]
        options = {"max_epochs": 3, "limit_val_batches": 0, **options}
        trainer = fit(topology, ours, resume=path, module=make_module(99, warmup_steps=0), **options)
        return {**copied.found, "trainer": trainer}

    return run


def test_a_node_joins(after: Make, loaded: Make, differences: Make) -> None:
    path = after(tree())
    found, before = loaded(path, LARGER), saved(path)["world"]["states"]
    e = found["states"]["e"]
    assert differences(e["parameters"], before["north"]["parameters"]) == []
    fresh = {name: value for name, value in e.items() if value and name not in ("parameters", "extra_steps", "memory")}
    assert fresh == {}
    assert "e" not in found["optimizers"]
    others = {name: state for name, state in found["states"].items() if name != "e"}
    assert differences(others, before) == []
    state = found["trainer"].world.states["e"]
    assert (state.num_visits, state.num_steps, state.num_batches) == (1, 2, 2)


def test_a_joined_node_shares_no_memory_with_its_parent(after: Make, loaded: Make) -> None:
    trainer = loaded(after(tree()), LARGER)["trainer"]
    places = {name: {t.data_ptr() for t in state.parameters.values()} for name, state in trainer.world.states.items()}
    assert not places["e"] & places["north"]


def test_a_node_leaves(after: Make, loaded: Make, differences: Make) -> None:
    path = after(tree())
    found, before = loaded(path, SMALLER), saved(path)
    old = before["world"]["states"]
    key = ResidualExchange(num_residuals=1).state_key
    attention = AttentionAggregation().state_key
    assert "b" in old["north"]["memory"][attention]["uploads"]
    assert "b" in old["north"]["attention"]
    counts = old["b"]["memory"].get(key, {}).get("routes", {})
    total = old["world"]["memory"][key].setdefault("routes", {})
    total |= {path: total.get(path, 0) + number for path, number in counts.items()}
    del old["b"]
    for name, state in old.items():
        state["participants"] = tuple(other for other in state["participants"] if other != "b")
        state["attention"] = {
            receiver: {source: weight for source, weight in row.items() if source != "b"}
            for receiver, row in state["attention"].items()
            if name != "north" or receiver != "b"
        }
        for kept in ("uploads", "shares"):
            state["memory"].get(attention, {}).get(kept, {}).pop("b", None)
        memory = state["memory"].get(key, {})
        for waiting in [*memory.get("known", {}).values(), memory.get("climbing", [])]:
            waiting[:] = [residual for residual in waiting if residual["origin"] != "b"]
        for origins in memory.get("unanswered", {}).values():
            origins[:] = [origin for origin in origins if origin != "b"]
    assert differences(found["states"], old) == []
    assert sorted(found["optimizers"]) == ["a", "c", "d"]


def test_the_next_round_equals_that_of_a_world_without_the_departed_node(
    after: Make, fit: Make, make_module: Make, snapshot: Make, differences: Make, tmp_path: Path
) -> None:
    """Resuming gives the same result as from a checkpoint from which the node was removed by hand."""
    path = after(tree(), whole_average)
    checkpoint = torch.load(path, weights_only=True)
    loop = checkpoint["loops"]["fit_loop"]["state_dict"]
    for field in ("states", "nodes", "topology", "steps"):
        del loop["world"][field]["b"]
    del loop["optimizers"]["b"]
    loop["world"]["topology"]["north"] = ["a"]
    loop["world"]["states"]["north"]["participants"] = ("a",)
    torch.save(checkpoint, tmp_path / "cut.ckpt")

    def run(resume: Path) -> Any:
        snapshots = snapshot(fit(SMALLER, whole_average(), resume=resume, module=make_module(99), max_epochs=3))
        return {name: snapshots[name] for name in ("world", "optimizers", "live")}

    assert differences(run(path), run(tmp_path / "cut.ckpt")) == []


def test_another_federation_is_not_affected(
    after: Make, fit: Make, make_module: Make, snapshot: Make, differences: Make
) -> None:
    """A change in the north affects the south only with the next download."""
    path = after(tree(), whole_average)

    def run(topology: Topology) -> Any:
        return snapshot(fit(topology, whole_average(), resume=path, module=make_module(99), max_epochs=3))

    same, changed = run(tree()), run(SMALLER)
    expected, actual = (
        {name: content["world"]["states"][name] for name in ("south", "c", "d")} for content in (same, changed)
    )
    assert differences(expected, actual) == []
    for name in "acd":
        assert differences(same["optimizers"][name], changed["optimizers"][name]) == []
    both = [content["world"]["states"]["world"]["parameters"] for content in (same, changed)]
    assert differences(*both) != []


def test_a_node_that_rejoins_is_new_except_for_its_ledger(after: Make, loaded: Make, differences: Make, fit: Make,
    whole_method: Make, save_everywhere: Make, make_module: Make) -> None:  # fmt: skip
    path, without = after(tree()), tree(south="{name: c, corpus: c}")
    spent = saved(path)["world"]["states"]["d"]["memory"][UpdatePrivacy().state_key]["history"]
    saver = save_everywhere("on_train_epoch_end")
    fit(without, [*whole_method(), saver], resume=path, module=make_module(99, warmup_steps=0), max_epochs=3)
    copied = StateCopy()
    fit(
        tree(),
        [copied, *whole_method()],
        resume=saver.saved[-1],
        module=make_module(98, warmup_steps=0),
        max_epochs=4,
        limit_val_batches=0,
    )
    d = copied.found["states"]["d"]
    between = saved(saver.saved[-1])["world"]["states"]
    assert differences(d["parameters"], between["south"]["parameters"]) == []
    assert (d["num_steps"], d["bytes_up"], d["num_batches"]) == (0, 0, 0)
    assert "d" not in copied.found["optimizers"]
    assert d["memory"] == {UpdatePrivacy().state_key: {"history": spent}}


def test_a_node_moves(after: Make, loaded: Make, differences: Make) -> None:
    path = after(tree())
    d = f"{{name: d, corpus: d, settings: {{jurisdiction: eu, {PRIVATE}}}}}"
    moved = tree(f"children: [{B}, {d}]", "{name: c, corpus: c}, {name: a, corpus: a}")
    found, before = loaded(path, moved), saved(path)
    for name in "ad":
        old = before["world"]["states"][name]
        assert old["unsent_tokens"] == 0
        assert differences(found["states"][name], old) == []
        assert differences(found["optimizers"][name], before["optimizers"][name]) == []
    key = AttentionAggregation().state_key
    known = {name: found["states"][name]["memory"][key]["uploads"] for name in ("north", "south")}
    assert {name: sorted(keys) for name, keys in known.items()} == {"north": ["b"], "south": ["c"]}
    assert sorted(found["states"]["south"]["attention"]) == ["c"]


def test_a_world_joins_a_larger_one(after: Make, loaded: Make, differences: Make) -> None:
    old = tree()
    text = """
name: earth
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: earth
  children:
    - name: world
      children:
        - name: north
          children: [{name: a, corpus: a}, {name: b, corpus: b, settings: {num_local_steps: 1}}]
        - name: south
          settings: {jurisdiction: eu, privacy: {clip_norm: 0.5, noise_multiplier: 0.3}}
          children: [{name: c, corpus: c}, {name: d, corpus: d}]
    - name: mars
      children: [{name: e, corpus: e}]
"""
    path = after(old)
    found, before = loaded(path, parse_topology(text, "earth.yaml")), saved(path)["world"]["states"]
    assert before["world"]["unsent_tokens"] > 0  # the old root had no parent to send them to
    for name in ("earth", "mars", "e"):
        assert differences(found["states"][name]["parameters"], before["world"]["parameters"]) == []
    assert found["states"]["earth"]["takes_part"]
    before["world"]["unsent_tokens"] = 0
    assert differences({name: found["states"][name] for name in before}, before) == []
    world = found["trainer"].world
    assert world.states["earth"].attention.keys() <= {"world", "mars"}
    assert world.states["earth"].unsent_tokens == (2 + 1 + 2 + 2 + 2) * 2 * 8  # a round's


def test_a_part_of_a_world_continues_alone(after: Make, loaded: Make) -> None:
    text = "name: n\nsettings: {num_local_steps: 2, batch_size: 2}\nroot:\n  name: north\n  " + NORTH
    trainer = loaded(after(tree()), parse_topology(text, "n.yaml"))["trainer"]
    assert {name: state.num_visits for name, state in trainer.world.states.items()} == {"north": 0, "a": 3, "b": 3}
    state = trainer.fit_loop.on_save_checkpoint()
    assert trainer.global_step == 3 * (2 + 1)
    assert state["active"] == "north"


def test_a_leaf_becomes_a_federation_and_a_federation_a_leaf(after: Make, loaded: Make, differences: Make) -> None:
    changed = tree("corpus: n", "{name: c, children: [{name: d, corpus: d}, {name: x, corpus: x}]}")
    path = after(tree())
    found, before = loaded(path, changed), saved(path)["world"]["states"]
    assert differences(found["states"]["x"]["parameters"], before["c"]["parameters"]) == []
    north = found["states"]["north"]
    assert differences(north["parameters"], before["north"]["parameters"]) == []
    assert north["attention"] == {}
    assert Averaging(["backbone"]).state_key in before["north"]["memory"]
    assert Averaging(["backbone"]).state_key not in north["memory"]
    assert sorted(found["optimizers"]) == ["d"]
    assert sorted(found["trainer"].fit_loop.slot.state_dict()) == ["d", "north", "x"]


def test_a_new_corpus_is_read_from_its_beginning(after: Make, loaded: Make) -> None:
    found = loaded(after(tree()), tree("children: [{name: a, corpus: z}, {name: b, corpus: b}]"))
    a = found["states"]["a"]
    assert (a["num_batches"], a["num_steps"], a["num_visits"]) == (0, 4, 2)
    assert NodeMetrics().state_key not in a["memory"]
    assert "a" in found["optimizers"]
    assert found["states"]["b"]["num_batches"] == 2


def test_the_ledger_composes_what_was_spent_under_both_rules(
    after: Make, loaded: Make, caplog: pytest.LogCaptureFixture
) -> None:
    path = after(tree(privacy="privacy: {clip_norm: 0.5, noise_multiplier: 2.0}"))
    with caplog.at_level(logging.INFO, "worldlm"):
        looser = tree(privacy="privacy: {clip_norm: 0.5, noise_multiplier: 1.0}")
        trainer = loaded(path, looser)["trainer"]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    warned = [line for line in warned if line.startswith("after round")]  # not those of the key and of strong noise
    change = "privacy.noise_multiplier 2 -> 1; the ledger keeps the budget"
    warning = f"after round 2: privacy is loosened at south, c, d: {change}"
    assert [line.startswith(warning) for line in warned] == [True]
    ledger = UpdatePrivacy().ledger(trainer.world.states["c"])
    assert ledger.history == [(2.0, 1.0, 2), (1.0, 1.0, 1)]
    alike = PrivacyLedger([(1 / math.sqrt(2 / 2.0**2 + 1 / 1.0**2), 1.0, 1)])  # Gaussians compose to a Gaussian
    assert ledger.epsilon(1e-5) == pytest.approx(alike.epsilon(1e-5), abs=0.02)


def test_a_spent_budget_stays_spent(after: Make, loaded: Make) -> None:
    path = after(tree())
    visits = {}
    for max_epsilon in (1000, 10):
        privacy = f"privacy: {{clip_norm: 0.5, noise_multiplier: 0.3, max_epsilon: {max_epsilon}}}"
        trainer = loaded(path, tree(privacy=privacy))["trainer"]
        visits[max_epsilon] = [trainer.world.states[name].num_visits for name in "acd"]
    assert visits == {1000: [3, 3, 3], 10: [3, 2, 2]}


def test_the_topology_cannot_change_within_a_round(
    fit: Make, whole_method: Make, save_everywhere: Make, make_module: Make
) -> None:
    saver = save_everywhere("on_train_epoch_start", "on_train_batch_end")
    fit(tree(), [*whole_method(), saver], limit_val_batches=0)
    begun = next(i for i, path in enumerate(saver.saved) if i and "epoch_start" in path.name)
    for path in (saver.saved[begun - 1], saver.saved[begun + 1]):
        for topology in (SMALLER, tree(NORTH.replace("1}", "2}"))):
            with pytest.raises(ValueError, match="saved within a round, in which the topology cannot change"):
                fit(topology, whole_method(), resume=path, module=make_module(99))
    trainer = fit(SMALLER, whole_method(), resume=saver.saved[begun], module=make_module(99, warmup_steps=0))
    assert (trainer.world.changed_after, trainer.world.states["a"].num_visits) == (1, 2)


def test_an_older_checkpoint_without_node_descriptions(
    after: Make, fit: Make, whole_method: Make, snapshot: Make, differences: Make, tmp_path: Path
) -> None:
    path = after(tree())
    checkpoint = torch.load(path, weights_only=True)
    world = checkpoint["loops"]["fit_loop"]["state_dict"]["world"]
    del world["nodes"], world["steps"]
    for state in world["states"].values():
        del state["extra_steps"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    checkpoints = (path, tmp_path / "older.ckpt")
    expected, actual = (fit(tree(), whole_method(), resume=each, max_epochs=3) for each in checkpoints)
    assert differences(snapshot(expected), snapshot(actual)) == []
    with pytest.raises(ValueError, match="it does not describe its nodes"):
        fit(SMALLER, whole_method(), resume=tmp_path / "older.ckpt")


def test_the_schedule_ends_where_the_run_ends(after: Make, fit: Make, make_module: Make) -> None:
    """A node that joined decays from the peak to the end; a node with other steps continues its schedule."""
    path = after(tree(privacy=""), average, max_epochs=4)
    rates: dict[str, list[float]] = {}

    class Rates(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            rates.setdefault(trainer.active_node, []).append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_train_end(self, trainer: Any, *args: Any) -> None:
            for name, state in trainer.fit_loop.slot.state_dict().items():
                rates[name].append(state["optimizer"]["param_groups"][0]["lr"])

    north = f"children: [{{name: a, corpus: a, settings: {{num_local_steps: 4}}}}, {B}, {{name: e, corpus: e}}]"
    trainer = fit(
        tree(north, privacy=""),
        [Averaging(), Rates()],
        resume=path,
        module=make_module(99, warmup_steps=0),
        max_epochs=4,
    )
    lowest = 1e-2 * 0.1
    assert {name: state.extra_steps for name, state in trainer.world.states.items() if name in "abe"} == {
        "a": 2 * (2 - 4), "b": 0, "e": -2 * 2,
    }  # fmt: skip
    assert rates["e"][0] == 1e-2
    assert {name: len(lrs) - 1 for name, lrs in rates.items()} == {"a": 8, "b": 2, "c": 4, "d": 4, "e": 4}
    for name, lrs in rates.items():
        assert lrs[1:] == sorted(lrs[1:], reverse=True), name  # the first value is from the old schedule
        assert lrs[-1] == pytest.approx(lowest), name
        assert lrs[-2] > lowest * 1.01, name


def test_compression_rows_and_fedamp_drop_state_of_departed_children(after: Make, loaded: Make, star: Make) -> None:
    def pieces() -> list[Callback]:
        return [TokenRows(EMBEDDING), Averaging(PARTS), Compression(), Traffic(), UpdatePrivacy()]

    moved = tree(f"children: [{B}]", "{name: c, corpus: c}, {name: d, corpus: d}, {name: a, corpus: a}")
    found = loaded(after(tree(), pieces), moved, pieces())
    key = Compression().state_key
    assert "error" not in found["states"]["a"]["memory"].get(key, {})
    assert found["states"]["b"]["memory"][key]["error"]

    amp = FedAMP()
    path = after(star("abc"), amplified)
    memory = loaded(path, star("ac"), [FedAMP()])["states"]["world"]["memory"][amp.state_key]
    assert (sorted(memory["models"]), sorted(memory["tokens"])) == (["a", "c"], ["a", "c"])
    half = {"a": {"a": 0.5, "c": 0.5}, "c": {"a": 0.5, "c": 0.5}}
    assert memory["weights"] == half


def test_a_cluster_without_children_is_dropped(after: Make, loaded: Make, star: Make) -> None:
    """A child that joins enters one of the remaining clusters."""
    path = after(star("abc"), clustered)
    found, key = loaded(path, star("acd"), clustered()), ClusteredAveraging().state_key
    before = found["states"]["world"]["memory"][key]
    assert (before["clusters"], sorted(before["models"])) == ({"a": 0, "c": 2}, [0, 2])
    after_a_round = found["trainer"].world.states["world"].memory[key]
    assert after_a_round["clusters"] in ({"a": 0, "c": 2, "d": 0}, {"a": 0, "c": 2, "d": 2})
    assert sorted(after_a_round["models"]) == [0, 2]


ADAM = {"step", "exp_avg", "exp_avg_sq"}


def test_an_outer_optimizer_of_another_class_starts_without_state(after: Make, loaded: Make) -> None:
    def with_outer(name: str, arguments: str) -> Topology:
        outer = f"settings: {{outer_optimizer: {{name: {name}, {arguments}}}}}"
        return tree(f"{outer}\n      {NORTH}", privacy="")

    path = after(with_outer("SGD", "lr: 0.7, momentum: 0.9"), average)
    for arguments, names in (("SGD", "lr: 0.5, momentum: 0.9"), {"momentum_buffer"}), (("Adam", "lr: 0.5"), ADAM):
        found = loaded(path, with_outer(*arguments), [Averaging()])
        state = found["trainer"].world.states["north"].memory[Averaging().state_key]["optimizer"][0]
        assert set(state) == names
        assert state.get("step", 1) == 1  # of one round
        assert found["trainer"].current_epoch == 3


def test_changes_are_logged_and_recorded(
    fit: Make,
    whole_method: Make,
    make_module: Make,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def pieces() -> list[Callback]:
        return [*whole_method(), Record(), LastCheckpoint(), Summary()]

    first = fit(tree(), pieces())
    path = LastCheckpoint.path(first)
    before = path.read_bytes()
    with caplog.at_level(logging.INFO, "worldlm"):
        fit(tree("children: [{name: a, corpus: a}, {name: e, corpus: e}]"), pieces(), resume=path,
            module=make_module(99, warmup_steps=0), max_epochs=3)  # fmt: skip
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("worldlm")]
    messages = [line for line in messages if line.startswith(("after round", "the checkpoint"))]
    old = path.with_name("until_round_2.ckpt")
    assert messages[:3] == ["after round 2: joined: e (from north)", "after round 2: left: b",
                            f"the checkpoint before the topology change is kept as {old}"]  # fmt: skip
    assert old.read_bytes() == before != path.read_bytes()
    content = json.loads((first.folder / "results.json").read_text())
    expected = {"round": 2, "joined": {"e": "north"}, "left": ["b"], "moved": {}, "changed": {}}
    assert content["changes"] == [expected]
    assert ["b" in entry["nodes"] for entry in content["rounds"]] == [True, True, False]
    assert content["rounds"][2]["nodes"]["e"]["tokens"] == 2 * 2 * 8
    routes = next(callback for callback in first.callbacks if isinstance(callback, ResidualExchange)).routes(
        first.world
    )
    assert sum(routes.values()) == sum(sum(entry["routes"].values()) for entry in content["rounds"][:2])
    assert all(number > 0 for entry in content["rounds"] for number in entry["routes"].values())
    capsys.readouterr()
    fit(LARGER, pieces(), resume=path, module=make_module(99, warmup_steps=0), max_epochs=4)
    content = json.loads((first.folder / "results.json").read_text())
    assert [entry["round"] for entry in content["changes"]] == [2, 3]
    assert content["changes"][1]["joined"] == {"b": "north"}


def test_paged_nodes_give_the_same_result(
    after: Make, fit: Make, whole_method: Make, make_module: Make, snapshot: Make, differences: Make
) -> None:
    path = after(tree())
    changed = tree(
        "children: [{name: a, corpus: a}, {name: e, corpus: e}, {name: d, corpus: d}]", "{name: c, corpus: c}"
    )
    whole, paged = (
        fit(changed, whole_method(), resume=path, module=make_module(99), max_epochs=4, paging=paging)
        for paging in (None, Paging(cache_gb=0.0))
    )
    assert differences(snapshot(paged), snapshot(whole)) == []
