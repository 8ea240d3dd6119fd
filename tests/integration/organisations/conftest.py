"""Organisations that each run one node, in a process and a folder of its own."""

from __future__ import annotations

import multiprocessing
import random
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from organisations_at_home import be_organisation, of_node

from worldlm.organisations.organisation import Organisation
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.fixture
def at_home(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a job for each node of a topology, and returns the results by node.

    With `kills`, it kills and restarts so many organisations on the way, at random moments. Without `carried`, the job
    itself exchanges the messages.
    """
    calls = 0

    def run(topology: Topology, job: Make, kills: int = 0, carried: bool = True) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        folder, rng = tmp_path / f"organisations-{calls}", random.Random(calls)
        context = multiprocessing.get_context("fork")

        def start(name: str) -> Any:
            process = context.Process(target=be_organisation, args=(folder, topology, name, job, carried))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking, which is safe with one thread
                process.start()
            return process

        for name in topology.nodes:
            (folder / name).mkdir(parents=True)
        processes = {name: start(name) for name in topology.nodes}
        deadline, next_kill = time.monotonic() + 120 + 5 * kills, time.monotonic() + rng.uniform(0.0, 0.8)
        while any(process.is_alive() for process in processes.values()) and time.monotonic() < deadline:
            if any(process.exitcode for process in processes.values()):
                break  # the others would wait for it
            if kills and time.monotonic() > next_kill:
                name = rng.choice([name for name, process in processes.items() if process.is_alive()])
                processes[name].kill()
                processes[name].join()
                processes[name] = start(name)
                kills, next_kill = kills - 1, time.monotonic() + rng.uniform(0.0, 0.8)
            time.sleep(0.02)
        for process in processes.values():
            process.kill()
            process.join()
        assert kills == 0, f"all ended {kills} kills too early"
        errors = [path.read_text() for path in folder.glob("*/error")]
        assert not errors, "\n".join(errors)
        results = {name: folder / name / "result.pt" for name in topology.nodes}
        assert all(path.exists() for path in results.values()), "an organisation hangs"
        return {name: torch.load(path, weights_only=True) for name, path in results.items()}

    return run


@pytest.fixture
def one_node(fit: Make, whole_method: Make, make_module: Make, snapshot: Make) -> Callable[..., Make]:
    """Return a builder of the job of an organisation: it trains its node, and returns the node's state."""

    def build(topology: Topology, method: Make | None = None, dropout: float = 0.0, **options: Any) -> Make:
        def job(organisation: Organisation, folder: Path) -> Mapping[str, Any]:
            callbacks = (method or whole_method)()
            module = make_module(dropout=dropout)
            last = folder / "checkpoints" / "last.ckpt"
            trainer = fit(
                topology,
                callbacks,
                module=module,
                organisation=organisation,
                default_root_dir=folder,
                resume=last if last.exists() else None,
                **options,
            )
            return of_node(snapshot(trainer), organisation.node)

        return job

    return build
