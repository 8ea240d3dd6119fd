"""Any number of processes comes to what one comes to, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from worldlm.callbacks import (
    Averaging,
    Compression,
    ExamplePrivacy,
    LastCheckpoint,
    NodeMetrics,
    Pictures,
    Record,
    Summary,
    UpdatePrivacy,
)
from worldlm.storage.paged_store import Paging
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_all_that_a_run_comes_to(
    number: int, tree: Topology, busy_tree: Topology, deep: Topology, single: Topology, whole: Make, on_ranks: Make,
    differences: Make,
) -> None:  # fmt: skip
    worlds = [tree, busy_tree, deep, single]
    found = on_ranks(number, lambda: [whole(world) for world in worlds])
    for i, world in enumerate(worlds):
        alone = whole(world)
        assert differences(found[0][i]["all"], alone["all"]) == [], world.name
        assert sorted(name for rank in found for name in rank[i]["here"]) == sorted(world.nodes)
        assert sum(bool(rank[i]["here"]) for rank in found) == min(number, sum(n.fits for n in world.data_nodes))
        for rank in found:
            assert rank[i]["metrics"] == alone["metrics"]
            assert rank[i]["all"]["global_step"] == alone["all"]["global_step"]


def test_nodes_on_disk_and_packed_messages(deep: Topology, whole: Make, on_ranks: Make, differences: Make) -> None:
    """Processes keep the pages of their own nodes, and messages travel as they are counted."""

    def run(**options: Any) -> Any:
        return whole(deep, callbacks=[Compression("bf16", "int8")], **options)["all"]

    found = on_ranks(2, lambda: run(paging=Paging(cache_gb=0.0)))
    assert differences(found[0], run()) == []


def test_what_is_written(tree: Topology, whole: Make, on_ranks: Make, tmp_path: Path) -> None:
    def run(folder: str) -> dict[str, Any]:
        logger = TensorBoardLogger(tmp_path / folder, name="", version="")
        callbacks = [Record(), Pictures(), Summary(), LastCheckpoint()]
        result: dict[str, Any] = whole(tree, callbacks=callbacks, logger=logger, log_every_n_steps=1)
        return result

    on_ranks(3, lambda: run("ranks"))
    run("one")
    (record, events), (same_record, same_events) = _written(tmp_path / "ranks"), _written(tmp_path / "one")
    assert record == same_record
    assert events.keys() == same_events.keys()
    assert [tag for tag in events if events[tag] != same_events[tag]] == []
    assert (tmp_path / "ranks" / "checkpoints" / "last.ckpt").is_file()


def _written(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    record = json.loads((folder / "results.json").read_text())
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.endswith("tokens_per_second")]
    assert "c/perplexity_before" in tags
    assert "d/loss" in tags
    assert "world/bytes" in tags
    scalars = {tag: sorted((one.step, one.value) for one in events.Scalars(tag)) for tag in tags}
    texts = {tag: sorted(str(one.tensor_proto) for one in events.Tensors(tag)) for tag in events.Tags()["tensors"]}
    return {**record, "seconds": 0, "last_start": {}}, {**scalars, **texts}


class SaveRounds(Callback):
    """Saves a checkpoint at the end of every round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / f"round{trainer.world.round}.ckpt", weights_only=False)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_resume_on_another_number_of_processes(
    every: int, deep: Topology, whole: Make, on_ranks: Make, differences: Make, save_everywhere: Make, tmp_path: Path
) -> None:
    """From the end of a round that several processes wrote, and from every step that one process wrote."""
    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    alone = whole(deep, callbacks=[saver])
    on_ranks(3, lambda: whole(deep, callbacks=[SaveRounds(tmp_path)]))
    assert len(saver.saved) > 20
    files = [*sorted(tmp_path.glob("round*.ckpt")), *saver.saved[::every]]
    found = on_ranks(2, lambda: [whole(deep, resume=path)["all"] for path in files])
    for path, resumed in zip(files, found[0], strict=True):
        del resumed["callbacks"]  # process 0 keeps the token counts of a fit that another has finished
        assert differences(resumed, {name: alone["all"][name] for name in resumed}) == [], path.name
    for path in files[:2]:
        assert differences(whole(deep, resume=path)["all"], alone["all"]) == [], path.name


def test_callbacks_that_follow_a_metric(star: Make, fit: Make, on_ranks: Make, tmp_path: Path) -> None:
    """They stop, and save, in the same round everywhere."""

    def run(folder: str) -> list[Any]:
        best = ModelCheckpoint(tmp_path / folder, monitor="a/perplexity_after_fit", save_top_k=1, filename="{epoch}")
        stop = EarlyStopping("perplexity_after_merge", patience=1, min_delta=1e9)
        trainer = fit(star("abc"), [Averaging(), NodeMetrics(), best, stop], max_epochs=9)
        return [trainer.current_epoch, str(best.best_model_score), Path(best.best_model_path).name]

    assert on_ranks(3, lambda: run("ranks")) == [run("one")] * 3


def test_budgets_that_run_out(fit: Make, snapshot: Make, differences: Make, on_ranks: Make) -> None:
    """A node's own process knows its ledger; its parent's must learn that it takes no more part."""
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
