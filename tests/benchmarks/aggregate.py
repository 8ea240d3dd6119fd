"""The cost of admission, averaging and attention, compared with copying the same bytes once.

    python tests/benchmarks/aggregate.py [--children 8] [--megaparameters 125] [--repeats 5] [--threads 1]

The models are those of the paper's 125M, 12 blocks of width 768 (fewer `--megaparameters` make it narrower): the
embedding is the backbone, and the attention halves and feed-forward halves of all blocks are keys and values.
Averaging merges all three parts, with an outer step of SGD(lr=1) and the norm of the pseudo-gradient, as `Averaging`
does. Attention compares a federation's keys with those of its children and merges all keys and values, as
`AttentionAggregation` does. It runs once more with every parameter as a key, which is the most expensive case.
Admission checks every upload, as a federation does before it merges. All run in turn, in one process. The table has
medians of CPU seconds, their ratios to the copy, and the largest increase of memory.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from worldlm.federation.admission import why_refused
from worldlm.federation.attention import KeyValue, attend
from worldlm.federation.averaging import outer_step_, weighted_mean
from worldlm.federation.messages import Upload
from worldlm.federation.parameters import Tensors, copy_, num_bytes
from worldlm.storage.host_memory import keep_freed_memory


def shapes(width: int, vocab: int) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return the shapes of a model of 12 blocks, by part."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {"backbone": {"wte": (vocab, width)}, "keys": {}, "values": {}}
    for i in range(12):
        parts["keys"] |= {f"blocks.{i}.attn.Wqkv": (3 * width, width), f"blocks.{i}.attn.out": (width, width)}
        parts["values"] |= {f"blocks.{i}.ffn.up": (4 * width, width), f"blocks.{i}.ffn.down": (width, 4 * width)}
    return parts


def draw(parts: dict[str, dict[str, tuple[int, ...]]], around: Tensors | None, seed: int) -> Tensors:
    """Draw a model, near another where there is one."""
    generator = torch.Generator().manual_seed(seed)
    model = {}
    for shape_of in parts.values():
        for name, shape in shape_of.items():
            tensor = torch.randn(shape, generator=generator).mul_(0.02 if around is None else 0.001)
            model[name] = tensor if around is None else tensor.add_(around[name])
    return model


def memory(field: str) -> float:
    """Return what this process holds (`VmRSS`), or held at most (`VmHWM`), in MB; on Linux."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--children", type=int, default=8)
    parser.add_argument("--megaparameters", type=float, default=125.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    keep_freed_memory()  # as `worldlm fit` does
    torch.set_num_threads(options.threads)

    scale = (options.megaparameters / 125.0) ** 0.5
    parts = shapes(max(1, round(768 * scale)), max(1, round(52_000 * scale)))
    reference = draw(parts, None, 0)
    federation = draw(parts, reference, 1)
    children = [draw(parts, reference, 2 + i) for i in range(options.children)]
    copies = [{name: tensor.clone() for name, tensor in child.items()} for child in children]

    def part(model: Tensors, name: str) -> Tensors:
        return {key: model[key] for key in parts[name]}

    def copy() -> None:
        for target, child in zip(copies, children, strict=True):
            copy_(target, child)

    def admission() -> None:
        for number, child in enumerate(children):
            upload = Upload(node=str(number), round=0, parts={"backbone": child}, num_tokens=1)
            assert why_refused(upload, {"backbone": reference}, 0) == ""

    def average() -> None:
        mean = weighted_mean(children, [1.0] * len(children))
        outer_step_(federation, mean, torch.optim.SGD, {"lr": 1.0})

    def attention(keys: Callable[[Tensors], Tensors], values: Callable[[Tensors], Tensors]) -> None:
        candidates = [KeyValue(keys(child), values(child)) for child in children]
        merged = attend(keys(federation), candidates, keys(reference), temperature=0.1)
        copy_(federation, {**merged.keys, **merged.values})

    def halves() -> None:
        attention(lambda model: part(model, "keys"), lambda model: {**part(model, "values"), **part(model, "backbone")})

    def all_keys() -> None:
        attention(lambda model: model, lambda model: {})

    tasks: dict[str, Callable[[], None]] = {
        "copy": copy, "admission": admission, "averaging": average,
        "attention": halves, "attention, all keys": all_keys,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    added: dict[str, float] = {}
    for i in range(options.repeats + 1):  # the first run of each warms up
        for name, run in tasks.items():
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory
            before, began = memory("VmRSS"), time.process_time()
            run()
            seconds[name] += [time.process_time() - began] if i else []
            added[name] = max(added.get(name, 0.0), memory("VmHWM") - before)
    size = num_bytes(reference) / 1e6
    print(f"{options.children} models of {size / 4:.1f}M parameters, {size:.0f} MB each, {options.threads} thread(s)")
    limit = statistics.median(seconds["copy"])
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"{name:20} {median:7.3f} s  {median / limit:5.2f}x  +{added[name]:.0f} MB")


if __name__ == "__main__":
    main()
