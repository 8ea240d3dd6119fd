"""The local steps of one node's fit as a Lightning epoch loop.

With `fit_loop.py` the one place that touches Lightning's private loops (2.6), which is why it is pinned.
"""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.progress import _ProcessedTracker, _Progress
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

    def reset(self) -> None:
        """Set the counters for a new fit, or take up an interrupted one at its last finished optimizer step."""
        progress, optimizer = self.batch_progress, self.automatic_optimization.optim_progress
        if not self.restarting:
            progress.reset_on_run()
            self.scheduler_progress.reset_on_run()
            optimizer.reset_on_run()
        else:
            both = trackers(progress)
            finished = both[0].processed
            if finished < self.trainer.num_training_batches:  # the last batch of a fit always steps
                finished -= finished % self.trainer.accumulate_grad_batches
            again = both[0].ready - finished  # begun, but not part of a finished optimizer step
            for tracker in both:
                ready = tracker.ready - again
                tracker.ready = tracker.started = tracker.processed = tracker.completed = ready
            progress.is_last_batch = finished == self.trainer.num_training_batches
            self.scheduler_progress.reset_on_restart()
            optimizer.reset_on_restart()
        self._batches_that_stepped = self.global_step

    def count(self, num_steps: int, num_batches: int) -> None:
        """Set the optimizer steps and batches of all nodes since the run began, which Lightning calls global."""
        _, batches = trackers(self.batch_progress)
        steps = self.automatic_optimization.optim_progress.optimizer.step.total
        batches.ready = batches.started = batches.processed = batches.completed = num_batches
        steps.ready = steps.completed = self._batches_that_stepped = num_steps

    def on_run_start(self, data_fetcher: _DataFetcher) -> None:
        """Leave the fetcher alone: the sampler already starts at the first batch that is wanted."""
        data_fetcher._start_profiler = self._on_before_fetch
        data_fetcher._stop_profiler = self._on_after_fetch

    def advance(self, data_fetcher: _DataFetcher) -> None:
        self._before_batch(self.batch_progress.current.ready)
        super().advance(data_fetcher)

    def _should_check_val_fx(self, data_fetcher: _DataFetcher) -> bool:
        return False  # nodes are evaluated where the round says so, not wherever an epoch loop ends


def trackers(progress: _Progress) -> tuple[_ProcessedTracker, _ProcessedTracker]:
    """Return the current and the total counts, which are annotated as less than they are."""
    assert isinstance(progress.current, _ProcessedTracker)
    assert isinstance(progress.total, _ProcessedTracker)
    return progress.current, progress.total
