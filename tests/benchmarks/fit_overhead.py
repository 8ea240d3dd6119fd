"""What `worldlm fit` costs over a bare PyTorch loop: same module, text, batches and steps, in one run.

    python tests/benchmarks/fit_overhead.py [--clients 2] [--steps 20] [--rounds 1] [--repeats 8] [--threads 1]

Both train a star of clients with fused AdamW kept per client and average all weights after each round; `worldlm fit`
has its usual callbacks, a progress bar, and TensorBoard logging every 10 steps. Start-up and evaluation are left out of
both. The two run in turn, each first every other time, and ratios of medians are printed: a machine's speed drifts, a
ratio does less.
"""

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from worldlm.callbacks import Averaging, NodeMetrics, RoundProgress, Traffic
from worldlm.data import CorpusDataModule, StandardLibrary
from worldlm.loop import WorldTrainer
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.topology import Topology, parse_topology

BATCH, SEQ = 8, 128


class Clock(Callback):
    """Wall and CPU seconds between the first and the last step of a fit."""

    def on_train_start(self, *_: Any) -> None:
        self.start = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any) -> None:
        self.wall, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]


def module() -> LanguageModule:
    """Build a model of 3.2 M parameters, the same at every call."""
    torch.manual_seed(0)
    architecture = Architecture(num_blocks=4, d_model=256, num_heads=8, max_seq_len=SEQ, vocab_size=257)
    split = Split(keys=(r"blocks\.3\.(norm_1|attn)\.",), values=(r"blocks\.3\.", r"norm_f\."))
    return LanguageModule(architecture, split, OptimizerSettings(lr=1e-3, warmup_steps=10))


def star(clients: int, steps: int) -> Topology:
    """Describe clients that all hold the same text."""
    children = "".join(f"\n    - {{name: c{i}, corpus: text}}" for i in range(clients))
    return parse_topology(
        f"name: star\nsettings: {{num_local_steps: {steps}}}\nroot:\n  name: world\n  children:{children}\n", "star"
    )


def ours(topology: Topology, rounds: int, folder: str) -> tuple[float, float, torch.Tensor, Any]:
    """Train with `worldlm fit`'s trainer and callbacks."""
    clock = Clock()
    trainer = WorldTrainer(
        topology=topology,
        seed=0,
        max_epochs=rounds,
        callbacks=[Averaging(["backbone", "keys", "values"]), NodeMetrics(), Traffic(), RoundProgress(), clock],
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        log_every_n_steps=10,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        accelerator="cpu",
    )
    trainer.fit(module(), datamodule=CorpusDataModule({"text": StandardLibrary(area="topics")}, batch_size=BATCH))
    end = trainer.world.states["world"].parameters["model.transformer.wte.weight"]
    return clock.wall, clock.cpu, end.clone(), trainer


def bare(topology: Topology, rounds: int, trainer: WorldTrainer) -> tuple[float, float, torch.Tensor]:
    """Train the same with nothing but PyTorch, on the batches of the other run's loaders."""
    model, steps = module(), topology.data_nodes[0].settings.num_local_steps or 0
    parameters = list(model.parameters())
    server = [p.detach().clone() for p in parameters]
    names = [node.name for node in topology.data_nodes]
    clients = {name: [p.clone() for p in server] for name in names}
    total = steps * rounds
    model.__dict__["_total_steps"] = lambda: total
    optimizers = {name: model.configure_optimizers() for name in names}
    start = time.perf_counter(), time.process_time()
    for number in range(rounds):
        for name in names:
            loader, chosen = trainer.fit_loop.loaders[name], optimizers[name]
            loader.batch_sampler.start, loader.batch_sampler.length = number * steps, steps
            for live, own, common in zip(parameters, clients[name], server, strict=True):
                own.copy_(common)
                live.data = own
            for batch in loader:
                chosen["optimizer"].zero_grad()
                model.loss(batch).backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                chosen["optimizer"].step()
                chosen["lr_scheduler"]["scheduler"].step()
        for i, common in enumerate(server):
            common.zero_()
            for name in names:
                common.add_(clients[name][i], alpha=1 / len(names))
    return time.perf_counter() - start[0], time.process_time() - start[1], server[0]


def main() -> None:
    """Run both in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"clients": 2, "steps": 20, "rounds": 1, "repeats": 8, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    topology = star(given.clients, given.steps)
    times: dict[str, list[tuple[float, float]]] = {"worldlm fit": [], "bare loop": []}
    with tempfile.TemporaryDirectory() as folder:
        *_, trainer = ours(topology, given.rounds, folder)  # warms up, and has the loaders that the bare loop reads
        for repeat in range(given.repeats):
            measured: dict[str, tuple[float, float, torch.Tensor]] = {}
            for name in list(times)[:: 1 if repeat % 2 else -1]:
                run = ours(topology, given.rounds, folder) if name == "worldlm fit" else ()
                measured[name] = run[:3] if run else bare(topology, given.rounds, trainer)
                times[name].append(measured[name][:2])
            (wall, _, mine), (wall_bare, _, theirs) = (measured[name] for name in times)
            gap = float((mine - theirs).abs().max())
            print(f"run {repeat}: {wall:.2f} s against {wall_bare:.2f} s; weights differ by {gap:.1e}", flush=True)
    tokens = given.clients * given.steps * given.rounds * BATCH * SEQ
    report(times, tokens)


def report(times: dict[str, list[tuple[float, float]]], tokens: int) -> None:
    """Print medians, and the ratio of medians."""
    median: Callable[[str, int], float] = lambda name, i: statistics.median(t[i] for t in times[name])  # noqa: E731
    for name in times:
        print(f"{name:12} {tokens / median(name, 0):10,.0f} tokens/s  {median(name, 1):8.2f} s of CPU")
    walls = median("bare loop", 0) / median("worldlm fit", 0)
    print(f"tokens/s of worldlm fit over the bare loop: {walls:.3f}; ", end="")
    print(f"CPU over the bare loop: {median('worldlm fit', 1) / median('bare loop', 1):.3f}")


if __name__ == "__main__":
    main()
