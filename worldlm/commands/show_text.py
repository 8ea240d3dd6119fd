"""`worldlm topology show FILE --recipe RECIPE`: draws a topology, and how the text of a recipe is spread over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worldlm.cli.fit import run_command
from worldlm.cli.parser import parse_command_line
from worldlm.cli.recipe_cli import RecipeCLI
from worldlm.data import CorpusDataModule
from worldlm.data.spread import node_texts, spread_lines
from worldlm.topology import draw_tree, find_file
from worldlm.topology.errors import UserError
from worldlm.trainer.world_trainer import WorldTrainer


class ShowCLI(RecipeCLI):
    """Prepares the text, which takes no time if it is prepared already, and shows where it is."""

    def prepare(self, **kwargs: Any) -> None:
        """Print the tree, and the text of its nodes."""
        trainer: WorldTrainer = self.trainer  # type: ignore[assignment]
        data: CorpusDataModule = kwargs["datamodule"]
        trainer.prepare(kwargs["model"], data)
        print(draw_tree(trainer.topology))
        for line in spread_lines(node_texts(trainer.data_nodes, data.blocks["train"])):
            print(line)


def show_text(arguments: Sequence[str]) -> int:
    """Draw a topology and show how the text of a recipe is spread over its nodes.

    Args:
        arguments: The words after `worldlm topology show`: a file, `--recipe`, and settings of `worldlm prepare`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
        FileNotFoundError: If there is no such file or recipe.
    """
    file, *settings = arguments
    if file.startswith("-"):
        raise UserError(["topology show: name the topology first: worldlm topology show FILE --recipe RECIPE"])
    if pictures := [word for word in settings if word.partition("=")[0] in ("--format", "--out")]:
        raise UserError([f"topology show: {pictures[0]} and --recipe cannot be combined"])
    path = find_file("topologies", file)
    return run_command(parse_command_line(["prepare", *settings, "--federation.topology", str(path)]), ShowCLI)
