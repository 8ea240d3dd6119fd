"""One node without a federation gives the same result as Lightning's own Trainer, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from families import tiny_module
from torch.utils.data import DataLoader

from worldlm.data import BlockBatchSampler
from worldlm.topology import Topology
from worldlm.trainer import WorldTrainer


class Onward(BlockBatchSampler):
    """Continues where the last epoch stopped, because Lightning requests one iterator per epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = [*super().__iter__()]
        self.start += self.length
        return iter(batches)


CASES: list[dict[str, Any]] = [
    {},
    {"gradient_clip_val": 0.3},
    {"accumulate_grad_batches": 2},
    {"accumulate_grad_batches": 2, "limit_train_batches": 5, "gradient_clip_val": 0.3},
    {"precision": "bf16-mixed"},
    {"precision": "bf16-mixed", "gradient_clip_val": 0.3},
]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *(("worldlm", options) for options in CASES),
        ("llama", CASES[-1]),
        *(pytest.param(name, CASES[-1], marks=pytest.mark.slow) for name in ("gpt2", "llama_untied", "qwen3")),
    ],
    ids=str,
)
def test_one_node_gives_the_result_of_lightnings_trainer(
    family: str,
    options: dict[str, Any],
    accelerator: str,
    single: Topology,
    fit: Callable[..., WorldTrainer],
    make_module: Callable[..., Any],
    make_data: type[Any],
    differences: Callable[..., list[str]],
) -> None:
    def make() -> Any:
        return make_module() if family == "worldlm" else tiny_module(family)

    ours = fit(single, max_epochs=3, module=make(), **options)

    blocks = make_data().blocks("a", "train")
    sampler = Onward(len(blocks), 2, 7, "alone")
    sampler.length = min(3 * options.get("accumulate_grad_batches", 1), options.get("limit_train_batches", 99))
    loader = DataLoader(blocks, batch_sampler=sampler, collate_fn=lambda batch: batch)
    theirs = pl.Trainer(
        max_epochs=3,
        accelerator=accelerator,
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{key: value for key, value in options.items() if key != "limit_train_batches"},
    )
    module, before = make(), dict(make().named_parameters())
    theirs.fit(module, loader, DataLoader(blocks, batch_size=4))

    expected = {name: value.detach() for name, value in module.named_parameters()}
    assert not any(torch.equal(tensor, before[name]) for name, tensor in expected.items())
    assert differences(ours.world.states["alone"].parameters, expected) == []
    state = ours.fit_loop.slot.state_dict()["alone"]
    assert differences(state["optimizer"], theirs.optimizers[0].state_dict()) == []
    assert differences(state["schedulers"][0], theirs.lr_scheduler_configs[0].scheduler.state_dict()) == []
    assert ours.global_step == theirs.global_step
    assert ours.world.states["alone"].num_steps == theirs.global_step
    assert ours.current_epoch == theirs.current_epoch == 3
