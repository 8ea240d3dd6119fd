"""A world whose topology changes gives the same result on any number of processes, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from worldlm.callbacks import Compression, Record
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]

CHANGED = """
name: changed
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: above
  children:
    - name: world
      children:
        - name: north
          children: [{name: a, corpus: a}, {name: d, corpus: d}, {name: e, corpus: e}]
        - name: south
          settings: {jurisdiction: eu, privacy: {clip_norm: 0.5, noise_multiplier: 0.3}}
          children: [{name: c, corpus: z}]
    - {name: f, corpus: f}
"""


class SaveLast(Callback):
    """Saves a checkpoint at the end of the second round."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.world.round == 1:
            trainer.save_checkpoint(self.path, weights_only=False)


def test_on_any_number_of_processes(
    tree: Topology, whole: Make, on_ranks: Make, differences: Make, tmp_path: Path
) -> None:
    def begin(name: str) -> None:
        whole(tree, callbacks=[Compression(), SaveLast(tmp_path / name)], limit_val_batches=0)

    def resume(name: str) -> Any:
        changed = parse_topology(CHANGED, "changed.yaml")
        callbacks = [Compression(), Record()]
        state = whole(changed, callbacks=callbacks, resume=tmp_path / name, max_epochs=3, limit_val_batches=0)["all"]
        del state["callbacks"]["Record"]  # its digest of the first weights depends on the checkpoint
        return state

    begin("single.ckpt")
    on_ranks(2, lambda: begin("ranks.ckpt"))
    alone = resume("single.ckpt")
    assert alone["global_step"] == sum(state["num_steps"] for state in alone["world"]["states"].values())
    for number, name in ((2, "single.ckpt"), (3, "ranks.ckpt")):
        ranks = on_ranks(number, lambda name=name: resume(name))  # type: ignore[misc]
        assert differences(ranks[0], alone) == [], name
