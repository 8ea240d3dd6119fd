"""Seeds for every random draw of a run."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive an independent seed from the run's seed and what it is for.

    Every random draw of a run is a pure function of (run seed, node, round, purpose), so that neither
    the order in which nodes are visited nor a restart can change it.

    Args:
        seed: The run's seed.
        *purpose: What the draw is for, such as a node's name, a round and a word.

    Returns:
        A seed between 0 and 2**63 - 1, the same on every machine.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of the device that computes, and no others.

    `torch.manual_seed` seeds every kind of device there could be; for each that is not in use yet it keeps the call,
    with a stack trace, for later, which costs a millisecond and memory at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
