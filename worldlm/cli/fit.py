"""`worldlm fit`, `validate` and `prepare`: LightningCLI with recipes, run folders and one-line errors."""

import os
import shlex
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.callbacks import Record
from worldlm.callbacks.defaults import DEFAULT_CALLBACKS
from worldlm.cli.console import log_to_terminal, quiet_libraries
from worldlm.cli.parser import part
from worldlm.cli.recipe import LayRecipe, RecipeError, explain, no_memory, read_recipe
from worldlm.cli.safe_mode import OPTION, add_current_folder, restricted_imports
from worldlm.cli.shared_settings import shared_settings
from worldlm.data import CorpusDataModule
from worldlm.distributed.consistency import this_process
from worldlm.distributed.threads import choose_num_threads
from worldlm.distributed.transport import RankLost
from worldlm.models import LanguageModule
from worldlm.monitoring.summary import headline
from worldlm.runs.folder import LAST, at_work, check_name, find_checkpoint, find_version
from worldlm.storage.host_memory import keep_freed_memory
from worldlm.topology import Shape, find_file
from worldlm.topology.errors import UserError
from worldlm.topology.reader import Reader
from worldlm.trainer.strategy import WorldStrategy
from worldlm.trainer.world_trainer import WorldTrainer

MORE = f"""{OPTION} refuses all classes in a recipe but those of worldlm, torch and lightning. worldlm fit --repeat RUN
runs a finished run once more, and says whether it came to the same."""
"""What commands take beside settings: the end of their help."""


class UsageError(ValueError):
    """What a user wrote cannot be used."""


class RecipeParser(LightningArgumentParser):
    """Raises what is wrong instead of printing a page of usage; takes no value for the name of a file to read."""

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> Any:
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(message) from ex


class RecipeCLI(LightningCLI):
    """Builds model, data and trainer from recipes, and runs them in a folder of their own: runs/NAME/version_N."""

    def __init__(self, recipes: list[Path], typed: str = "", safe: bool = False) -> None:
        self.recipes, self.typed, self.safe = recipes, typed, safe
        self.readers: list[Reader] = []
        self.known: set[str] = set()
        self.folder: Path | None = None
        self.checkpoint: Path | None = None
        super().__init__(
            LanguageModule,
            CorpusDataModule,
            trainer_class=WorldTrainer,
            parser_class=RecipeParser,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    # ------------------------------------------------------------------ settings

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "weights_only"},
            "validate": {"model", "dataloaders", "datamodule", "weights_only", "verbose"},
            "prepare": {"model", "datamodule"},
        }

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument("--recipe", action=LayRecipe, help="name or path of a recipe; may be repeated")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--federation.topology", type=str, help="name or path of a topology")
        parser.add_argument("--name", type=str | None, help="name of the run's folder; by default the recipes'")
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
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
        """Check the recipes' names before their values."""
        command = self._subcommand_parsers[sys.argv[1]]
        command.epilog = MORE
        settings = (action.dest for action in command._actions)
        self.known = {name for name in settings if not name.endswith(".help")}
        self.readers = [read_recipe(path, self.known, self.safe) for path in self.recipes]
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        """Take the model from the recipe, not from the checkpoint."""

    # ------------------------------------------------------------------ the run's folder

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if self.subcommand != "fit":
            config.trainer.devices = config.trainer.num_nodes = config.trainer.devices_per_node = 1
            config.trainer.fully_shard = False
        if self.subcommand == "prepare":
            config.trainer.logger = config.trainer.enable_progress_bar = False
            return
        if config.trainer.fast_dev_run:
            self.save_config_callback = None  # a trial leaves nothing behind
        name = check_name(config.name or "-".join(path.stem for path in self.recipes) or "world")
        runs = Path(config.runs) / name
        self.checkpoint = find_checkpoint(config.ckpt_path, runs)
        config.ckpt_path = str(self.checkpoint) if self.checkpoint else None
        if self.subcommand == "validate":
            if self.checkpoint is None:
                raise UsageError(f"validate needs a checkpoint: --ckpt_path FILE, or last for the last of {runs}")
            config.trainer.logger = config.trainer.enable_progress_bar = False
        elif config.trainer.logger in (None, True):
            version = find_version(self.checkpoint, runs)
            logger = {"save_dir": config.runs, "name": name, "version": version, "default_hp_metric": False}
            config.trainer.logger = _namespace("lightning.pytorch.loggers.TensorBoardLogger", logger)

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; to prepare data, a model without weights will do."""
        with torch.device("meta") if self.subcommand == "prepare" else nullcontext():
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        trainer = self._get(self.config_init, "trainer")
        given = trainer["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        assert self.subcommand is not None
        defaults = DEFAULT_CALLBACKS[self.subcommand]
        missing = [cls() for cls in defaults if not any(isinstance(one, cls) for one in given)]
        trainer["callbacks"] = [*given, *missing]
        made = super().instantiate_trainer(**kwargs)
        torch.set_num_threads(choose_num_threads(made.num_devices))
        return made

    # ------------------------------------------------------------------ commands

    def prepare(self, **kwargs: Any) -> None:
        """Tokenise and pack the text of every node."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        data: CorpusDataModule = kwargs["datamodule"]
        trainer.prepare(kwargs["model"], data)
        for node in trainer.topology.data_nodes:
            told = ", ".join(f"{split} {len(data.blocks[split][node.name])} blocks" for split in data.blocks)
            print(f"{node.name}: {node.corpus}, {told}, {data.bytes_per_token[node.name]:.2f} bytes a token")
        print(f"done. packed text: {Path(data.cache_dir).expanduser()}")

    def fit(self, **kwargs: Any) -> None:
        """Train the world, and stop between two steps on SIGTERM and on the first Ctrl-C."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        self.folder = trainer.folder
        if self.checkpoint is None:
            self.model.check_init_from()
        record = next(one for one in trainer.callbacks if isinstance(one, Record))  # type: ignore[attr-defined]
        record.command = self.typed
        from_there = f"; goes on from {self.checkpoint}" if self.checkpoint else ""
        rank_zero_only(print)(headline(trainer, self.model) + from_there)
        if isinstance(trainer.strategy, WorldStrategy):
            # -P: Python would look in the current folder first
            begin, end = (["-P"], [OPTION]) if self.safe else ([], [])
            trainer.strategy.command = [sys.executable, *begin, "-m", "worldlm", *sys.argv[1:], *end]
            trainer.strategy.must_match |= shared_settings(self.config[self.subcommand])
        before = signal.signal(signal.SIGINT, lambda *_: _interrupt(trainer))
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        try:
            with at_work(Path(self.folder)) if trainer.is_global_zero and not trial else nullcontext():
                trainer.fit(**kwargs)
        finally:
            signal.signal(signal.SIGINT, before)
        runs = Path(self.config[self.subcommand].runs)
        board = runs if self.folder.is_relative_to(runs) else self.folder
        told = f"results: {self.folder} (tensorboard --logdir {board})"
        if self.checkpoint and not record.began:
            rounds, more = trainer.current_epoch, f"for more: --trainer.max_epochs {2 * trainer.current_epoch}"
            told = f"nothing was left to do, all {rounds} rounds were done before; {more}. {told}"
        self.done("a trial, of which nothing is kept" if trial else told)

    def done(self, told: str) -> None:
        """Close what was told with the line that names the results."""
        rank_zero_only(print)(f"done. {told}")

    def told_to_go_on(self) -> str:
        """Return the command that goes on with a fit that was stopped: as it was typed, from the last checkpoint."""
        _, typed = part(shlex.split(self.typed), "--ckpt_path")
        return shlex.join([*typed, "--ckpt_path", "last"])

    def validate(self, **kwargs: Any) -> None:
        """Evaluate every node of a checkpoint."""
        self.trainer.validate(**kwargs, verbose=False)
        print(f"done. nodes as they stand in {self.checkpoint}")


def _interrupt(trainer: WorldTrainer) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not trainer.training:
        raise KeyboardInterrupt
    if trainer.num_ranks == 1:
        print("\nstopping after this step; Ctrl-C again stops at once, without a checkpoint", file=sys.stderr)
    elif trainer.is_global_zero:
        print("\nstopping; what was done since the last finished round is lost", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)


def _namespace(class_path: str, init_args: dict[str, Any]) -> Any:
    return Namespace(class_path=class_path, init_args=Namespace(init_args))  # type: ignore[no-untyped-call]


# ---------------------------------------------------------------------- errors


def run(given: list[str], kind: type[RecipeCLI] = RecipeCLI) -> int:
    """Run a command of Lightning's.

    Args:
        given: The command line, beginning with fit, validate or prepare.
        kind: What reads it and carries it out.

    Returns:
        The exit status.

    Raises:
        UserError: What a user can put right, one line each.
    """
    quiet_libraries()
    keep_freed_memory()
    typed, safe = shlex.join(["worldlm", *given]), OPTION in given
    if not safe:
        add_current_folder()
    given, recipes = _resolve([one for one in given if one != OPTION])
    if not recipes and not {"-h", "--help"} & set(given):
        told = f"{given[0]} needs a recipe: worldlm {given[0]} --recipe NAME_OR_PATH; try --recipe quickstart"
        raise RecipeError([told])
    sys.argv = ["worldlm", *given]
    cli = kind.__new__(kind)
    try:
        with log_to_terminal(), restricted_imports(safe):
            cli.__init__(recipes, typed, safe)  # type: ignore[misc]
    except SIGTERMException:
        rank_zero_only(print)(f"stopped; go on with: {cli.told_to_go_on()}. results so far: {cli.folder}")
        return 143
    except RankLost as error:
        print(f"worldlm: {error}", file=sys.stderr)
        return 1
    except (ValueError, MisconfigurationException, FileNotFoundError, MemoryError, RuntimeError) as error:
        memory = no_memory(error)
        if os.environ.get("WORLDLM_DEBUG") or (isinstance(error, RuntimeError) and not memory):
            raise
        rank: int = getattr(rank_zero_only, "rank", 0)
        told = memory or explain(str(error), cli.readers, cli.known, given)
        raise RecipeError([f"{this_process(rank)}: {line}" if rank else line for line in told.splitlines()]) from error
    except OSError as error:
        if cli.folder is None:
            raise
        where = f": {cli.folder}" if error.errno is not None and error.filename is None else ""
        saved = (cli.folder / LAST).is_file()
        again = "; once that is put right, go on with --ckpt_path last" if saved else ""
        raise UserError([f"{error}{where}{again}"]) from error
    return 0


def _resolve(given: list[str]) -> tuple[list[str], list[Path]]:
    """Replace recipes' names by their paths."""
    arguments, recipes, expects = [], [], False
    for one in given:
        name = one if expects else one.removeprefix("--recipe=") if one.startswith("--recipe=") else None
        if name is not None:
            recipes.append(find_file("recipes", name))
            arguments.append(str(recipes[-1]) if expects else f"--recipe={recipes[-1]}")
        else:
            arguments.append(one)
        expects = one == "--recipe"
    return arguments, recipes
