"""The repetition of a run: checked before its first round, and compared with the first run after its last."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities import rank_zero_only

from worldlm.callbacks import Record
from worldlm.checkpoint.read import open_world
from worldlm.cli.fit import run_command
from worldlm.cli.parser import CommandLine
from worldlm.cli.recipe_cli import Progress, RecipeCLI
from worldlm.cli.recipe_parser import UsageError
from worldlm.commands.repeat.differences import (
    compare_results,
    environment_changes,
    join_first,
    run_changes,
    setting_changes,
)
from worldlm.commands.repeat.first_run import FirstRun
from worldlm.commands.report.settings import flat_settings
from worldlm.federation.parameters import weights_digest
from worldlm.runs.folder import CONFIG, LAST, find_saved, key_name
from worldlm.runs.results import RESULTS, read_results
from worldlm.storage.noise_key_file import find_key
from worldlm.trainer.world_trainer import WorldTrainer

_WITHOUT_EFFECT = ("trainer.devices", "trainer.num_nodes", "trainer.noise_key")
"""Settings that do not change the results: where the work is done, and where the key is."""


class DifferentRun(Exception):
    """A repetition cannot match, because its seed, text or another of its inputs differs; the reason, in one line."""


class CheckBeforeRounds(Callback):
    """Before the first round, prints what differs from the first run, and ends a repetition that cannot match.

    Args:
        first: The run that is repeated.

    Raises:
        DifferentRun: On `on_train_start`, if seed, rounds, topology, text, batches or initial weights differ.
    """

    def __init__(self, first: FirstRun) -> None:
        self.first = first

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        record = next(callback for callback in trainer.callbacks if isinstance(callback, Record))  # type: ignore[attr-defined]
        first, second = self.first.content, record.content(trainer)
        if changes := run_changes(first, second):
            raise DifferentRun(join_first(changes))
        settings = setting_changes(_settings(self.first.config), _settings(_read(trainer.folder / CONFIG)))
        for line in [*environment_changes(first, second), *settings]:
            print(f"worldlm: {line}", file=sys.stderr)


def _read(path: Path) -> str:
    return path.read_text("utf-8") if path.is_file() else ""


def _settings(config: str) -> Mapping[str, str]:
    settings = flat_settings(config) or {}
    return {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}


@dataclass(slots=True)
class Repetition:
    """A run that is repeated, and whether the results were the same."""

    first: FirstRun
    """The run that is repeated."""
    matched: bool = True
    """Whether the results were the same; known at the end."""


class RepeatCLI(RecipeCLI):
    """A RecipeCLI that compares its results with those of the first run.

    Args:
        command_line: See RecipeCLI.
        progress: See RecipeCLI.
        repetition: Names the first run, and takes the outcome.
    """

    def __init__(self, command_line: CommandLine, progress: Progress, repetition: Repetition) -> None:
        self.repetition = repetition
        super().__init__(command_line, progress)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        first = self.repetition.first.folder
        self._use_noise_key()
        if self.checkpoint is not None and self.checkpoint.resolve().is_relative_to(first.resolve()):
            raise UsageError(f"ckpt_path {self.checkpoint} belongs to {first}, the run that is to be repeated")

    def _use_noise_key(self) -> None:
        """Let the repetition draw the same noise, which needs the key of the first run.

        Raises:
            UsageError: If the first run had a noise key, and it is not in its folder and not named.
        """
        first, settings = self.repetition.first, self.config["fit"].trainer
        for recorded in first.content.get("noise_keys", []):
            path = find_key(recorded["fingerprint"], [first.folder])
            given = settings.noise_key is not None and Path(os.path.expanduser(settings.noise_key)).exists()
            if path is None and not given:
                name = key_name(recorded["fingerprint"])
                raise UsageError(
                    f"{first.folder} has no {name}: without its noise key the noise cannot be the same. Whoever has "
                    "the key can name it: --trainer.noise_key FILE"
                )
            settings.noise_key = settings.noise_key if given else str(path)

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(CheckBeforeRounds(self.repetition.first))
        return trainer

    def fit(self, **kwargs: Any) -> None:
        """Train the world again."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        self.progress.resume_from = f"{trainer.folder}/{LAST}"
        super().fit(**kwargs)

    @rank_zero_only
    def report_end(self, message: str) -> None:
        """Compare the results, and print whether they are the same."""
        first, folder = self.repetition.first, self.progress.folder
        assert folder is not None, "known since before the first round"
        content = {**first.content, "final_weights": final_weights(first)}
        self.repetition.matched, comparison = compare_results(content, read_results(folder / RESULTS))
        verdict = "matched" if self.repetition.matched else "did not match"
        print(f"done. {verdict} {first.folder}: {comparison}. {message}")


def run_again(first: FirstRun, command_line: CommandLine) -> int:
    """Repeat a run.

    Args:
        first: The run.
        command_line: The fit that repeats it.

    Returns:
        0 if the runs matched, 1 if they did not; else as `worldlm.cli.fit.run_command`.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    repetition = Repetition(first)
    try:
        status = run_command(command_line, partial(RepeatCLI, repetition=repetition))
    except DifferentRun as error:
        print(f"done. did not match {first.folder}, and was not run: {error}. results: none")
        return 1
    return status or int(not repetition.matched)


def final_weights(first: FirstRun) -> dict[str, str]:
    """Return the digests of a run's final weights, by node; of an old run, those of its last checkpoint.

    Returns:
        Nothing where they cannot be found.
    """
    recorded: dict[str, str] = first.content.get("final_weights") or {}
    if recorded:
        return recorded
    try:
        world = open_world(find_saved(first.folder))
    except ValueError:  # of a format that is no longer read
        return {}
    if world.within_round or world.num_rounds != first.content["rounds_done"]:
        return {}
    return {name: weights_digest(world.parameters(name)) for name in world.children}
