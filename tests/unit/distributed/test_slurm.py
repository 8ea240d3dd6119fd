"""The processes of a run in a SLURM job, as its environment variables describe them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from worldlm.distributed.slurm import SrunStep, step_size
from worldlm.trainer.processes import choose_processes

Environ = Callable[..., None]

JOB = {"SLURM_JOB_ID": "407", "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "0"}
"""The environment of a batch script that does not use srun, from SLURM 22.05."""

STEP = {
    **JOB,
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
"""The environment of the last of four processes that srun started."""


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Environ:
    """Return a function that sets these variables, and removes all others of SLURM and torchrun."""
    # with the variables of torchrun, the system would end the tests' process with the process that started it
    monkeypatch.setattr("worldlm.trainer.processes.follow_parent", lambda: None)

    def put(variables: dict[str, str], **more: str) -> None:
        for name in os.environ:
            if name.startswith(("SLURM_", "TORCHELASTIC", "MASTER_", "WORLD_SIZE", "LOCAL_WORLD", "GROUP_WORLD")):
                monkeypatch.delenv(name)
        for name, value in {**variables, **more}.items():
            monkeypatch.setenv(name, value)

    return put


def _chosen(**options: Any) -> dict[str, Any]:
    options = {"devices": "auto", "num_nodes": 1, "strategy": "auto", "plugins": [], **options}
    return {"number": choose_processes(options, 1), **options}


def test_the_processes_that_srun_started_are_used(environ: Environ) -> None:
    environ(STEP)
    chosen = _chosen()
    assert (chosen["number"], chosen["devices"], chosen["num_nodes"]) == (4, 2, 2)
    assert [type(plugin) for plugin in chosen["plugins"]] == [SrunStep]
    assert _chosen(devices=2, num_nodes=2)["number"] == 4


@pytest.mark.parametrize("variables", [JOB, {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1"}])
def test_a_command_without_srun_waits_for_no_other_process(variables: dict[str, str], environ: Environ) -> None:
    """Lightning would wait for the other tasks of the job, or requeue it in the middle of a round."""
    environ(variables)
    for devices, number in (("auto", 1), (1, 1), (3, 3)):
        chosen = _chosen(devices=devices)
        assert chosen["number"] == number
        assert [type(plugin) for plugin in chosen["plugins"]] == [LightningEnvironment]


def test_torchrun_within_srun_overrides_srun(environ: Environ) -> None:
    environ(STEP, TORCHELASTIC_RUN_ID="none", WORLD_SIZE="6", LOCAL_WORLD_SIZE="3", GROUP_WORLD_SIZE="2")
    chosen = _chosen()
    assert (chosen["number"], chosen["devices"], chosen["num_nodes"], chosen["plugins"]) == (6, 3, 2, [])


def test_an_environment_that_the_user_passes_is_kept(environ: Environ) -> None:
    environ(STEP)
    environment = LightningEnvironment()
    assert _chosen(plugins=[environment])["plugins"] == [environment]


@pytest.mark.parametrize(("devices", "num_nodes"), [(1, 1), (2, 1), (1, 2), (4, 1), ("auto", 3)])
def test_other_numbers_than_srun_started_are_rejected(devices: Any, num_nodes: int, environ: Environ) -> None:
    environ(STEP)
    num_devices = 2 if devices == "auto" else devices
    message = (
        rf"srun started 4 processes \(2 on each of 2 machines\), but trainer.devices is {num_devices} and "
        rf"trainer.num_nodes is {num_nodes}: leave both out; only fit runs in more than one process"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        _chosen(devices=devices, num_nodes=num_nodes)


def test_machines_with_different_numbers_of_processes_are_rejected(environ: Environ) -> None:
    environ({**STEP, "SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"})
    with pytest.raises(ValueError, match=r"srun started 3 processes on 2 machines \(2,1\): every machine must have"):
        step_size()
    environ({}, TORCHELASTIC_RUN_ID="none", WORLD_SIZE="3", LOCAL_WORLD_SIZE="2", GROUP_WORLD_SIZE="2")
    with pytest.raises(
        ValueError, match="torchrun started 3 processes on 2 machines: every machine must have the same"
    ):
        _chosen()


def test_the_rank_and_the_main_address_of_a_process(environ: Environ) -> None:
    environ(STEP)
    step = SrunStep()
    assert (step.world_size(), step.global_rank(), step.local_rank(), step.node_rank()) == (4, 3, 1, 1)
    assert step.detect()
    assert step.creates_processes_externally
    assert (step.main_address, step.main_port) == ("node07", 15_000 + (101 * 407 + 3) % 15_000)
    environ({**STEP, "SLURM_STEP_ID": "4"})
    assert step.main_port == 15_000 + (101 * 407 + 4) % 15_000  # two steps of one job use two ports
    environ(STEP, MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    assert (step.main_address, step.main_port) == ("10.0.0.1", 29500)
