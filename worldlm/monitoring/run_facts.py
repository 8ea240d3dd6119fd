"""What a run is, as its record tells it: the tree, the text of every node, the code, the machine."""

import math
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import torch

import worldlm
from worldlm.files.git import commit_of
from worldlm.topology import Node
from worldlm.topology.draw import facts
from worldlm.trainer import WorldTrainer

_DEMANDS = {
    "clip_norm": "example_clip_norm",
    "noise_multiplier": "example_noise_multiplier",
    "delta": "example_delta",
    "max_epsilon": "max_example_epsilon",
}
"""What privacy asks for at a node, and how it is called where it hides examples."""


def versions() -> dict[str, str]:
    """Tell the versions of what trains."""
    return {
        "worldlm": worldlm.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def code() -> dict[str, str]:
    """Tell which commits the code is of that runs: of WorldLM's own checkout and of the current folder's.

    Returns:
        `worldlm` and `folder`, as `worldlm.files.git.commit_of` tells them; without what is no checkout.
    """
    own = Path(worldlm.__file__).parents[1]
    # where it is installed, the folder may lie in somebody else's checkout
    found = {"worldlm": commit_of(own) if (own / ".git").exists() else None, "folder": commit_of(Path.cwd())}
    return {name: commit for name, commit in found.items() if commit is not None}


def machine(trainer: WorldTrainer) -> dict[str, Any]:
    """Tell what a run runs on: `platform`, `processors`, `processes`, `threads` of each, and `device`."""
    device = trainer.strategy.root_device
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "processes": trainer.num_ranks,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def tree_facts(node: Node, above: Node | None) -> dict[str, Any]:
    """Tell a tree: every node's `name`, `corpus`, what holds there in words, what privacy asks for, `children`."""
    demands = {name: getattr(node.settings.privacy, name, None) for name in _DEMANDS}
    of_examples = {theirs: getattr(node.settings.example_privacy, name, None) for name, theirs in _DEMANDS.items()}
    return {
        "name": node.name,
        "corpus": node.corpus,
        "told": list(facts(node, above)),
        **demands,
        **of_examples,
        "children": [tree_facts(child, node) for child in node.children],
    }


def data_facts(trainer: WorldTrainer) -> dict[str, dict[str, Any]]:
    """Tell by node what was trained on and how: two runs are comparable where these are the same.

    Returns:
        By data node `text` (names of the folders of packed text, which end in a digest of what it was made from; null
        where the data module does not say), `tokens_crc32` (CRC-32 of the packed tokens, the same wherever they lie),
        `blocks`, `batch_size`, `steps` of one fit and `fits` of one round; and, of nodes with held-out text,
        `held_out_text`, `held_out_tokens_crc32` and `held_out_blocks`, those that are evaluated.
    """
    loop, fits, facts = trainer.fit_loop, trainer.num_visits, {}
    for name, loader in loop.loaders.items():
        facts[name] = {
            "text": _text(loader.dataset),
            "tokens_crc32": _checksums(loader.dataset),
            "blocks": _length(loader.dataset),
            "batch_size": getattr(loader.batch_sampler, "batch_size", None),
            "steps": trainer.steps_per_fit(name),
            "fits": fits.get(name, 0),
        }
    held_out = loop.val_loaders()
    for (name, loader), limit in zip(held_out.items(), trainer.num_val_batches if held_out else (), strict=True):
        size, blocks = getattr(loader.batch_sampler, "batch_size", None), _length(loader.dataset)
        used = blocks if size is None or blocks is None or math.isinf(limit) else min(blocks, int(limit) * size)
        told = {"held_out_text": _text(loader.dataset), "held_out_tokens_crc32": _checksums(loader.dataset)}
        facts.setdefault(name, {}).update(told, held_out_blocks=used)
    return facts


def _text(blocks: Any) -> list[str] | None:
    paths = [getattr(packed, "path", None) for packed in _packed(blocks)]
    names = [Path(path).parent.name if path is not None else "" for path in paths]
    return names if all(names) else None


def _checksums(blocks: Any) -> list[str] | None:
    found = [getattr(packed, "crc32", None) for packed in _packed(blocks)]
    told = [f"{one:08x}" for one in found if one is not None]
    return told if len(told) == len(found) else None


def _packed(blocks: Any) -> list[Any]:
    return [getattr(part, "packed", None) for part in getattr(blocks, "parts", (blocks,))]


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
