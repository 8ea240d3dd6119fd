"""A run that is interrupted at any time and resumed ends like a run that was not interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from worldlm.callbacks import LastCheckpoint
from worldlm.topology import Topology

WITHIN = ("on_train_batch_end", "on_train_epoch_end")
BEGUN = ("on_train_epoch_start", "on_train_batch_start")

Make = Callable[..., Any]


def from_every(step: int) -> pytest.MarkDecorator:
    """Resume from every so-manieth checkpoint, among them one within each round and one between; slow: from each."""
    return pytest.mark.parametrize("every", [step, pytest.param(1, marks=pytest.mark.slow)])


@from_every(3)
@pytest.mark.parametrize("hooks", [WITHIN, BEGUN], ids=["after", "before"])
def test_resume_from_steps(
    hooks: tuple[str, ...],
    every: int,
    tree: Topology,
    whole_method: Make,
    resume_from_all: Make,
) -> None:
    assert resume_from_all(tree, whole_method, hooks, every=every) == 2 * (6 + 1)


@from_every(5)
@pytest.mark.parametrize(
    "hooks", [pytest.param(WITHIN, id="after"), pytest.param(BEGUN, id="before", marks=pytest.mark.slow)]
)
def test_resume_within_accumulation_with_dropout(
    hooks: tuple[str, ...],
    every: int,
    tree: Topology,
    whole_method: Make,
    resume_from_all: Make,
) -> None:
    options = {"accumulate_grad_batches": 2, "dropout": 0.3, "limit_train_batches": 3, "limit_val_batches": 0}
    assert resume_from_all(tree, whole_method, hooks, every=every, **options) == 2 * (2 * 3 + 2 * 2 + 1)


@from_every(4)
def test_resume_with_subrounds_and_a_parent_that_holds_data(
    every: int,
    busy_tree: Topology,
    whole_method: Make,
    resume_from_all: Make,
) -> None:
    assert resume_from_all(busy_tree, whole_method, WITHIN, every=every, gradient_clip_val=0.5) == 2 * (2 * 3 + 2 + 1)


@pytest.mark.parametrize(
    "change", [(True, False), (False, True), pytest.param((False, False), marks=pytest.mark.slow)], ids=str
)
def test_resume_with_copied_weights(
    change: tuple[bool, bool],
    busy_tree: Topology,
    fit: Make,
    make_module: Make,
    whole_method: Make,
    save_everywhere: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    before, after = change
    saver = save_everywhere(*WITHIN)
    fit(busy_tree, [*whole_method(), saver], share_memory=before)
    whole = snapshot(fit(busy_tree, whole_method(), share_memory=True))
    for path in saver.saved[::8]:
        resumed = fit(busy_tree, whole_method(), resume=path, module=make_module(99), share_memory=after)
        assert differences(snapshot(resumed), whole) == [], path.name


class Terminate(Callback):
    """Sends SIGTERM during the n-th batch of the run."""

    def __init__(self, batch: int, hook: str = "on_train_batch_end") -> None:
        self.batch = batch
        self.seen = 0
        setattr(self, hook, self._count)

    def _count(self, trainer: Any, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            trainer._signal_connector.received_sigterm = True


@pytest.mark.slow
def test_sigterm_at_every_step(
    busy_tree: Topology,
    fit: Make,
    make_module: Make,
    whole_method: Make,
    snapshot: Make,
    differences: Make,
    tmp_path: Path,
) -> None:
    quick = {"limit_val_batches": 0}
    whole = fit(busy_tree, [*whole_method(), LastCheckpoint()], default_root_dir=tmp_path / "whole", **quick)
    num_batches = whole.fit_loop.epoch_loop.batch_progress.total.completed
    assert num_batches == 2 * (2 * 3 + 2)
    expected = snapshot(whole)
    for batch in range(1, num_batches + 1):
        folder = tmp_path / str(batch)
        trainer = fit(
            busy_tree, [*whole_method(), Terminate(batch), LastCheckpoint()], default_root_dir=folder, **quick
        )
        assert trainer.interrupted, batch
        assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == batch
        path = LastCheckpoint.path(trainer)
        resumed = fit(
            busy_tree,
            [*whole_method(), LastCheckpoint()],
            resume=path,
            module=make_module(99),
            default_root_dir=folder,
            **quick,
        )
        assert differences(snapshot(resumed), expected) == [], f"SIGTERM during batch {batch}"


def test_sigterm_with_dropout_and_copied_weights(
    tree: Topology,
    fit: Make,
    make_module: Make,
    whole_method: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    options: dict[str, Any] = {"share_memory": False, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    expected = snapshot(fit(tree, whole_method(), module=make_module(dropout=0.3), **options))
    for batch in (2, 7):
        callbacks = [*whole_method(), Terminate(batch, "on_train_batch_start"), LastCheckpoint()]
        trainer = fit(tree, callbacks, module=make_module(dropout=0.3), **options)
        path = LastCheckpoint.path(trainer)
        resumed = fit(tree, whole_method(), resume=path, module=make_module(9, dropout=0.3), **options)
        assert differences(snapshot(resumed), expected) == [], f"SIGTERM during batch {batch}"


def test_resuming_a_finished_run_changes_nothing(
    tree: Topology,
    fit: Make,
    make_module: Make,
    whole_method: Make,
    save_everywhere: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    saver = save_everywhere("on_train_epoch_end")
    trainer = fit(tree, [*whole_method(), saver])
    resumed = fit(tree, whole_method(), resume=saver.saved[-1], module=make_module(99))
    left, right = snapshot(resumed), snapshot(trainer)
    assert differences(left, right) == []


def test_a_run_can_be_extended_by_more_rounds(
    tree: Topology, fit: Make, make_module: Make, whole_method: Make, save_everywhere: Make, snapshot: Make
) -> None:
    saver = save_everywhere("on_train_epoch_end")
    fit(tree, [*whole_method(), saver])
    longer = fit(tree, whole_method(), resume=saver.saved[0], module=make_module(99), max_epochs=3)
    assert longer.current_epoch == 3
    assert {node.num_visits for name, node in longer.world.states.items() if name in "abcd"} == {3}
