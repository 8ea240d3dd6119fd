"""The number of processes that share a world, and the Trainer options that several processes exclude."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.callbacks.timer import Interval

from worldlm.distributed import slurm
from worldlm.runs.parent_process import follow_parent
from worldlm.trainer.strategy import WorldStrategy


def choose_processes(options: dict[str, Any], devices_per_node: int, fully_shard: bool = False) -> int:
    """Complete the options of a Trainer for the number of processes that they set.

    Args:
        options: Keyword arguments of a Lightning Trainer; changed in place. `devices` and `num_nodes` are set to what
            torchrun or srun has started, unless the user sets them. `strategy` and `plugins` are set to what several
            processes need.
        devices_per_node: Processes that train one node together.
        fully_shard: Whether these processes shard the live module.

    Returns:
        The number of processes.

    Raises:
        ValueError: If the processes cannot be divided into teams, another strategy is set, torchrun or srun has
            started another number of processes, or the module cannot be sharded.
    """
    follow_parent()  # of a script; the command line has done it already
    if devices_per_node < 1:
        raise ValueError(f"devices_per_node must be at least 1, got {devices_per_node}")
    if fully_shard and devices_per_node == 1:
        raise ValueError("fully_shard divides a node over its devices: devices_per_node must be at least 2, got 1")
    if fully_shard and str(options.get("precision")) in ("16", "16-mixed"):
        raise ValueError(
            f"precision is {options['precision']}, and fully_shard does not support loss scaling over several devices: "
            "use bf16-mixed or 32-true"
        )
    started = _started()
    if options.get("devices") in (None, "auto"):
        options["devices"] = started[1] if started else devices_per_node
        if started and options.get("num_nodes") in (None, 1):
            options["num_nodes"] = started[2]
    devices, machines = _count(options["devices"]), options.get("num_nodes") or 1
    num_ranks = devices * machines
    if started and started[1:] != (devices, machines):
        raise ValueError(
            f"{started[0]} started {started[1] * started[2]} processes ({started[1]} on each of {started[2]} machines),"
            f" but trainer.devices is {devices} and trainer.num_nodes is {machines}: leave both out; only fit runs in"
            " more than one process"
        )
    if num_ranks % devices_per_node:
        raise ValueError(f"{num_ranks} processes cannot be divided into teams of devices_per_node: {devices_per_node}")
    if slurm.in_job() and not any(isinstance(plugin, ClusterEnvironment) for plugin in options["plugins"]):
        options["plugins"] = [*options["plugins"], *_environment(started)]
    if num_ranks == 1:
        return 1
    if options.get("strategy") not in (None, "auto"):
        raise ValueError(
            f"strategy is {options['strategy']!r}, but WorldTrainer distributes the nodes over processes itself: leave "
            "it out; devices_per_node lets several devices train one node"
        )
    options["strategy"] = WorldStrategy(devices_per_node, fully_shard)
    return num_ranks


def _started() -> tuple[str, int, int] | None:
    """Return which launcher has started the processes of the run, how many per machine, and on how many machines.

    Returns:
        None if no launcher has started them; this process then starts the others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # also within srun
        num_ranks, devices = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ.get("GROUP_WORLD_SIZE", num_ranks // devices))
        if machines * devices != num_ranks:
            raise ValueError(
                f"torchrun started {num_ranks} processes on {machines} machines: "
                "every machine must have the same number of processes"
            )
        return "torchrun", devices, machines
    size = slurm.step_size()
    return ("srun", *size) if size else None


def _environment(started: tuple[str, int, int] | None) -> list[ClusterEnvironment]:
    """Return the plugin that describes the processes of a SLURM job, which Lightning would detect wrongly."""
    if started and started[0] == "torchrun":
        return []
    return [slurm.SrunStep() if started else LightningEnvironment()]


def _count(devices: Any) -> int:
    """Return the number of devices of a machine, given in any form that Lightning accepts."""
    if isinstance(devices, str) and devices.strip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, str):
        return len([index for index in devices.split(",") if index.strip()])
    if isinstance(devices, int):
        return devices if devices >= 0 else max(1, torch.cuda.device_count())
    return len(devices)


def check_metric_callbacks(callbacks: Iterable[Callback], num_ranks: int) -> None:
    """Check that no callback saves, or communicates with other processes, in the middle of a round.

    Raises:
        ValueError: If a ModelCheckpoint saves between two steps, where processes do not synchronise.
    """
    for callback in callbacks:
        if isinstance(callback, Timer):  # its decision takes effect at the end of a round in any case
            callback._interval = Interval.epoch
        if num_ranks == 1 or not isinstance(callback, ModelCheckpoint):
            continue
        if callback._every_n_train_steps > 0 or callback._train_time_interval is not None:
            raise ValueError(
                f"ModelCheckpoint saves between two steps, but {num_ranks} processes synchronise only at the end of a "
                "round: use every_n_epochs"
            )
