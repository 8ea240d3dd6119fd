"""Seeds for every random draw of a run."""

import hashlib

import torch


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derive an independent seed from the seed of the run and a purpose.

    Every random draw of a run is a pure function of (run seed, node, round, purpose). Neither the order in which nodes
    train nor a restart changes it.

    Args:
        seed: The run's seed.
        *purpose: The purpose of the draw, such as the name of a node, a round and a word.

    Returns:
        A seed between 0 and 2**63 - 1, the same on every machine.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in purpose)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed only torch's generators of the CPU and of the computing device.

    `torch.manual_seed` seeds all kinds of devices. For each kind that is not initialised yet, it stores the call with a
    stack trace, which costs a millisecond and memory at every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
