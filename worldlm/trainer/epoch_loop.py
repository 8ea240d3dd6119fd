"""The local steps of one node's fit as a Lightning epoch loop.

Only this module and `fit_loop.py` use Lightning's private loops (2.6), which is why the dependency is pinned.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.progress import _ProcessedTracker, _Progress, _ReadyCompletedTracker
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop


class NodeEpochLoop(_TrainingEpochLoop):
    """The local steps of one node's fit.

    Args:
        trainer: Lightning's trainer.
        before_batch: Called before every batch with its position in the fit, from 0.
    """

    def __init__(self, trainer: pl.Trainer, before_batch: Callable[[int], None]) -> None:
        super().__init__(trainer)
        self._before_batch = before_batch
        self._known = [0, 0]

    def reset(self) -> None:
        """Set the counters for a new fit, or resume an interrupted fit after its last finished optimizer step."""
        progress, optimizer = self.batch_progress, self.automatic_optimization.optim_progress
        if not self.restarting:
            progress.reset_on_run()
            self.scheduler_progress.reset_on_run()
            optimizer.reset_on_run()
        else:
            current, total = trackers(progress)
            finished = current.processed
            if finished < self.trainer.num_training_batches:  # the last batch of a fit always ends an optimizer step
                finished -= finished % self.trainer.accumulate_grad_batches
            repeated = current.ready - finished  # begun, but not part of a finished optimizer step
            for tracker in (current, total):
                ready = tracker.ready - repeated
                tracker.ready = tracker.started = tracker.processed = tracker.completed = ready
            progress.is_last_batch = finished == self.trainer.num_training_batches
            self.scheduler_progress.reset_on_restart()
            optimizer.reset_on_restart()
        self._batches_that_stepped = self.global_step

    def count(self, num_steps: int, num_batches: int) -> None:
        """Set Lightning's global counters: the optimizer steps and batches of all nodes since the run began."""
        _, batches = trackers(self.batch_progress)
        steps = self.automatic_optimization.optim_progress.optimizer.step.total
        batches.ready = batches.started = batches.processed = batches.completed = num_batches
        steps.ready = steps.completed = self._batches_that_stepped = num_steps

    def sync_counts(self, gather: Callable[[list[int]], list[list[int]]]) -> None:
        """Add up what all processes have counted since the last call, where `count` has no figures of the nodes.

        Args:
            gather: Returns the counts of all processes.
        """
        totals = self._totals()
        counted = gather([tracker.ready - known for tracker, known in zip(totals, self._known, strict=True)])
        self._known = [known + sum(column) for known, *column in zip(self._known, *counted, strict=True)]
        for tracker, number in zip(totals, self._known, strict=True):
            for name in vars(tracker):
                setattr(tracker, name, number)

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Restore the counts, which all processes read from the same checkpoint."""
        super().load_state_dict(state_dict, prefix)
        self._known = [tracker.ready for tracker in self._totals()]

    def _totals(self) -> tuple[_ReadyCompletedTracker, _ReadyCompletedTracker]:
        """Return the total counts of scheduler steps, and of gradients that were set to zero."""
        return self.scheduler_progress.total, self.automatic_optimization.optim_progress.optimizer.zero_grad.total

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Skip no batches: the sampler already starts at the first batch that is needed."""
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch

    def advance(self, data_fetcher: _DataFetcher) -> None:
        self._before_batch(self.batch_progress.current.ready)
        super().advance(data_fetcher)

    def end_fit(self) -> None:
        """Step the schedulers whose interval is the epoch: a fit is an epoch of its node."""
        with warnings.catch_warnings():  # a resumed process may not have stepped the optimizer itself
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            super().update_lr_schedulers("epoch", update_plateau_schedulers=False)

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if interval == "step":  # at the end of a round, Lightning would step those of the last node only
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return False  # the program of a round decides when nodes are evaluated, not the end of an epoch loop


def trackers(progress: _Progress) -> tuple[_ProcessedTracker, _ProcessedTracker]:
    """Return the current and the total counts. Lightning annotates both with a base class."""
    assert isinstance(progress.current, _ProcessedTracker)
    assert isinstance(progress.total, _ProcessedTracker)
    return progress.current, progress.total
