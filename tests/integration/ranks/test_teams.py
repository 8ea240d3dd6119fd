"""Several processes that train one node together."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.mark.parametrize(("number", "size"), [pytest.param(2, 2, marks=pytest.mark.slow), (4, 2)])
def test_two_devices_with_half_the_batch_give_the_result_of_one(
    number: int, size: int, tree_without_noise: Topology, whole: Make, on_ranks: Make, differences: Make, tmp_path: Path
) -> None:
    def run(folder: str, **options: Any) -> Any:
        options |= {"logger": CSVLogger(tmp_path / folder, "", ""), "log_every_n_steps": 1, "gradient_clip_val": 1.0}
        options["limit_val_batches"] = 0
        return whole(tree_without_noise, **options)

    ranks, alone = on_ranks(number, lambda: run("teams", devices_per_node=size)), run("alone")
    states = alone["all"]["world"]["states"]
    for name, state in ranks[0]["all"]["world"]["states"].items():
        for figure in ("num_steps", "num_batches", "num_tokens", "bytes_up", "bytes_down", "participants"):
            assert state[figure] == states[name][figure]
        for key, value in state["parameters"].items():
            torch.testing.assert_close(value, states[name]["parameters"][key], rtol=1e-4, atol=1e-5)
    for rank in range(0, number, size):  # the ranks of a team have the same nodes, bit for bit
        assert [ranks[rank + i]["local"] for i in range(size)] == [ranks[rank]["local"]] * size
        assert differences(ranks[rank]["all"]["live"], ranks[rank + 1]["all"]["live"]) == []
    assert _losses(tmp_path / "teams") == pytest.approx(_losses(tmp_path / "alone"), rel=1e-3)  # over the whole batch


def _losses(folder: Path) -> list[float]:
    with open(folder / "metrics.csv") as stream:
        losses = [float(row["a/loss"]) for row in csv.DictReader(stream) if row["a/loss"]]
    assert len(losses) > 1
    return losses


def test_batches_that_cannot_be_divided_are_rejected(star: Make, whole: Make, on_ranks: Make) -> None:
    def rejected() -> str:
        with pytest.raises(ValueError) as caught:
            whole(star("ab", b="settings: {batch_size: 3}"), devices_per_node=2)
        return str(caught.value)

    message = "b: its batches of 3 cannot be divided evenly among 2 devices; see devices_per_node"
    assert on_ranks(2, rejected) == [message] * 2
