"""The machine-readable record of a run."""

from __future__ import annotations

import json
import logging
import math
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from lightning.pytorch import Callback

from worldlm.callbacks import LastCheckpoint, NodeMetrics, Record
from worldlm.federation.parameters import weights_digest
from worldlm.monitoring.record import write_json
from worldlm.topology import Topology

Make = Callable[..., Any]


def read(path: Path) -> dict[str, Any]:
    def reject(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not valid JSON")

    content: dict[str, Any] = json.loads(path.read_text(), parse_constant=reject)
    return content


def without_time(content: dict[str, Any]) -> dict[str, Any]:
    assert content["seconds"] > 0
    return {name: value for name, value in content.items() if name not in ("seconds", "last_start")}


def test_the_record_of_a_run(
    tree: Topology, fit: Make, make_module: Make, whole_method: Make, accelerator: str
) -> None:
    trainer = fit(tree, [*whole_method(), Record()])
    content = read(trainer.folder / "results.json")
    assert (content["finished"], content["rounds_done"], content["rounds_wanted"]) == (True, 2, 2)
    assert content["seed"] == 7
    initial = {name: value.detach() for name, value in make_module().named_parameters()}
    assert content["initial_weights"] == weights_digest(initial)
    root = content["topology"]["root"]
    assert [node["name"] for node in root["children"]] == ["north", "south"]
    b = root["children"][0]["children"][1]
    assert (b["name"], b["corpus"], b["noise_multiplier"], b["max_epsilon"]) == ("b", "b", None, None)
    c = root["children"][1]["children"][0]
    assert (c["clip_norm"], c["noise_multiplier"], c["delta"], c["example_delta"]) == (0.5, 0.3, 1e-5, None)
    started = content["last_start"]
    device = "cpu" if accelerator == "cpu" else torch.cuda.get_device_name()
    assert (started["processes"], started["threads"], started["device"]) == (1, 1, device)
    assert started["command"] == shlex.join(sys.argv)
    assert b["told"][0] == "corpus b"
    facts = {"text": None, "tokens_crc32": None, "blocks": 13, "batch_size": 2, "steps": 2, "fits": 1}
    held_out = {"held_out_text": None, "held_out_tokens_crc32": None, "held_out_blocks": 3}
    assert content["data_nodes"]["a"] == {**facts, **held_out}
    digests = {name: weights_digest(state.parameters) for name, state in trainer.world.states.items()}
    assert content["final_weights"] == digests
    assert len(set(digests.values())) == len(digests)
    assert content["data_nodes"]["c"]["steps"] == 1
    first, second = content["rounds"]
    a = second["nodes"]["a"]
    assert (first["nodes"]["a"]["tokens"], a["tokens"]) == (2 * 2 * 8, 2 * 2 * 2 * 8)
    assert a["passes"] == 2 * 2 * 2 / 13
    assert a["bytes_down"] >= 2 * first["nodes"]["a"]["bytes_down"] > 0  # more if a residual came too
    metrics = next(callback for callback in trainer.callbacks if isinstance(callback, NodeMetrics))
    score = metrics.scores(trainer.world.states["a"])["after_fit"]
    assert a["after_fit"] == {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    assert "after_fit" not in second["nodes"]["world"]
    assert 0 < first["nodes"]["c"]["epsilon"] < second["nodes"]["c"]["epsilon"]
    assert "epsilon" not in a
    assert {name: sorted(rows) for name, rows in second["mixtures"].items() if name != "world"} == {
        "north": ["a", "b"], "south": ["c", "d"]
    }  # fmt: skip
    assert second["mixtures"]["world"].keys() >= {"north", "south"}
    assert math.isclose(sum(second["mixtures"]["north"]["a"].values()), 1.0, abs_tol=1e-6)
    exchange = next(callback for callback in trainer.callbacks if type(callback).__name__ == "ResidualExchange")
    routes = exchange.routes(trainer.world)
    assert routes == {path: first["routes"].get(path, 0) + second["routes"].get(path, 0) for path in routes}
    assert sum(second["routes"].values()) > 0


def test_a_resumed_run_writes_the_same_record_as_an_uninterrupted_one(
    tree: Topology, fit: Make, make_module: Make, whole_method: Make, save_everywhere: Make
) -> None:
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    whole = fit(tree, [*whole_method(), Record(), saver])
    expected = without_time(read(whole.folder / "results.json"))
    for path in saver.saved[2:-1:3]:
        folder = path.with_suffix("")
        fit(tree, [*whole_method(), Record()], resume=path, module=make_module(99), default_root_dir=folder)
        assert without_time(read(folder / "results.json")) == expected, path.name


def test_an_earlier_checkpoint_drops_the_rounds_after_it(
    tree: Topology, fit: Make, whole_method: Make, tmp_path: Path
) -> None:
    """In the same folder, at the end of the run and before it."""
    keep = LastCheckpoint(keep_every_n_rounds=1)
    whole = fit(tree, [*whole_method(), Record(), keep], max_epochs=4)
    expected = read(whole.folder / "results.json")
    stop = StopAfter(3)
    fit(tree, [*whole_method(), Record(), stop], resume=tmp_path / "checkpoints/round_2.ckpt", max_epochs=4)
    content = read(whole.folder / "results.json")
    assert (content["rounds_done"], content["rounds"]) == (3, expected["rounds"][:3])
    fit(tree, [*whole_method(), Record()], resume=tmp_path / "checkpoints/round_2.ckpt", max_epochs=4)
    assert without_time(read(whole.folder / "results.json")) == without_time(expected)


class StopAfter(Callback):
    """Ends a run early, after a given round."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.should_stop = trainer.world.round + 1 == self.number


def test_a_checkpoint_does_not_contain_the_rounds(
    tree: Topology, fit: Make, whole_method: Make, tmp_path: Path
) -> None:
    """Without the matching results.json, a run resumes without the earlier rounds and logs a warning."""
    first = fit(tree, [*whole_method(), record := Record(), LastCheckpoint()])
    state = torch.load(LastCheckpoint.path(first), weights_only=True)["callbacks"]["Record"]
    assert sorted(state) == ["initial_weights", "noise_keys", "num_rounds", "rounds_digest", "routes"]
    assert state["num_rounds"] == 2
    assert Counter(state["routes"]) == sum((Counter(entry["routes"]) for entry in record.rounds), Counter())
    for content in ("", json.dumps({**read(tmp_path / "results.json"), "rounds": [{}, {}]})):
        away = tmp_path / "away" / str(len(content))
        (away / "checkpoints").mkdir(parents=True)
        shutil.copy(LastCheckpoint.path(first), away / "checkpoints" / "last.ckpt")
        (away / "results.json").write_text(content)
        with logs("worldlm.monitoring.round_lines") as messages:
            more = fit(
                tree, [*whole_method(), Record()], resume=away / "checkpoints/last.ckpt", max_epochs=3,
                default_root_dir=away,
            )  # fmt: skip
        assert [entry["round"] for entry in read(more.folder / "results.json")["rounds"]] == [2]
        assert messages == [
            "no results.json beside the checkpoint contains the 2 rounds before it; the record starts with the next one"
        ]


@contextmanager
def logs(name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger."""
    messages: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger(name)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


def test_an_older_checkpoint_that_contains_the_rounds_is_read(
    tree_without_noise: Topology, fit: Make, whole_method: Make, tmp_path: Path
) -> None:
    """Older versions wrote such checkpoints."""
    first = fit(tree_without_noise, [*whole_method(), record := Record(), LastCheckpoint()])
    checkpoint = torch.load(LastCheckpoint.path(first), weights_only=True)
    checkpoint["callbacks"]["Record"] = {"initial_weights": record.initial_weights, "rounds": record.rounds}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    expected = read(tmp_path / "results.json")["rounds"]
    (tmp_path / "results.json").unlink()
    fit(tree_without_noise, [*whole_method(), Record()], resume=tmp_path / "older.ckpt", max_epochs=3)
    content = read(tmp_path / "results.json")
    assert (content["rounds"][:2], content["rounds_done"]) == (expected, 3)
    fit(tree_without_noise, [*whole_method(), Record()], max_epochs=3, default_root_dir=tmp_path / "anew")
    assert content["rounds"][2]["routes"] == read(tmp_path / "anew" / "results.json")["rounds"][2]["routes"]


def test_seconds_include_all_starts(tree: Topology, fit: Make, whole_method: Make, tmp_path: Path) -> None:
    trainer = fit(tree, [*whole_method(), Record(), LastCheckpoint()])
    checkpoint = torch.load(LastCheckpoint.path(trainer), weights_only=True)
    checkpoint["worldlm_seconds"] = 1000.0
    torch.save(checkpoint, tmp_path / "slow.ckpt")
    more = fit(tree, [*whole_method(), Record()], resume=tmp_path / "slow.ckpt", max_epochs=3)
    assert 1000 < read(more.folder / "results.json")["seconds"] < 1300


def test_a_run_resumed_without_a_record_has_no_initial_weights(tree: Topology, fit: Make, whole_method: Make) -> None:
    first = fit(tree, [*whole_method(), LastCheckpoint()])
    more = fit(tree, [*whole_method(), Record()], resume=LastCheckpoint.path(first), max_epochs=3)
    content = read(more.folder / "results.json")
    assert content["initial_weights"] is None
    assert [entry["round"] for entry in content["rounds"]] == [2]


def test_missing_evaluations_are_omitted_and_nan_is_null(
    tree: Topology, fit: Make, make_data: Make, whole_method: Make
) -> None:
    data = make_data()
    data.nodes = lambda: data.trainer.topology.data_nodes  # without bytes per token
    trainer = fit(tree, [*whole_method(), Record()], data=data, max_epochs=3, check_val_every_n_epoch=2)
    content = read(trainer.folder / "results.json")
    measured = [sorted(entry["nodes"]["a"].keys() & {"after_merge", "after_fit"}) for entry in content["rounds"]]
    assert measured == [[], ["after_fit", "after_merge"], ["after_fit", "after_merge"]]
    assert content["rounds"][1]["nodes"]["a"]["after_fit"]["bits_per_byte"] is None


def test_a_digest_depends_on_names_shapes_and_dtypes() -> None:
    w = torch.zeros(2, 3)
    variants = [{"a": w}, {"b": w}, {"a": w.T}, {"a": w.double()}, {"a": w, "b": w}, {"a": w + 1}]
    assert len({weights_digest(weights) for weights in variants}) == len(variants)
    assert weights_digest({"a": w, "b": w + 1}) == weights_digest({"b": w + 1, "a": w})
    assert weights_digest({"a": torch.arange(6).reshape(2, 3).T}) == weights_digest(
        {"a": torch.tensor([[0, 3], [1, 4], [2, 5]])}
    )


def test_a_file_is_written_atomically(tmp_path: Path) -> None:
    write_json(tmp_path / "it.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "it.json", {"a": math.nan})
    assert read(tmp_path / "it.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["it.json"]


def test_each_round_is_one_line_of_the_record(tmp_path: Path) -> None:
    content = {
        "seed": 7,
        "rounds": [{"round": 0, "nodes": {"a": [1.5, None]}}, {"round": 1}],
        "none": [],
        "text": 'a"b',
    }
    write_json(tmp_path / "results.json", content)
    assert read(tmp_path / "results.json") == content
    assert '  {"round": 0, "nodes": {"a": [1.5, null]}},' in (tmp_path / "results.json").read_text().splitlines()
    with pytest.raises(ValueError):
        write_json(tmp_path / "results.json", {"rounds": [math.nan]})
