"""The job that all systems do: FedAvg of one model over clients that start every round with a fresh AdamW.

Only numpy is imported here, for what is imported counts as start-up.
"""

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from process_tree import TreeClock

TOP = Path(__file__).resolve().parents[3]
LR, CLIP, VOCAB_SIZE, ALPHA = 1e-3, 1.0, 257, 16.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """Sizes of a job."""

    clients: int
    steps: int
    """Optimizer steps of a client in a round."""
    rounds: int
    batch: int
    """Blocks of a batch."""
    seq: int
    """Tokens of a block that are predicted."""
    blocks: int
    """Blocks of the decoder."""
    width: int
    heads: int = 8
    family: str = ""
    """A family of transformers, such as llama; empty for WorldLM's own MPT."""
    rank: int = 0
    """Rank of LoRA adapters of all linear layers in the blocks; 0 trains the model itself."""
    accelerator: str = "cpu"
    """What trains, cpu or gpu; on a GPU autocast computes in bf16."""

    @property
    def tokens(self) -> int:
        """Tokens of one round."""
        return self.clients * self.steps * self.batch * self.seq

    @property
    def device(self) -> str:
        """Where torch computes."""
        return "cuda" if self.accelerator == "gpu" else "cpu"

    @property
    def architecture(self) -> dict[str, int]:
        """Settings of the decoder."""
        return {
            "num_blocks": self.blocks,
            "d_model": self.width,
            "num_heads": self.heads,
            "max_seq_len": self.seq,
            "vocab_size": VOCAB_SIZE,
        }

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of transformers, if there is a `family`."""
        return {
            "model_type": self.family,
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.width,
            "intermediate_size": 4 * self.width,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "tie_word_embeddings": True,
            "max_position_embeddings": self.seq,
        }


_3M = {"blocks": 4, "width": 256}
_25M = {"blocks": 8, "width": 512}
_125M = {"blocks": 10, "width": 1024, "heads": 16}
JOBS = {
    "small": Job(clients=8, steps=20, rounds=5, batch=4, seq=64, **_3M),
    "many": Job(clients=32, steps=5, rounds=5, batch=4, seq=64, **_3M),
    "large": Job(clients=8, steps=2, rounds=5, batch=4, seq=64, **_25M),
    "llama": Job(clients=8, steps=20, rounds=5, batch=4, seq=64, family="llama", **_3M),
    "llama_large": Job(clients=8, steps=2, rounds=5, batch=4, seq=64, family="llama", **_25M),
    "lora": Job(clients=32, steps=5, rounds=5, batch=4, seq=64, family="llama", rank=8, **_25M),
    "huge": Job(clients=4, steps=20, rounds=4, batch=8, seq=1024, **_125M),
    "round_small": Job(clients=8, steps=1, rounds=20, batch=1, seq=16, **_3M),
    "round_large": Job(clients=8, steps=1, rounds=8, batch=1, seq=16, **_25M),
}


class Workspace:
    """A folder in which a run finds its job, initial weights and batches, and leaves its weights.

    Args:
        folder: The folder.
        system: Who runs in it.
        processes: Processes that may train at the same time.
        threads: Threads of each.
    """

    def __init__(self, folder: Path, system: str, processes: int, threads: int) -> None:
        self.folder, self.system, self.processes, self.threads = folder, system, processes, threads
        self.job = Job(**json.loads((folder / "job.json").read_text()))
        self._clock = TreeClock()
        self._rounds: list[tuple[float, float]] = []
        self._begun = (float(os.environ.get("BENCHMARK_START", time.time())), 0.0)

    @classmethod
    def of_command_line(cls) -> "Workspace":
        """Read what the driver started this process with."""
        folder, system, processes, threads = sys.argv[1:5]
        return cls(Path(folder), system, int(processes), int(threads))

    @staticmethod
    def save_job(folder: Path, job: Job) -> None:
        """Write the job into a folder that is to be a workspace."""
        (folder / "job.json").write_text(json.dumps(asdict(job)))

    def batches(self) -> NDArray[np.uint16]:
        """Return all batches, shape [clients, rounds * steps, batch, seq + 1], as they lie on disk."""
        batches: NDArray[np.uint16] = np.load(self.folder / "batches.npy", mmap_mode="r")
        return batches

    def tokens(self, client: int, number: int, step: int) -> Any:
        """Return one batch, int64 [batch, seq + 1]."""
        import torch

        batch = torch.from_numpy(self.batches()[client, number * self.job.steps + step].astype(np.int64))
        return batch.to(self.job.device)

    def model(self) -> Any:
        """Return the decoder with its initial weights."""
        import torch

        torch.set_num_threads(self.threads)
        model = _transformer(self.folder, self.job) if self.job.family else _mpt(self.job)
        self.load(model)
        return model.to(self.job.device)

    def initial(self) -> dict[str, Any]:
        """Return the initial weights by name."""
        import torch

        with np.load(self.folder / "initial.npz") as initial:
            return {name: torch.from_numpy(initial[name]) for name in initial.files}

    def load(self, model: Any) -> None:
        """Write the initial weights into a decoder."""
        initial = self.initial()
        for name, parameter in trained(model).items():
            parameter.detach().copy_(initial[name])

    def end_round(self, weights: Callable[[], Mapping[str, Any]]) -> None:
        """Note the end of a round; the first one's weights are kept, and are all that is ever compared.

        Args:
            weights: Gives the server's weights by name, or several of one name: see `save_weights`.
        """
        if self.job.accelerator == "gpu":
            import torch

            torch.cuda.synchronize()
        wall, cpu = time.time(), self._clock.seconds()
        self._rounds.append((wall - self._begun[0], cpu - self._begun[1]))
        if len(self._rounds) == 1:
            save_weights(self.folder / f"{self.system}.npz", weights())
        self._begun = time.time(), self._clock.seconds()

    def report(self) -> None:
        """Print the wall and CPU seconds of each round. The first round includes all time before it."""
        if self.job.accelerator == "gpu":
            import torch

            print(f"{torch.cuda.max_memory_reserved() / 1e6:.0f} MB of the GPU's memory", flush=True)
        print("MEASURED " + json.dumps(self._rounds), flush=True)


def _mpt(job: Job) -> Any:
    """Return WorldLM's own decoder, from its file, without the package around it and its imports."""
    spec = importlib.util.spec_from_file_location("mpt", TOP / "worldlm" / "models" / "mpt.py")
    assert spec is not None
    assert spec.loader is not None
    mpt = sys.modules["mpt"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mpt)
    return mpt.MPT(mpt.Sizes(**job.architecture))


def _transformer(folder: Path, job: Job) -> Any:
    """Return a model of transformers, with the adapters of peft if the job has any."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if not job.rank:
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[job.family](**job.config))
    from peft import LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    return get_peft_model(base, LoraConfig(r=job.rank, lora_alpha=ALPHA, target_modules="all-linear"))


def trained(model: Any) -> dict[str, Any]:
    """Return the parameters that are trained, by the names that the model of transformers gives them."""
    return {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def save_weights(path: Path, weights: Mapping[str, Any]) -> None:
    """Save tensors or arrays by name."""
    np.savez(
        path, **{name: np.asarray(value.cpu() if hasattr(value, "cpu") else value) for name, value in weights.items()}
    )


def loss(model: Any, tokens: Any) -> Any:
    """Return the mean cross entropy of a batch, int64 [batch, seq + 1]."""
    import torch
    import torch.nn.functional as F

    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        output = model(tokens[:, :-1])
        logits = getattr(output, "logits", output).flatten(0, 1)
    return F.cross_entropy(logits.float(), tokens[:, 1:].flatten())


def optimizer(model: Any) -> Any:
    """Return a fresh AdamW."""
    import torch

    return torch.optim.AdamW(trained(model).values(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def train(workspace: Workspace, model: Any, client: int, number: int) -> None:
    """Take a client's steps of one round, the plain way."""
    import torch

    chosen, parameters = optimizer(model), [*trained(model).values()]
    for step in range(workspace.job.steps):
        loss(model, workspace.tokens(client, number, step)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        chosen.step()
        chosen.zero_grad()
