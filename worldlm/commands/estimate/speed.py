"""Measures the training speed of a model on this machine with a few real steps."""

from __future__ import annotations

import time

import torch

from worldlm.models import LanguageModule
from worldlm.trainer.world_trainer import WorldTrainer

MAX_PARAMETERS = 200_000_000
"""Larger models are not measured, because building them takes too long for an estimate."""

_MAX_STEPS = 5
_MAX_SECONDS = 5.0


def measure_speed(trainer: WorldTrainer, module: LanguageModule, batch_size: int) -> float:
    """Return the tokens per second of forward, backward and AdamW, on the trainer's device and in its precision.

    The speed is that of the fastest of a few steps on random tokens. A first step, of one sequence, is not counted. It
    bounds the sequences of the others, so that a slow machine does not take minutes over a large batch.

    Args:
        trainer: The trainer, whose device and precision are used.
        module: The model. A copy of it is built, so it may have no weights.
        batch_size: Sequences of a step, at most.
    """
    device, size = trainer.strategy.root_device, module.architecture
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = LanguageModule.from_hyper_parameters(module.hparams).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        batch = torch.randint(size.vocab_size, (batch_size, size.max_seq_len + 1), device=device)

        def seconds_of(num_sequences: int) -> float:
            start = time.perf_counter()
            with trainer.precision_plugin.forward_context():
                loss = model.loss(batch[:num_sequences])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - start

        num_sequences = max(1, min(batch_size, int(_MAX_SECONDS / seconds_of(1))))
        seconds: list[float] = []
        while len(seconds) < _MAX_STEPS and sum(seconds) < _MAX_SECONDS:
            seconds.append(seconds_of(num_sequences))
    return num_sequences * size.max_seq_len / min(seconds)
