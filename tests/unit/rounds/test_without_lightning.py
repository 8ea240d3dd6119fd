"""A whole algorithm on toy nodes, without a trainer and without Lightning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from worldlm.federation.averaging import weighted_mean
from worldlm.federation.messages import Download, Upload, joined
from worldlm.federation.parameters import PARTS, copy_
from worldlm.rounds import Context, RoundCallback, World, run_round
from worldlm.topology import parse_topology


class FedAvg(RoundCallback):
    """Averages whole models, weighted by tokens (McMahan et al., arXiv 1602.05629)."""

    parts = frozenset(PARTS)

    def on_receive(self, context: Context, download: Download) -> None:
        copy_(context.state.parameters, joined(download.parts))

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        models = [joined(upload.parts) for upload in uploads]
        copy_(context.state.parameters, weighted_mean(models, [upload.num_tokens for upload in uploads]))


STAR = """
name: toy
settings: {num_local_steps: 1}
root: {name: world, children: [{name: a, corpus: a}, {name: b, corpus: b}]}
"""


def test_fedavg_of_two_toy_nodes() -> None:
    def fit(context: Context) -> int:
        step, tokens = {"a": (1.0, 3), "b": (5.0, 1)}[context.node.name]
        context.state.parameters["w"] += step
        return tokens

    world = World(parse_topology(STAR, "toy.yaml"), partition={"w": "backbone"}, initial={"w": torch.zeros(2)})
    run_round(world, [FedAvg()], fit)
    assert world.states["world"].parameters["w"].tolist() == [2.0, 2.0]  # (3 * 1 + 1 * 5) / 4
    run_round(world, [FedAvg()], fit)
    assert world.states["world"].parameters["w"].tolist() == [4.0, 4.0]
    assert world.states["a"].parameters["w"].tolist() == [3.0, 3.0]
    assert (world.round, world.states["a"].num_tokens, world.states["a"].bytes_up) == (2, 6, 16)


def test_fedavg_does_not_import_lightning() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_without_lightning as this; "
        "this.test_fedavg_of_two_toy_nodes(); "
        "assert 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
