"""Options of Lightning's Trainer that a world rejects or sets itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO, Precision

from worldlm.topology import Shape
from worldlm.trainer.run_settings import RunSettings

_ALLOWED: dict[str, tuple[tuple[object, ...], str]] = {
    "max_steps": ((-1,), "a world is counted in rounds, and stops only at the end of a round; use max_epochs"),
    "min_steps": ((), "a world is counted in rounds; use min_epochs"),
    "val_check_interval": (
        (1.0,),
        "nodes are evaluated after they merge and after they train; use check_val_every_n_epoch to evaluate every "
        "n rounds",
    ),
    "num_sanity_val_steps": ((0, 2), "every node is evaluated before the first round in any case"),
    "overfit_batches": ((0, 0.0), "every node reads its own data; use limit_train_batches"),
    "reload_dataloaders_every_n_epochs": ((0,), "a node continues to read where it stopped"),
    "barebones": (
        (False,),
        "a world cannot do without its callbacks; to measure raw speed, turn off logger, enable_checkpointing and "
        "enable_progress_bar, and set limit_val_batches to 0",
    ),
    "sync_batchnorm": ((False,), "nodes train apart, and running statistics would mix their data; use LayerNorm"),
    "model_registry": ((), "WorldLM uploads no checkpoints; export a node's model with worldlm export"),
}
"""Options that have no meaning in a world: the allowed values besides None, and why others are rejected."""


def check_options(options: dict[str, Any], plugins: Iterable[Any]) -> None:
    """Check that no option of a Trainer is without meaning in a world.

    Raises:
        ValueError: Names the option, its value, and what to use instead.
    """
    for name, (allowed, reason) in _ALLOWED.items():
        value = options.get(name)
        if repr(value) not in ("None", *map(repr, allowed)):  # 1.0 is a whole round, but 1 is one batch
            raise ValueError(f"{name} is {value!r}: {reason}")
    for name, least, hint in (
        ("check_val_every_n_epoch", 1, "limit_val_batches 0 never evaluates"),
        ("accumulate_grad_batches", 1, "1 steps the optimizer after every batch"),
        ("log_every_n_steps", 0, "0 logs no losses"),
        ("gradient_clip_val", 0, "0 does not clip"),
    ):
        value = options.get(name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}: it must be at least {least}; {hint}")
    if options.get("limit_train_batches") == 0:
        raise ValueError("limit_train_batches is 0: no node would train; to evaluate only, use validate")
    for plugin in plugins:
        if isinstance(plugin, CheckpointIO) or plugin == "async_checkpoint":
            name = plugin if isinstance(plugin, str) else type(plugin).__name__
            raise ValueError(f"plugins has {name}, but WorldLM writes its checkpoints itself: leave it out")


def check_organisation(run: RunSettings, shape: Shape) -> None:
    """Check that the options of a Trainer suit a run that holds one node, if it is one.

    Raises:
        ValueError: If the node or its mailboxes do not suit the topology, its shape would mix the nodes' text, or
            several processes share the node.
    """
    if run.organisation is None:
        return
    run.organisation.check(run.topology)
    if shape not in ("tree", "star"):
        raise ValueError(f"shape is {shape}, which trains on the text of all nodes together, but each is elsewhere")
    if run.num_ranks > 1:
        raise ValueError(
            f"an organisation's node is trained by one process, but devices and num_nodes set {run.num_ranks}"
        )


def choose_precision(options: dict[str, Any], plugins: Iterable[Any]) -> None:
    """Set `precision` to the default of the accelerator, unless it is given as an option or a plugin."""
    if options.get("precision") is None and not any(isinstance(plugin, Precision) for plugin in plugins):
        options["precision"] = default_precision(options.get("accelerator") or "auto")


def default_precision(accelerator: object) -> str:
    """Return bf16-mixed if the run uses a GPU that supports it, else 32-true."""
    uses_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if uses_gpu and torch.cuda.is_bf16_supported() else "32-true"
