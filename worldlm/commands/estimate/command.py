"""`worldlm topology estimate`: a recipe built without weights and text, and what a run of it would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser
from rich.console import Console

from worldlm.cli.fit import RecipeCLI, UsageError, run
from worldlm.commands.estimate.speed import MAX_PARAMETERS, measure_speed
from worldlm.commands.estimate.table import draw, lines
from worldlm.commands.estimate.whole import estimate
from worldlm.models import LanguageModule
from worldlm.topology.errors import UserError
from worldlm.trainer.world_trainer import WorldTrainer

USAGE = """usage: worldlm topology estimate RECIPE [--recipe ANOTHER ...] [--tokens_per_second X] [--safe] [--a.b X ...]
RECIPE is a name or a path; --recipe lays others over it, and any setting of `worldlm prepare` may be given.
Without --tokens_per_second, the speed of models below 200 M parameters is measured by a few steps on this machine."""


class EstimateCLI(RecipeCLI):
    """Builds what `prepare` builds, and neither reads text nor makes weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_argument("--tokens_per_second", type=float | None, help="tokens that one machine trains on a second")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        self.num_slices = config.trainer.devices_per_node if config.trainer.fully_shard else 1
        super().before_instantiate_classes()
        config.data.tokenizer = "bytes"  # no text is read, and others may need the network
        speed = config.tokens_per_second
        if speed is not None and not 0 < speed < float("inf"):
            raise UsageError(f"tokens_per_second must be a finite number above 0, but is {speed:g}")

    def prepare(self, **kwargs: Any) -> None:
        """Print the estimate."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        module: LanguageModule = kwargs["model"]
        batch_size = int(kwargs["datamodule"].batch_size)
        speed, origin = self.config[self.subcommand].tokens_per_second, "given"
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        if speed is None and num_parameters < MAX_PARAMETERS:
            speed, origin = measure_speed(trainer, module, batch_size), "measured on this machine"
        found = estimate(trainer, module, batch_size, speed, self.num_slices)
        console = Console(highlight=False)
        if not console.is_terminal:  # a file has no edge to wrap at
            console.width = 160
        console.print(draw(trainer.topology.name, found))
        for line in lines(trainer.topology, found, origin):
            console.print(line, markup=False, soft_wrap=True)


def estimate_run(given: Sequence[str]) -> int:
    """Print what a run of a recipe would take.

    Args:
        given: What stands after `worldlm topology estimate`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: What a user can put right, one line each.
        FileNotFoundError: If there is no such recipe.
    """
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return 0
    own = ["--recipe", given[0], *given[1:]] if given and not given[0].startswith("-") else list(given)
    if not any(one.split("=")[0] == "--recipe" for one in own):
        raise UserError(["topology estimate needs a recipe", *USAGE.splitlines()])
    return run(["prepare", *own], EstimateCLI)
