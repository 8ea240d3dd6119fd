"""LightningCLI with recipes and run folders: it builds model, data and trainer, and carries out a command."""

from __future__ import annotations

import os
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only

from worldlm.callbacks import Record
from worldlm.callbacks.defaults import with_defaults
from worldlm.cli.ending import early_end, rounds_done
from worldlm.cli.fit_signals import handlers
from worldlm.cli.loggers import in_folder, tensorboard_command
from worldlm.cli.parser import REPEAT, CommandLine
from worldlm.cli.recipe import MergeRecipe, read_recipe
from worldlm.cli.recipe_parser import RecipeParser, UsageError
from worldlm.cli.recipe_scalars import check_scalars, quote_words
from worldlm.cli.safe_mode import OPTION
from worldlm.cli.safe_values import check_safe_values
from worldlm.cli.shared_settings import shared_settings
from worldlm.cli.signals import handling
from worldlm.data import CorpusDataModule
from worldlm.data.cutting import describe
from worldlm.data.spread import node_texts, spread_lines
from worldlm.distributed.threads import choose_num_threads
from worldlm.files.atomic_write import write_text
from worldlm.models import LanguageModule
from worldlm.monitoring.summary import headline
from worldlm.runs.folder import CONFIG, LAST, check_name, find_checkpoint, find_folder, make_folder
from worldlm.runs.lock import remove_unused
from worldlm.topology import Shape
from worldlm.topology.lint import placeholders
from worldlm.topology.reader import Reader
from worldlm.trainer.run_folder import RUNS
from worldlm.trainer.strategy import WorldStrategy
from worldlm.trainer.world_trainer import WorldTrainer

_EPILOG = f"""{OPTION} rejects all classes in a recipe but those of worldlm, torch and lightning. worldlm fit {REPEAT}
RUN runs a finished run again and compares the results."""
"""The end of a command's help: the options that are no settings."""

COMMANDS = {
    "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
    "validate": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
    "prepare": {"model", "datamodule"},
}
"""The commands of LightningCLI, and those arguments of the trainer's method that are no settings."""


@dataclass(slots=True)
class Progress:
    """How far a command has come: what its error messages need."""

    readers: list[Reader] = field(default_factory=list)
    """The recipes, to look up lines in."""
    known: set[str] = field(default_factory=set)
    """Dotted names of all settings."""
    folder: Path | None = None
    """The run's folder; None before a fit has begun."""
    resume_from: str = "last"
    """The value of `--ckpt_path` that continues a stopped run."""


class SaveSettings(SaveConfigCallback):
    """Writes config.yaml into the run's folder, atomically."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file before training."""
        if trainer.is_global_zero and not self.already_saved:
            write_text(trainer.folder / CONFIG, self.parser.dump(self.config, skip_none=False))  # type: ignore[attr-defined]
        self.already_saved = True


class RecipeCLI(LightningCLI):
    """Builds model, data and trainer from recipes, and carries out a command; a fit writes to runs/NAME/version_N.

    Args:
        command_line: The command, its settings and its recipes.
        progress: Updated on the way; an error message needs it, and the CLI itself does not exist until it is done.
    """

    def __init__(self, command_line: CommandLine, progress: Progress | None = None) -> None:
        self.command_line = command_line
        self.progress = progress or Progress()
        self.checkpoint: Path | None = None
        self.runs = self.folder = Path()
        """The folder of all runs, and that of this one; known before anything is built."""
        with ExitStack() as self._at_end:
            super().__init__(
                LanguageModule,
                CorpusDataModule,
                trainer_class=WorldTrainer,
                parser_class=RecipeParser,
                parser_kwargs={"prog": "worldlm"},
                save_config_callback=SaveSettings,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=command_line.words,
            )

    @property
    def known(self) -> set[str]:
        """Dotted names of all settings."""
        return self.progress.known

    # ------------------------------------------------------------------ settings

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the command that is carried out: making the parsers of all would take longer than to read a recipe."""
        return {self.command_line.command: COMMANDS[self.command_line.command]}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs, allow_abbrev=False)
        parser.add_argument("--recipe", action=MergeRecipe, help="name or path of a recipe; may be repeated")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--federation.topology", type=str, help="name or path of a topology")
        parser.add_argument("--name", type=str | None, help="name of the run's folder; by default the recipes'")
        parser.add_argument("--runs", type=str | None, help="folder of all runs; by default runs")
        parser.add_argument(
            "--federation.settings", type=dict[str, Any] | None, help="settings laid over those at the topology's top"
        )
        parser.add_argument("--federation.shape", type=Shape, default="tree", help="another shape for the topology")
        parser.add_argument(
            "--federation.num_subrounds", type=int | None, help="sub-rounds of federations below the root, steps shared"
        )
        for name in ("topology", "shape", "num_subrounds"):
            parser.link_arguments(f"federation.{name}", f"trainer.{name}")
        parser.link_arguments("federation.settings", "trainer.settings")
        parser.link_arguments("seed_everything", "trainer.seed")
        parser.set_defaults({"trainer.enable_model_summary": False})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check the recipes' keys and classes, parse all values, and with `--safe` check these too."""
        command_parser: RecipeParser = self._subcommand_parsers[self.command_line.command]  # type: ignore[assignment]
        command_parser.epilog = _EPILOG
        self.progress.known = set(command_parser.declared)
        recipes, safe = self.command_line.recipes, self.command_line.safe
        self.progress.readers = [read_recipe(path, self.known, safe) for path in recipes]
        for reader in self.progress.readers:
            check_scalars(reader, command_parser.declared)
        for warning in (line for reader in self.progress.readers for line in placeholders(reader)):
            rank_zero_only(warnings.warn)(warning, stacklevel=2)
        self.config = parser.parse_args(quote_words(args, command_parser.declared))
        if safe:
            given = {word.removeprefix("--").split("=")[0] for word in self.command_line.settings if word[:2] == "--"}
            defaults = {key: command_parser.get_default(key) for key in ("data.cache_dir",)}
            check_safe_values(self.config[self.command_line.command], given, defaults)

    def _parse_ckpt_path(self) -> None:
        """Take the model from the recipe, not from the checkpoint."""

    # ------------------------------------------------------------------ building

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            self.save_config_callback = None
            config.trainer.logger = config.trainer.enable_progress_bar = False
            config.trainer.devices = config.trainer.num_nodes = config.trainer.devices_per_node = 1
            config.trainer.fully_shard = False
        if self.subcommand == "prepare":
            return
        if config.trainer.fast_dev_run:
            self.save_config_callback = None  # a trial run writes no files
        name = check_name(config.name or "-".join(path.stem for path in self.command_line.recipes) or "world")
        self.runs = _folder_of_runs(config)
        runs = self.runs / name
        self.checkpoint = find_checkpoint(config.ckpt_path, runs)
        config.ckpt_path = str(self.checkpoint) if self.checkpoint else None
        if self.subcommand == "validate" and self.checkpoint is None:
            raise UsageError(f"validate needs a checkpoint: --ckpt_path FILE, or last for the last of {runs}")
        if self.subcommand == "fit":
            self.folder = find_folder(self.checkpoint, runs) or self._make_folder(runs)

    def _make_folder(self, runs: Path) -> Path:
        """Make the folder of a new run. It is removed at the end if it is empty, because the run could not start."""
        if self.config["fit"].trainer.fast_dev_run or getattr(rank_zero_only, "rank", 0):
            return runs  # a trial run writes no files, and other processes use the folder of process 0
        folder = make_folder(runs)
        self._at_end.callback(remove_unused, folder, self.runs)
        return folder

    def instantiate_classes(self) -> None:
        """Build model, data and trainer. `prepare` needs no weights, so it builds the model on the meta device."""
        settings = self.config[self.subcommand].trainer
        loggers, settings.logger = settings.logger, in_folder(settings.logger, self.folder)
        with torch.device("meta") if self.subcommand == "prepare" else nullcontext():
            super().instantiate_classes()
        settings.logger = loggers  # in config.yaml, so that a run that repeats this one has its own folder

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        settings = self._get(self.config_init, "trainer")
        callbacks = settings["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        assert self.subcommand is not None
        settings["callbacks"] = with_defaults(self.subcommand, callbacks, settings)
        trainer: Any = super().instantiate_trainer(**kwargs)
        trainer.folder = self.folder
        torch.set_num_threads(choose_num_threads(trainer.num_devices))
        return trainer

    # ------------------------------------------------------------------ commands

    def prepare(self, **kwargs: Any) -> None:
        """Tokenise and pack the text of every node."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        data: CorpusDataModule = kwargs["datamodule"]
        trainer.prepare(kwargs["model"], data)
        for node in trainer.data_nodes:
            blocks = ", ".join(f"{split} {describe(data.blocks[split][node.name])}" for split in data.blocks)
            print(f"{node.name}: {node.corpus}, {blocks}, {data.bytes_per_token[node.name]:.2f} bytes a token")
        for line in spread_lines(node_texts(trainer.data_nodes, data.blocks["train"])):
            print(line)
        print(f"done. packed text: {Path(os.path.expanduser(data.cache_dir))}")

    def validate(self, **kwargs: Any) -> None:
        """Evaluate every node of a checkpoint."""
        self.trainer.validate(**kwargs)
        print(f"done. checkpoint: {self.checkpoint}")

    def fit(self, **kwargs: Any) -> None:
        """Train the world. SIGTERM, SIGHUP and the first Ctrl-C stop it between two steps."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        self.progress.folder = self.folder
        if self.checkpoint is None or self.model.lora.is_given:  # a resumed run reads the frozen model again
            self.model.check_init_from()
        record = next(callback for callback in trainer.callbacks if isinstance(callback, Record))  # type: ignore[attr-defined]
        record.command = self.command_line.text
        origin = f"; resumes from {self.checkpoint}" if self.checkpoint else ""
        rank_zero_only(print)(headline(trainer, self.model) + origin)
        self._prepare_other_processes(trainer)
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        with handling(handlers(trainer)):
            trainer.fit(**kwargs)
        if not trial:
            self._report_early_end(trainer)
        self.report_end("a trial run, which writes no files" if trial else self._results_line(trainer, record))

    def _report_early_end(self, trainer: WorldTrainer) -> None:
        """Print why the run ended before its last round, and the command that goes on."""
        reason, remedy = early_end(trainer)
        if not reason:
            return
        rounds = trainer.max_epochs
        of = f" of {rounds}" if rounds is not None and rounds > 0 else ""
        line = f"stopped after round {rounds_done(trainer)}{of}: {reason}"
        if (trainer.folder / LAST).is_file():
            resume = self.command_line.resume_command(self.progress.resume_from)
            line += f"; to go on{f' with {remedy}' if remedy else ''}: {resume}"
        rank_zero_only(print)(line)

    def report_end(self, message: str) -> None:
        """Print the last line of a fit, which names its results."""
        rank_zero_only(print)(f"done. {message}")

    def _prepare_other_processes(self, trainer: WorldTrainer) -> None:
        if isinstance(trainer.strategy, WorldStrategy):
            trainer.strategy.command = self.command_line.process_command()
            trainer.strategy.must_match |= shared_settings(self.config[self.subcommand])

    def _results_line(self, trainer: WorldTrainer, record: Record) -> str:
        tensorboard = tensorboard_command(trainer.loggers, self.runs)
        results = f"results: {trainer.folder}" + (f" ({tensorboard})" if tensorboard else "")
        if not self.checkpoint or record.began or early_end(trainer)[0]:
            return results
        rounds = trainer.current_epoch
        return f"all {rounds} rounds were done before; for more: --trainer.max_epochs {2 * rounds}. {results}"


def _folder_of_runs(config: Namespace) -> Path:
    """Return the folder of all runs: `--runs`, or that in `default_root_dir`, by default the current folder."""
    for name, text in (("runs", config.runs), ("trainer.default_root_dir", config.trainer.default_root_dir)):
        if "://" in str(text):
            raise UsageError(f"{name} is {text}, but must be a local folder")
    return Path(os.path.expanduser(config.runs or Path(config.trainer.default_root_dir or "") / RUNS))
