"""Tokens a second of a model on this machine, by a few real steps."""

from __future__ import annotations

import time

import torch

from worldlm.models import LanguageModule
from worldlm.trainer.world_trainer import WorldTrainer

MAX_PARAMETERS = 200_000_000
"""Larger models are not measured: building them takes longer than an estimate may."""

_MAX_STEPS = 5
_MAX_SECONDS = 5.0


def measure_speed(trainer: WorldTrainer, module: LanguageModule, batch_size: int) -> float:
    """Return the tokens a second of forward, backward and AdamW, on the trainer's device and in its precision.

    The best of a few steps, after one that does not count, on random tokens.

    Args:
        trainer: Knows the device and the precision.
        module: The model, which may have no weights; it is built anew.
        batch_size: Sequences of a step.
    """
    device, size = trainer.strategy.root_device, module.architecture
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = LanguageModule.from_hyper_parameters(module.hparams).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        batch = torch.randint(size.vocab_size, (batch_size, size.max_seq_len + 1), device=device)
        seconds: list[float] = []
        while len(seconds) < 1 + _MAX_STEPS and sum(seconds) < _MAX_SECONDS:
            began = time.perf_counter()
            with trainer.precision_plugin.forward_context():
                loss = model.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
    return batch_size * size.max_seq_len / min(seconds[1:] or seconds)
