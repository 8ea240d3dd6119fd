"""`worldlm fit` with a recipe, a topology and packed text on disk, and with all that it does by default.

But for the checkpoint of every round, which no other system writes: `worldlm_checkpoints` has that too. In
`worldlm_paged` all nodes that wait are on disk, in `worldlm_host` in the host's memory, also where a GPU trains.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from job import ALPHA, CLIP, LR, VOCAB_SIZE, Job, Workspace

SEED = 0


def recipe(folder: Path, job: Job) -> dict[str, Any]:
    """Describe the job as a recipe."""
    return {
        "seed_everything": SEED,
        "federation": {"topology": str(folder / "star.yaml")},
        "model": {
            **_model(folder, job),
            "split": {"last_blocks": 1},
            "optimizer": {"lr": LR, "warmup_steps": 0, "min_lr_ratio": 1.0},
        },
        "data": {
            "tokenizer": "bytes",
            "batch_size": job.batch,
            "cache_dir": str(folder / "packed"),
            "corpora": {"text": {"class_path": "worldlm.data.TextFiles", "init_args": _files(folder)}},
        },
        "trainer": {
            "max_epochs": job.rounds,
            "limit_val_batches": 0,
            "log_every_n_steps": 10,
            "gradient_clip_val": CLIP,
            "accelerator": job.accelerator,
        },
    }


def _model(folder: Path, job: Job) -> dict[str, Any]:
    if not job.family:
        return {"architecture": job.architecture}
    adapters = {"lora": {"rank": job.rank, "alpha": ALPHA}, "init_from": str(folder / "base")} if job.rank else {}
    return {"transformer": {"config": job.config, "max_seq_len": job.seq}, **adapters}


def topology(job: Job) -> dict[str, Any]:
    """Describe the clients as a star."""
    children = [{"name": name, "corpus": "text"} for name in names(job)]
    settings = {"num_local_steps": job.steps, "optimizer_state": "reset"}
    return {"name": "star", "settings": settings, "root": {"name": "world", "children": children}}


def names(job: Job) -> list[str]:
    """Name the clients, in the order of the alphabet."""
    return [f"c{client:02}" for client in range(job.clients)]


def _files(folder: Path) -> dict[str, str]:
    return {"train": str(folder / "train.txt"), "validation": str(folder / "validation.txt")}


def prepare(folder: Path, job: Job) -> None:
    """Write what a run of this job needs: text, packed as the recipe's would be, and every client's batches of it."""
    from worldlm.data import Blocks, Request, TextFiles, load_tokenizer
    from worldlm.data import prepare as pack
    from worldlm.data.poisson_samplers import make_sampler

    drawn = np.random.default_rng(SEED)
    for split, size in (("train", 2_000_000), ("validation", 20_000)):
        letters = drawn.choice(np.frombuffer(b"etaoin shrdlu\n", np.uint8), size)
        (folder / f"{split}.txt").write_bytes(letters.tobytes())
    request = Request("text", TextFiles(**_files(folder)), "the text")
    blocks = Blocks(pack([request], load_tokenizer("bytes"), folder / "packed")["text"]["train"], job.seq)
    batches = np.empty((job.clients, job.rounds * job.steps, job.batch, job.seq + 1), np.uint16)
    for client, name in enumerate(names(job)):
        sampler = make_sampler(blocks.sizes, job.batch, SEED, name)
        for step in range(batches.shape[1]):
            batches[client, step] = blocks.rows[sampler.batch(step)]
    np.save(folder / "batches.npy", batches)
    (folder / "star.yaml").write_text(yaml.safe_dump(topology(job)))


def initial_weights(folder: Path, job: Job) -> dict[str, Any]:
    """Draw the weights that everybody starts from. With adapters, the frozen model is written to the folder `base`."""
    import torch

    from worldlm.models import Architecture, LanguageModule, Lora, Transformer

    torch.manual_seed(SEED)
    chosen = Transformer(config=job.config, max_seq_len=job.seq) if job.family else Architecture(**job.architecture)
    assert chosen.vocab_size == VOCAB_SIZE
    model = chosen.build()
    if job.rank:
        (folder / "base").mkdir()
        chosen.write_folder(folder / "base", {f"model.{name}": tensor for name, tensor in model.named_parameters()})
        adapters = Lora(rank=job.rank, alpha=ALPHA)
        model = LanguageModule(transformer=chosen, lora=adapters, init_from=str(folder / "base")).model
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def main() -> int:
    workspace = Workspace.of_command_line()
    folder, job = workspace.folder, workspace.job
    given = {"folder": str(folder), "system": workspace.system}
    given |= {"processes": workspace.processes, "threads": workspace.threads}
    callbacks: list[dict[str, Any]] = [
        {"class_path": "clock.Clock", "init_args": given},
        {"class_path": "worldlm.callbacks.Averaging", "init_args": {"parts": ["backbone", "keys", "values"]}},
    ]
    if workspace.system != "worldlm_checkpoints":
        last_only = {"every_n_rounds": job.rounds}
        callbacks.append({"class_path": "worldlm.callbacks.LastCheckpoint", "init_args": last_only})
    written = recipe(folder, job)
    written["trainer"]["callbacks"] = callbacks
    if workspace.system == "worldlm_paged":
        written["trainer"]["paging"] = {"cache_gb": 0.0}
    if workspace.system == "worldlm_host":
        written["trainer"]["nodes_on"] = "host"
    path = folder / f"{workspace.system}.yaml"
    path.write_text(yaml.safe_dump(written))
    from worldlm.cli import main as worldlm

    options = [f"--runs={folder / 'runs'}"]
    if workspace.processes > 1:
        options.append(f"--trainer.devices={workspace.processes}")
    return worldlm(["fit", "--recipe", str(path), *options])


if __name__ == "__main__":
    raise SystemExit(main())
