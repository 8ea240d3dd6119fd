"""How many processes share a world, and what then cannot be done."""

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
from worldlm.trainer.strategy import WorldStrategy


def choose_processes(options: dict[str, Any], devices_per_node: int, fully_shard: bool = False) -> int:
    """Complete a Trainer's options for as many processes as they ask for.

    Args:
        options: Keyword arguments of a Lightning Trainer: `devices` and `num_nodes` are filled in, as torchrun or srun
            has started them where the user says nothing, `strategy` and `plugins` as several processes need them.
        devices_per_node: Processes that train one node together.
        fully_shard: Whether they divide the live module among themselves.

    Returns:
        The number of processes.

    Raises:
        ValueError: If they cannot be divided into teams, or shared out by another strategy, or are not those that
            torchrun or srun has started, or the module cannot be divided.
    """
    if devices_per_node < 1:
        raise ValueError(f"devices_per_node must be at least 1, got {devices_per_node}")
    if fully_shard and devices_per_node == 1:
        raise ValueError("fully_shard divides a node over its devices: devices_per_node must be at least 2, got 1")
    if fully_shard and str(options.get("precision")) in ("16", "16-mixed"):
        raise ValueError(
            f"precision is {options['precision']}, and fully_shard does not scale a loss over several devices; use "
            "bf16-mixed or 32-true"
        )
    started = _started()
    if options.get("devices") in (None, "auto"):
        options["devices"] = started[1] if started else devices_per_node
        if started and options.get("num_nodes") in (None, 1):
            options["num_nodes"] = started[2]
    devices, machines = _count(options["devices"]), options.get("num_nodes") or 1
    number = devices * machines
    if started and started[1:] != (devices, machines):
        raise ValueError(
            f"{started[0]} started {started[1] * started[2]} processes ({started[1]} on each of {started[2]} machines),"
            f" and trainer.devices is {devices}, trainer.num_nodes {machines}: leave both out; only fit takes more than"
            " one process"
        )
    if number % devices_per_node:
        raise ValueError(f"{number} processes cannot be divided into teams of devices_per_node: {devices_per_node}")
    if slurm.in_job() and not any(isinstance(one, ClusterEnvironment) for one in options["plugins"]):
        options["plugins"] = [*options["plugins"], *_environment(started)]
    if number == 1:
        return 1
    if options.get("strategy") not in (None, "auto"):
        raise ValueError(
            f"strategy is {options['strategy']!r}: WorldTrainer shares the nodes out over processes by itself; leave "
            "it out, and use devices_per_node for a node that several devices train"
        )
    options["strategy"] = WorldStrategy(devices_per_node, fully_shard)
    return number


def _started() -> tuple[str, int, int] | None:
    """Return who has started the processes of the run, how many on each machine, and on how many machines.

    Returns:
        None where it is for this process to start the others.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:  # also within srun
        number, devices = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ.get("GROUP_WORLD_SIZE", number // devices))
        if machines * devices != number:
            raise ValueError(
                f"torchrun started {number} processes on {machines} machines: there must be as many on each"
            )
        return "torchrun", devices, machines
    size = slurm.step_size()
    return ("srun", *size) if size else None


def _environment(started: tuple[str, int, int] | None) -> list[ClusterEnvironment]:
    """Return what Lightning is to know of the processes in a job of SLURM's, of which it would think otherwise."""
    if started and started[0] == "torchrun":
        return []
    return [slurm.SrunStep() if started else LightningEnvironment()]


def _count(devices: Any) -> int:
    """Return how many devices of a machine are meant, in any of Lightning's ways to say it."""
    if isinstance(devices, str) and devices.strip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, str):
        return len([one for one in devices.split(",") if one.strip()])
    if isinstance(devices, int):
        return devices if devices >= 0 else max(1, torch.cuda.device_count())
    return len(devices)


def check_metric_callbacks(callbacks: Iterable[Callback], num_ranks: int) -> None:
    """Check that nothing wants to save, or to talk to other processes, in the middle of a round.

    Raises:
        ValueError: If a ModelCheckpoint is to save between two steps, where processes do not meet.
    """
    for callback in callbacks:
        if isinstance(callback, Timer):  # what it decides takes effect at the end of a round anyway
            callback._interval = Interval.epoch
        if num_ranks == 1 or not isinstance(callback, ModelCheckpoint):
            continue
        if callback._every_n_train_steps > 0 or callback._train_time_interval is not None:
            raise ValueError(
                f"ModelCheckpoint saves between two steps, and {num_ranks} processes meet at the end of rounds only: "
                "use every_n_epochs"
            )
