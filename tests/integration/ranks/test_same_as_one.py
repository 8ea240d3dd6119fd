"""Any number of processes gives the same result as one process, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldlm.callbacks import (
    Averaging,
    ClusteredAveraging,
    Compression,
    Ditto,
    ExamplePrivacy,
    LastCheckpoint,
    NodeMetrics,
    Pictures,
    Record,
    Summary,
    TokenRows,
    UpdatePrivacy,
)
from worldlm.storage.paged_store import Paging
from worldlm.storage.pages import fetch
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]


ALL = ("tree", "busy_tree", "deep", "single")


@pytest.mark.parametrize(
    ("number", "names"),
    [(2, ("deep", "single")), *(pytest.param(number, ALL, marks=pytest.mark.slow) for number in (2, 3, 4))],
    ids=str,
)
def test_state_and_metrics_of_a_run(
    number: int,
    names: tuple[str, ...],
    request: pytest.FixtureRequest,
    whole: Make,
    on_ranks: Make,
    differences: Make,
) -> None:
    worlds = [request.getfixturevalue(name) for name in names]
    ranks = on_ranks(number, lambda: [whole(world) for world in worlds])
    for i, world in enumerate(worlds):
        alone = whole(world)
        assert differences(ranks[0][i]["all"], alone["all"]) == [], world.name
        assert sorted(name for rank in ranks for name in rank[i]["local"]) == sorted(world.nodes)
        assert sum(bool(rank[i]["local"]) for rank in ranks) == min(number, sum(n.fits for n in world.data_nodes))
        for rank in ranks:
            assert rank[i]["metrics"] == alone["metrics"]
            assert rank[i]["all"]["global_step"] == alone["all"]["global_step"]


DEEP = pytest.mark.parametrize("name", ["busy_tree", pytest.param("deep", marks=pytest.mark.slow)])


@DEEP
@pytest.mark.parametrize("number", [3, pytest.param(2, marks=pytest.mark.slow)])
def test_the_whole_checkpoint(
    name: str,
    number: int,
    request: pytest.FixtureRequest,
    whole: Make,
    on_ranks: Make,
    differences: Make,
    tmp_path: Path,
) -> None:
    """All keys of the file but the duration, in the same order. So is that of a run that resumed."""
    world = request.getfixturevalue(name)

    def run(folder: str, resume: Path | None = None) -> None:
        callbacks = [Record(), LastCheckpoint(keep_every_n_rounds=1)]
        whole(world, callbacks=callbacks, default_root_dir=tmp_path / folder, resume=resume)

    first_round = tmp_path / "single" / "checkpoints" / "round_1.ckpt"
    run("single")
    for folder, resume in (("ranks", None), ("resumed", first_round)):
        on_ranks(number, partial(run, folder, resume))
    alone = _saved(tmp_path / "single")
    for folder in ("ranks", "resumed"):
        saved = _saved(tmp_path / folder)
        assert differences(saved, alone) == []
        assert _keys(saved) == _keys(alone)


def _saved(folder: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    del checkpoint["worldlm_seconds"]
    return checkpoint


def _keys(nest: Any) -> list[Any]:
    """Return the keys of nested dicts in their order."""
    return [(key, _keys(value)) for key, value in nest.items()] if isinstance(nest, dict) else []


@DEEP
def test_nodes_on_disk_and_packed_messages(
    name: str, request: pytest.FixtureRequest, whole: Make, on_ranks: Make, differences: Make
) -> None:
    """Every process keeps the pages of the nodes that it holds, and sends the packed messages."""

    world = request.getfixturevalue(name)

    def run(**options: Any) -> Any:
        return whole(world, callbacks=[Compression("bf16", "int8")], **options)["all"]

    ranks = on_ranks(2, lambda: run(paging=Paging(cache_gb=0.0)))
    assert differences(ranks[0], run()) == []


def test_methods_that_personalise(star: Make, fit: Make, snapshot: Make, differences: Make, on_ranks: Make) -> None:
    def run() -> list[Any]:
        clustered = ClusteredAveraging(min_similarity=0.1, leaf_download_rate=0.5)
        options = {"max_epochs": 3, "limit_val_batches": 0}
        return [
            fetch(snapshot(fit(star("abc", "participation: 0.67"), [TokenRows(), averaging], **options)))
            for averaging in (clustered, Ditto(0.5))
        ]

    ranks = on_ranks(2, run)
    for i, alone in enumerate(run()):
        assert differences(ranks[0][i], alone) == []


def test_record_and_events(tree: Topology, whole: Make, on_ranks: Make, tmp_path: Path) -> None:
    def run(folder: str) -> dict[str, Any]:
        logger = TensorBoardLogger(tmp_path / folder, name="", version="")
        callbacks = [Record(), Pictures(), Summary(), LastCheckpoint()]
        options = {"logger": logger, "default_root_dir": tmp_path / folder, "log_every_n_steps": 1}
        result: dict[str, Any] = whole(tree, callbacks=callbacks, **options)
        return result

    on_ranks(3, lambda: run("ranks"))
    run("single")
    (record, events), (expected_record, expected_events) = _written(tmp_path / "ranks"), _written(tmp_path / "single")
    assert record == expected_record
    assert events.keys() == expected_events.keys()
    assert [tag for tag in events if events[tag] != expected_events[tag]] == []
    assert (tmp_path / "ranks" / "checkpoints" / "last.ckpt").is_file()


def _written(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    record = json.loads((folder / "results.json").read_text())
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith("tokens_per_second")]
    assert "c/perplexity_before" in tags
    assert "d/loss" in tags
    assert "world/bytes" in tags
    scalars = {tag: sorted((event.step, event.value) for event in events.Scalars(tag)) for tag in tags}
    texts = {tag: sorted(str(event.tensor_proto) for event in events.Tensors(tag)) for tag in events.Tags()["tensors"]}
    return {**record, "seconds": 0, "last_start": {}}, {**scalars, **texts}


class SaveRounds(Callback):
    """Saves a checkpoint at the end of every round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"round{trainer.world.round}.ckpt", weights_only=False)


@pytest.mark.parametrize(
    ("name", "every"),
    [("busy_tree", 12), *(pytest.param("deep", every, marks=pytest.mark.slow) for every in (13, 1))],
)
def test_resume_on_another_number_of_processes(
    name: str,
    every: int,
    request: pytest.FixtureRequest,
    whole: Make,
    on_ranks: Make,
    differences: Make,
    save_everywhere: Make,
    tmp_path: Path,
) -> None:
    """Two processes resume from the end of a round that three have saved, and from any step that one has saved."""
    world, saver = request.getfixturevalue(name), save_everywhere("on_train_batch_end", "on_train_epoch_end")
    alone = whole(world, callbacks=[saver])
    on_ranks(3, lambda: whole(world, callbacks=[SaveRounds(tmp_path)]))
    assert len(saver.saved) > 15
    files = [*sorted(tmp_path.glob("round*.ckpt")), *saver.saved[::every]]
    ranks = on_ranks(2, lambda: [whole(world, resume=path)["all"] for path in files])
    for path, resumed in zip(files, ranks[0], strict=True):
        del resumed["callbacks"]  # process 0 keeps the token counts of a fit that another process has finished
        assert differences(resumed, {name: alone["all"][name] for name in resumed}) == [], path.name
    for path in files[:2]:
        assert differences(whole(world, resume=path)["all"], alone["all"]) == [], path.name


def test_callbacks_that_monitor_a_metric(star: Make, fit: Make, on_ranks: Make, tmp_path: Path) -> None:
    """They stop and save in the same round in all processes."""

    def run(folder: str) -> list[Any]:
        best = ModelCheckpoint(tmp_path / folder, monitor="a/perplexity_after_fit", save_top_k=1, filename="{epoch}")
        stop = EarlyStopping("perplexity_after_merge", patience=1, min_delta=1e9)
        trainer = fit(star("abc"), [Averaging(), NodeMetrics(), best, stop], max_epochs=9)
        return [trainer.current_epoch, str(best.best_model_score), Path(best.best_model_path).name]

    assert on_ranks(3, lambda: run("ranks")) == [run("single")] * 3


def test_budgets_that_run_out(fit: Make, snapshot: Make, differences: Make, on_ranks: Make) -> None:
    """A node's ledger is in its process. The parent's process receives that the node no longer takes part."""
    privacy = "{clip_norm: 0.5, noise_multiplier: 1.0, max_epsilon: 8}"
    example = "{clip_norm: 0.5, noise_multiplier: 1.0, max_epsilon: 2.5}"
    world = parse_topology(
        f"""
name: budgets
settings: {{num_local_steps: 1, batch_size: 2}}
root:
  name: world
  children:
    - {{name: a, corpus: a, settings: {{privacy: {privacy}}}}}
    - {{name: b, corpus: b}}
    - {{name: c, corpus: c, settings: {{example_privacy: {example}}}}}
    - name: d
      settings: {{privacy: {privacy}, num_subrounds: 2}}
      children: [{{name: e, corpus: e}}, {{name: f, corpus: f}}]
""",
        "budgets.yaml",
    )

    def run() -> Any:
        trainer = fit(world, [Averaging(), UpdatePrivacy(), ExamplePrivacy(), NodeMetrics()], max_epochs=4)
        return snapshot(trainer)

    alone = run()
    visits = {name: state["num_visits"] for name, state in alone["world"]["states"].items()}
    assert 0 < visits["a"] < visits["b"] == 4
    assert 0 < visits["e"] < 8
    assert 0 < visits["c"] < 4
    assert differences(on_ranks(3, run)[0], alone) == []
