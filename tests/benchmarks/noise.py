"""The cost of a private release on one core: `sanitise` beside the same steps with torch's normal numbers.

    python tests/benchmarks/noise.py [MILLIONS_OF_WEIGHTS]

Both are run in turn. Printed are medians in seconds of CPU time, and the ratio of the medians.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import Tensors, norm, subtract
from worldlm.federation.privacy import sanitise

TIMES = 7
KEY = NoiseKey()


def with_torch(model: Tensors, start: Tensors) -> None:
    """Clip and noise with floating-point numbers of a seeded generator, which is not private."""
    generator = torch.Generator().manual_seed(0)
    update = subtract(model, start)
    scale = 1.0 / norm(update)
    for name, tensor in update.items():
        tensor.mul_(scale).add_(torch.randn(tensor.shape, generator=generator)).add_(start[name])


def with_key(model: Tensors, start: Tensors) -> None:
    """Clip and noise as a private node does."""
    sanitise(model, start, clip_norm=1.0, noise_multiplier=1.0, stream=KEY.stream_for("benchmark"))


def cpu_seconds(job: Callable[[], None]) -> float:
    """Return the CPU time of a job."""
    before = time.process_time()
    job()
    return time.process_time() - before


def main(millions: float) -> None:
    """Measure both in turn, and print medians and their ratio."""
    torch.set_num_threads(1)
    size = int(millions * 1e6 / 3)
    model = {name: torch.randn(size) for name in "abc"}
    start = {name: torch.randn(size) for name in "abc"}
    seconds: dict[Callable[..., None], list[float]] = {with_torch: [], with_key: []}
    for _ in range(TIMES):
        for job, found in seconds.items():
            found.append(cpu_seconds(partial(job, model, start)))
    medians = [statistics.median(found) for found in seconds.values()]
    print(f"{millions:g} M weights: torch {medians[0]:.2f} s, with the noise key {medians[1]:.2f} s", end="")
    print(f", ratio {medians[1] / medians[0]:.2f}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 75.0)
