"""What a run came to: the closing table, and the board's first page."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table

from worldlm.federation.parameters import PARTS
from worldlm.models import LanguageModule
from worldlm.monitoring.node_metrics import MOMENTS
from worldlm.topology import Node, draw_tree
from worldlm.trainer import FederationCallback, WorldTrainer

_MAX_NODES = 24
"""Nodes whose final figures stand beside the settings."""


class Summary(FederationCallback):
    """Describes the run on the board when it starts, and closes it with a table per node and the run's folder."""

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            trainer.run_log.text("topology", "```text\n" + draw_tree(trainer.topology) + "\n```")
            if changes := trainer.world.changes:
                told = [*changes.lines(), *changes.warnings()]
                trainer.run_log.text("changes", "  \n".join(told), trainer.world.changed_after)

    def on_train_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        if not trainer.is_global_zero:
            return
        rows = {node.name: row(trainer, node) for node in trainer.topology.nodes.values()}
        self._log_hparams(trainer, pl_module, rows)
        table = Table(title=f"{trainer.topology.name} after {trainer.world.round + 1} rounds")
        table.add_column("node")
        shown = [name for name in _COLUMNS if any(name in figures for figures in rows.values())]
        for name in shown:
            table.add_column(name, justify="right")
        for node in trainer.topology.nodes.values():
            figures = rows[node.name]
            depth = len(trainer.topology.path(node.name)) - 1
            cells = [_cell(name, figures) for name in shown]
            table.add_row("  " * depth + node.name, *cells)
        console = Console()
        if not console.is_terminal:  # a file has no edge to wrap at
            console.width = 160
        console.print(table)
        for name, state in trainer.world.states.items():
            if state.attention:
                weights = ", ".join(f"{one} {weight:.2f}" for one, weight in state.attention.items())
                console.print(f"{name} attended to {weights}", highlight=False)
        if routes := trainer.method.routes(trainer.world):
            counts = ", ".join(f"{path} ({count})" for path, count in routes.most_common())
            console.print(f"residuals went {counts}", highlight=False)
        if refusals := trainer.method.refusals(trainer.world):
            counts = "; ".join(f"{reason} ({count})" for reason, count in refusals.most_common())
            console.print(f"residuals refused: {counts}", highlight=False)
        for line in (*_LEGEND, *(told for column, told in _LEGENDS.items() if column in shown)):
            console.print(line, highlight=False)

    @staticmethod
    def _log_hparams(trainer: WorldTrainer, module: LightningModule, rows: dict[str, dict[str, float]]) -> None:
        method = [type(one).__name__ for one in trainer.callbacks if getattr(one, "parts", None)]  # type: ignore[attr-defined]
        settings: dict[str, Any] = {
            "Merged by": ", ".join(method),
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
        data = {node.name: rows[node.name] for node in trainer.topology.data_nodes}
        metrics: dict[str, float] = {}
        for moment in MOMENTS:
            found = [figures[moment] for figures in data.values() if moment in figures]
            metrics |= {f"hp/mean/{moment}": sum(found) / len(found)} if found else {}
        for name, figures in list(rows.items())[:_MAX_NODES]:
            metrics |= {f"hp/{name}/{moment}": figures[moment] for moment in MOMENTS if moment in figures}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, metrics)


def headline(trainer: WorldTrainer, module: LanguageModule) -> str:
    """Say in a line what is about to be trained, and with how many processes and threads."""
    tree, threads = trainer.topology, torch.get_num_threads()
    sizes: dict[str, int] = dict.fromkeys(PARTS, 0)
    for name, part in module.partition().items():
        sizes[part] += module.get_parameter(name).numel()
    parts = ", ".join(f"{part} {size / 1e6:.2f} M" for part, size in sizes.items())
    listening = sum(node.listens for node in tree.data_nodes)
    return (
        f"{tree.name}: {len(tree.nodes)} nodes in {tree.depth} levels, {len(tree.data_nodes)} with data"
        f"{f', of which {listening} listen' if listening else ''}; "
        f"{sum(sizes.values()) / 1e6:.2f} M parameters ({parts}); "
        f"{f'{trainer.num_ranks} processes of ' if trainer.num_ranks > 1 else ''}{threads} thread{'s' * (threads > 1)}"
    )


_LEGEND = (
    "perplexity per token (bits per byte) on held-out text: before, as all nodes started; after_merge, as its",
    "federation made the node; after_fit, after its own steps; passes over its own text; MB from and to its parent",
)

_LEGENDS = {
    "missed": "missed: sub-rounds in which it took part, and nothing of it arrived",
    "refused": "refused: uploads of it that were unfit to be merged",
}

_COLUMNS = {
    "before": "{:.2f}",
    "after_merge": "{:.2f}",
    "after_fit": "{:.2f}",
    "tokens": "{:,}",
    "passes": "{:.2f}",
    "MB down": "{:.1f}",
    "MB up": "{:.1f}",
    "missed": "{:,}",
    "refused": "{:,}",
    "epsilon": "{:.2f}",
    "example epsilon": "{:.2f}",
}


def _cell(column: str, figures: dict[str, float]) -> str:
    if column not in figures:
        return ""
    told = _COLUMNS[column].format(figures[column])
    bits = figures.get(f"{column} bits")
    return told if bits is None else f"{told} ({bits:.2f})"


def row(trainer: WorldTrainer, node: Node) -> dict[str, float]:
    """Gather a node's figures, by column; what does not apply to it is missing."""
    name, state = node.name, trainer.world.states[node.name]
    figures = trainer.method.node_figures(node, state)
    if node.holds_data:
        figures["tokens"] = state.num_tokens
        text: Any = trainer.fit_loop.loaders[name].dataset
        figures["passes"] = state.num_tokens / (len(text) * getattr(text, "seq_len", 1))
    if trainer.topology.parent(name) is not None:
        figures["MB down"] = state.bytes_down / 1e6
        figures["MB up"] = state.bytes_up / 1e6
        figures |= {"missed": state.num_missed} if state.num_missed else {}
    at = [state, *(trainer.world.states[above.name] for above in [trainer.topology.parent(name)] if above)]
    refused = sum(one.refused.get(name, 0) for one in at)
    figures |= {"refused": refused} if refused else {}
    return figures
