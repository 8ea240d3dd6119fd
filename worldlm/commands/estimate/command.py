"""`worldlm topology estimate`: builds a recipe without weights and text, and estimates what a run of it takes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser

from worldlm.cli.console import table_console
from worldlm.cli.fit import run_command
from worldlm.cli.parser import Parser, parse_command_line
from worldlm.cli.recipe_cli import RecipeCLI
from worldlm.cli.recipe_parser import UsageError
from worldlm.commands.estimate.run_estimate import estimate
from worldlm.commands.estimate.speed import MAX_PARAMETERS, measure_speed
from worldlm.commands.estimate.table import draw, lines
from worldlm.models import LanguageModule
from worldlm.trainer.world_trainer import WorldTrainer

_USAGE = "worldlm topology estimate RECIPE [--recipe ANOTHER ...] [--tokens_per_second X] [--safe] [--a.b X ...]"
_DESCRIPTION = """RECIPE is a name or a path. Each --recipe is laid over it, and any setting of `worldlm prepare` may be
given. Without --tokens_per_second, the speed of a model below 200 M parameters is measured with a few steps here."""


class EstimateCLI(RecipeCLI):
    """Builds what `prepare` builds. It reads no text and allocates no weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--tokens_per_second", type=float | None, help="tokens per second that one machine trains on"
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.num_slices = config.trainer.devices_per_node if config.trainer.fully_shard else 1
        super().before_instantiate_classes()
        config.data.tokenizer = "bytes"  # no text is read, and other tokenizers may need the network
        speed = config.tokens_per_second
        if speed is not None and not 0 < speed < float("inf"):
            raise UsageError(f"tokens_per_second must be a finite number above 0, but is {speed:g}")

    def prepare(self, **kwargs: Any) -> None:
        """Print the estimate."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        module: LanguageModule = kwargs["model"]
        batch_size = int(kwargs["datamodule"].batch_size)
        speed, origin = self.config[self.subcommand].tokens_per_second, "given"
        frozen = (module.get_buffer(name) for name in module.frozen)
        num_parameters = sum(tensor.numel() for tensor in (*module.parameters(), *frozen))
        if speed is None and num_parameters < MAX_PARAMETERS:
            print("worldlm: measuring the speed of this machine; --tokens_per_second X skips it", file=sys.stderr)
            speed, origin = measure_speed(trainer, module, batch_size), "measured on this machine"
        result = estimate(trainer, module, batch_size, speed, self.num_slices)
        console = table_console(160)
        console.print(draw(trainer.topology.name, result))
        for line in lines(trainer.topology, result, origin):
            console.print(line, markup=False, soft_wrap=True)


def estimate_run(arguments: Sequence[str]) -> int:
    """Print an estimate of what a run of a recipe takes.

    Args:
        arguments: The words after `worldlm topology estimate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
        FileNotFoundError: If there is no such recipe.
    """
    parser = Parser("worldlm topology estimate", _DESCRIPTION, _USAGE)
    words = list(arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--recipe")
    command_line = parse_command_line(["prepare", *words])
    if command_line.asks_for_help:
        parser.print_help()
        return 0
    if not command_line.recipes:
        parser.error("needs a recipe")
    return run_command(command_line, EstimateCLI)
