"""The repetition of a run: checked before its first round, compared after its last."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_only

from worldlm.callbacks import Record
from worldlm.checkpoint.read import open_world
from worldlm.cli.fit import RecipeCLI, UsageError, run
from worldlm.cli.parser import part
from worldlm.commands.repeat.command import OPTION, FirstRun
from worldlm.commands.repeat.differences import another, in_a_line, outcome, settings, surroundings
from worldlm.commands.report.settings import flat_settings
from worldlm.monitoring.record import weights_digest
from worldlm.runs.folder import CONFIG, LAST, find_saved
from worldlm.runs.results import RESULTS, read_results
from worldlm.trainer.world_trainer import WorldTrainer

_DEVICES = ("trainer.devices", "trainer.num_nodes")
"""What a run comes to does not depend on them."""


class AnotherRun(Exception):
    """What was to be repeated is not what would be run; the reason, in a line."""


class BeforeRounds(Callback):
    """Tells, before the first round, what differs from the run that is repeated; ends a repetition that cannot match.

    Args:
        first: The run that is repeated.

    Raises:
        AnotherRun: On `on_train_start`, if seed, rounds, tree, text, batches or first weights differ.
    """

    def __init__(self, first: FirstRun) -> None:
        self.first = first

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        record = next(one for one in trainer.callbacks if isinstance(one, Record))  # type: ignore[attr-defined]
        here, first = record.content(trainer), self.first.content
        if found := another(first, here):
            raise AnotherRun(in_a_line(found))
        for line in [*surroundings(first, here), *self._settings(trainer.folder / CONFIG)]:
            print(f"worldlm: {line}", file=sys.stderr)

    def _settings(self, path: Path) -> list[str]:
        texts = (self.first.config, path.read_text("utf-8") if path.is_file() else "")
        first, here = (flat_settings(text) or {} for text in texts)
        kept = [{name: value for name, value in one.items() if name not in _DEVICES} for one in (first, here)]
        return settings(kept[0], kept[1])


class RepeatCLI(RecipeCLI):
    """Fits as RecipeCLI, and compares what came of it."""

    first: ClassVar[FirstRun]
    matched = True

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        if self.checkpoint is not None and self.checkpoint.resolve().is_relative_to(self.first.folder.resolve()):
            raise UsageError(f"ckpt_path {self.checkpoint} is of {self.first.folder}, the run that is to be repeated")

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        made = super().instantiate_trainer(**kwargs)
        made.callbacks.append(BeforeRounds(self.first))
        return made

    def told_to_go_on(self) -> str:
        _, options = part(self.first.options, "--ckpt_path")
        goes_on = [*options, "--ckpt_path", f"{self.folder}/{LAST}"]
        return shlex.join(["worldlm", "fit", OPTION, str(self.first.folder), *goes_on])

    @rank_zero_only
    def done(self, told: str) -> None:
        """Say whether it matched."""
        assert self.folder is not None, "known since before the first round"
        first = {**self.first.content, "final_weights": final_weights(self.first)}
        self.matched, why = outcome(first, read_results(self.folder / RESULTS))
        print(f"done. {'matched' if self.matched else 'did not match'} {self.first.folder}: {why}. {told}")


def run_again(first: FirstRun, given: list[str]) -> int:
    """Repeat a run.

    Args:
        first: The run.
        given: The command line that repeats it, beginning with fit.

    Returns:
        0 if it matched, 1 if it did not, else as `worldlm.cli.fit.run`.

    Raises:
        UserError: What a user can put right, one line each.
    """
    made: list[RepeatCLI] = []

    class Again(RepeatCLI):
        def __init__(self, *args: Any) -> None:
            made.append(self)
            super().__init__(*args)

    Again.first = first
    try:
        status = run(given, Again)
    except AnotherRun as error:
        print(f"done. did not match {first.folder}, and was not run: {error}. results: none")
        return 1
    return status or int(not made[0].matched)


def final_weights(first: FirstRun) -> dict[str, str]:
    """Return the digests of a run's final weights; of one that did not write them down, from its last checkpoint.

    Returns:
        By node; nothing where they are not known.
    """
    known: dict[str, str] = first.content.get("final_weights") or {}
    if known:
        return known
    try:
        world = open_world(find_saved(first.folder))
    except ValueError:  # of a format that is no longer read
        return {}
    if world.within_round or world.num_rounds != first.content["rounds_done"]:
        return {}
    return {name: weights_digest(world.parameters(name)) for name in world.children}
