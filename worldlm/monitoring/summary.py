"""The summary of a run: its closing table, and its description in TensorBoard."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from worldlm.federation.parameters import PARTS
from worldlm.models import LanguageModule, parts_of
from worldlm.monitoring.node_metrics import MOMENTS
from worldlm.monitoring.organisation_scores import RECEIVED, OrganisationScores
from worldlm.monitoring.run_facts import tree_facts
from worldlm.runs.guarantees import meanings, warnings
from worldlm.runs.results import nodes_of
from worldlm.runs.scores import far_worse_text, is_far_worse, largest_first, score_text
from worldlm.topology import Node, draw_tree
from worldlm.topology.errors import join_names
from worldlm.trainer import FederationCallback, WorldTrainer
from worldlm.trainer.loaders import tokens_per_example

_MAX_NODES = 24
"""Largest number of nodes whose final figures are logged with the settings."""


_MAX_ATTENTION_LINES = 40
"""Largest number of nodes whose attention weights are printed; the report has all."""


class Summary(FederationCallback):
    """Logs a description of the run to TensorBoard at its start, and prints a table of all nodes at its end.

    Below the table it prints the attention weights, the routes and rejections of residuals, and a legend. The settings
    of the run and its final perplexities are logged as hyperparameters.
    """

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            trainer.run_log.text("topology", "```text\n" + draw_tree(trainer.topology) + "\n```")
            if explained := meanings(nodes_of(tree_facts(trainer.topology.root, None))):
                trainer.run_log.text("privacy", "  \n".join(explained))
            if changes := trainer.world.changes:
                lines = [*changes.lines(), *changes.warnings()]
                trainer.run_log.text("changes", "  \n".join(lines), trainer.world.changed_after)

    def on_train_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        rows = {node.name: row(trainer, node) for node in trainer.topology.nodes.values()}
        if trainer.enable_autolog_hparams:
            self._log_hparams(trainer, pl_module, rows)
        number = trainer.world.round + 1
        table = Table(title=f"{trainer.topology.name} after {number} round{'s' * (number != 1)}")
        table.add_column("node")
        present = dict.fromkeys(name for figures in rows.values() for name in figures if not name.endswith(" bits"))
        shown = [name for name in present if name not in _COLUMNS] + [name for name in _COLUMNS if name in present]
        for name in shown:
            table.add_column(name, justify="right")
        for node in trainer.topology.nodes.values():
            figures = rows[node.name]
            depth = len(trainer.topology.path(node.name)) - 1
            cells = [_cell(name, figures) for name in shown]
            table.add_row("  " * depth + node.name, *cells)
        console = Console()
        if not console.is_terminal:  # a file or pipe has no width
            console.width = 160
        console.print(table)
        for line in islice(_attention_lines(trainer), _MAX_ATTENTION_LINES):
            console.print(line, highlight=False)
        if routes := trainer.method.routes(trainer.world):
            counts = ", ".join(f"{path} ({count})" for path, count in routes.most_common())
            console.print(f"residual routes: {counts}", highlight=False)
        if refusals := trainer.method.refusals(trainer.world):
            counts = "; ".join(f"{reason} ({count})" for reason, count in refusals.most_common())
            console.print(f"residuals rejected: {counts}", highlight=False)
        if worse := [name for name, figures in rows.items() if is_far_worse(*map(figures.get, MOMENTS))]:
            console.print(far_worse_text(join_names(worse, 6)), highlight=False, markup=False)
        kinds = [kind for column, kind in _EPSILONS.items() if column in shown]
        explained = meanings(nodes_of(tree_facts(trainer.topology.root, None)), kinds)
        own = any(name not in _COLUMNS for name in shown)
        legends = [line for column, line in _LEGENDS.items() if column in shown]
        spent = ((name, figures[column]) for name, figures in rows.items() for column in _EPSILONS if column in figures)
        explained += warnings(spent)
        for line in (*(_LEGEND_OF_OWN if own else _LEGEND), *limits_line(trainer), *legends, *explained):
            console.print(line, highlight=False)

    @staticmethod
    def _log_hparams(trainer: WorldTrainer, module: LightningModule, rows: dict[str, dict[str, float]]) -> None:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        settings: dict[str, Any] = {
            "Merged by": ", ".join(
                type(callback).__name__ for callback in callbacks if getattr(callback, "parts", None)
            ),
            "Rounds": trainer.world.round + 1,
            "Seed": trainer.seed,
            "Topology": trainer.topology.name,
        }
        for group, values in dict(module.hparams).items():
            settings |= (
                {f"{group}/{key}": value for key, value in values.items()}
                if isinstance(values, dict)
                else {group: values}
            )
        settings = {name: value if isinstance(value, (int, float)) else str(value) for name, value in settings.items()}
        data = {node.name: rows[node.name] for node in trainer.data_nodes}
        metrics: dict[str, float] = {}
        moments = MOMENTS[:0:-1]  # HParams shows the first ones, so the final perplexity comes first
        for moment in moments:
            values = [figures[moment] for figures in data.values() if moment in figures]
            metrics |= {f"hp/mean/{moment}": sum(values) / len(values)} if values else {}
        for name, figures in list(rows.items())[:_MAX_NODES]:
            metrics |= {f"hp/{name}/{moment}": figures[moment] for moment in moments if moment in figures}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, metrics)


def headline(trainer: WorldTrainer, module: LanguageModule) -> str:
    """Describe in one line what will be trained, and with how many processes and threads."""
    tree, threads = trainer.topology, torch.get_num_threads()
    sizes: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, part in parts_of(module).items():
        sizes[part] += module.get_parameter(name).numel()
    parts = ", ".join(f"{part} {size / 1e6:.2f} M" for part, size in sizes.items())
    kind = "parameters of adapters" if module.lora.is_given else "parameters"
    listening = sum(node.listens for node in tree.data_nodes)
    return (
        f"{tree.name}: {len(tree.nodes)} nodes in {tree.depth} levels, {len(tree.data_nodes)} with data"
        f"{f', of which {listening} listen' if listening else ''}; "
        f"{sum(sizes.values()) / 1e6:.2f} M {kind} ({parts}); "
        f"{f'{trainer.num_ranks} processes of ' if trainer.num_ranks > 1 else ''}{threads} thread{'s' * (threads > 1)}"
    )


_LEGEND = (
    "before, after_merge, after_fit: perplexity per token (bits per byte) on held-out text of the initial weights,",
    "after merging, and after local training; passes: over the node's own text; MB: from and to the parent",
)

_LEGEND_OF_OWN = (
    "before, after_merge, after_fit: on held-out data, of the initial weights, after merging, and after local training",
    "tokens: examples, if the data set has no seq_len; passes: over the node's own data; MB: from and to the parent",
)

_LEGENDS = {
    RECEIVED: "received: perplexity of the model that the parent sent; for a federation, mean over those below it",
    "missed": "missed: sub-rounds in which the node took part and its upload did not arrive",
    "refused": "refused: uploads of the node that were rejected before merging",
}

_EPSILONS = {"epsilon": "epsilon", "example epsilon": "example_epsilon"}
"""Columns of epsilon -> kinds of `worldlm.runs.guarantees`."""

_COLUMNS: dict[str, Callable[[float], str]] = {
    MOMENTS[0]: score_text,
    RECEIVED: score_text,
    **dict.fromkeys(MOMENTS[1:], score_text),
    "tokens": "{:,}".format,
    "passes": "{:.2f}".format,
    "MB down": "{:.1f}".format,
    "MB up": "{:.1f}".format,
    "missed": "{:,}".format,
    "refused": "{:,}".format,
    "epsilon": "{:.2f}".format,
    "example epsilon": "{:.2f}".format,
}


def _cell(column: str, figures: dict[str, float]) -> str:
    if column not in figures:
        return ""
    text = _COLUMNS.get(column, "{:.4g}".format)(figures[column])
    bits = figures.get(f"{column} bits")
    return text if bits is None else f"{text} ({bits:.2f})"


def limits_line(trainer: WorldTrainer) -> Iterator[str]:
    """Yield a line if only a part of the held-out text is evaluated."""
    loaders = trainer.fit_loop.val_loaders()
    limits = trainer.num_val_batches if loaders else ()
    sizes = [sized_len(loader) for loader in loaders.values()]
    if any(size is not None and limit < size for limit, size in zip(limits, sizes, strict=True)):
        yield f"limit_val_batches: of each node's held-out text, at most {max(limits)} batches are evaluated"


def row(trainer: WorldTrainer, node: Node) -> dict[str, float]:
    """Return a node's figures by column; those that do not apply are omitted.

    Of a node at another organisation, they are the perplexities that it reported, if it is a child and not private.
    """
    name, state = node.name, trainer.world.states[node.name]
    if not trainer.run_settings.holds(name):
        told = trainer.find_callback(OrganisationScores)
        return {} if told is None else dict(told.reported.get(name, {}))
    figures = trainer.method.node_figures(node, state)
    if node.holds_data:
        figures["tokens"] = state.num_tokens
        dataset: Any = trainer.fit_loop.loaders[name].dataset
        if (size := sized_len(dataset)) is not None:
            figures["passes"] = state.num_tokens / (size * tokens_per_example(dataset))
    parent = trainer.topology.parent(name)
    if parent is not None:
        figures["MB down"] = state.bytes_down / 1e6
        figures["MB up"] = state.bytes_up / 1e6
        figures |= {"missed": state.num_missed} if state.num_missed else {}
    receivers = [state] if parent is None else [state, trainer.world.states[parent.name]]
    rejected = sum(receiver.refused.get(name, 0) for receiver in receivers)
    figures |= {"refused": rejected} if rejected else {}
    return figures


def _attention_lines(trainer: WorldTrainer) -> Iterator[str]:
    """Yield what every mixture of the last round was made of, the largest weights first."""
    for name, state in trainer.world.states.items():
        children = {child.name for child in trainer.topology.nodes[name].children}
        for receiver, weights in state.attention.items():
            shown = ", ".join(f"{source} {weight:.2f}" for source, weight in largest_first(weights)[:6])
            is_child = receiver in children
            yield f"{receiver} attended to {shown}" if is_child else f"{name} answered {receiver} with {shown}"
