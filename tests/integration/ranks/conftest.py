"""Several processes that share a world. They are forked from the test's process, so that imports are not repeated."""

from __future__ import annotations

import multiprocessing
import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from identities import free_port
from lightning.pytorch.utilities import rank_zero_only

from worldlm.callbacks import TokenRows
from worldlm.storage.pages import fetch
from worldlm.topology import Topology, parse_topology

Job = Callable[[], Any]
Make = Callable[..., Any]

DEEP = """
name: deep
settings: {num_local_steps: 1, batch_size: 2}
root:
  name: world
  corpus: w
  children:
    - name: east
      settings: {num_subrounds: 2, participation: 0.5}
      children:
        - {name: a, corpus: a}
        - name: inner
          corpus: i
          children:
            - {name: b, corpus: b, settings: {num_local_steps: 3}}
            - name: core
              children: [{name: c, corpus: c}, {name: heard, corpus: h, settings: {num_local_steps: 0}}]
        - {name: d, corpus: d, settings: {dropout: 0.5}}
    - {name: f, corpus: f, settings: {privacy: {clip_norm: 0.5, noise_multiplier: 0.3}}}
    - {name: listener, corpus: l, settings: {num_local_steps: 0}}
"""


def _be_rank(rank: int, number: int, port: int, job: Job, result: Path) -> None:
    """Run a job with the environment that torchrun sets."""
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(number),
            "LOCAL_WORLD_SIZE": str(number),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
        }
    )
    rank_zero_only.rank = rank  # Lightning read it from the environment when it was imported, before the fork
    torch.set_num_threads(1)
    try:
        torch.save(job(), result)
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        result.with_suffix(".error").write_text(traceback.format_exc())
        raise


@pytest.fixture
def on_ranks(tmp_path: Path) -> Callable[[int, Job], list[Any]]:
    """Return a function that runs a job on a number of ranks, and returns the result of each rank."""
    calls = 0

    def run(number: int, job: Job) -> list[Any]:
        nonlocal calls
        calls += 1
        context, port = multiprocessing.get_context("fork"), free_port()
        results = [tmp_path / f"{calls}-{rank}.pt" for rank in range(number)]
        processes = [
            context.Process(target=_be_rank, args=(rank, number, port, job, result))
            for rank, result in enumerate(results)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking, which is safe with one thread
            for process in processes:
                process.start()
        for process in processes:
            process.join(120)
            process.kill()
        errors = [result.with_suffix(".error") for result in results]
        tracebacks = "\n".join(error.read_text() for error in errors if error.exists())
        assert not tracebacks
        assert all(result.exists() for result in results), "a rank hangs"
        return [torch.load(result, weights_only=True) for result in results]

    return run


@pytest.fixture
def deep() -> Topology:
    """Five levels, with data at parents, sub-rounds, listeners, sampling and a private node."""
    return parse_topology(DEEP, "deep.yaml")


@pytest.fixture
def whole(fit: Make, whole_method: Make, snapshot: Make) -> Callable[..., dict[str, Any]]:
    """Return a function that trains a world with the whole method, and returns this process's state and metrics."""

    def run(topology: Topology, **options: Any) -> dict[str, Any]:
        extra = options.pop("callbacks", [])
        trainer = fit(topology, [*whole_method(), TokenRows(), *extra], **options)
        local = [name for name in topology.nodes if trainer.world.transport.is_local(name)]
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {"all": fetch(snapshot(trainer)), "metrics": metrics, "local": local}

    return run
