"""Facts about a run for its record: the topology, the text of every node, the code, the machine."""

import math
import os
import platform
from pathlib import Path
from typing import Any

import lightning
import torch

import worldlm
from worldlm.data.cutting import packed_of
from worldlm.files.git import commit_of
from worldlm.topology import Node
from worldlm.topology.draw import facts
from worldlm.trainer import WorldTrainer

_PRIVACY_KEYS = {
    "clip_norm": "example_clip_norm",
    "noise_multiplier": "example_noise_multiplier",
    "delta": "example_delta",
    "max_epsilon": "max_example_epsilon",
}
"""Settings of `privacy` in results.json, and the names of the same settings of `example_privacy`."""


def versions() -> dict[str, str]:
    """Return the versions of the libraries that affect training."""
    return {
        "worldlm": worldlm.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "python": platform.python_version(),
    }


def code() -> dict[str, str]:
    """Return the commits of the running code: of WorldLM's own repository, and of the current folder's.

    Returns:
        `worldlm` and `folder`, as returned by `worldlm.files.git.commit_of`; a folder outside a repository is omitted.
    """
    own = Path(worldlm.__file__).parents[1]
    # an installed WorldLM may be in a folder of an unrelated repository
    commits = {"worldlm": commit_of(own) if (own / ".git").exists() else None, "folder": commit_of(Path.cwd())}
    return {name: commit for name, commit in commits.items() if commit is not None}


def machine(trainer: WorldTrainer) -> dict[str, Any]:
    """Return the machine of a run: `platform`, `processors`, `processes`, `threads` per process, and `device`."""
    device = trainer.strategy.root_device
    return {
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "processes": trainer.num_ranks,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
    }


def tree_facts(node: Node, parent: Node | None) -> dict[str, Any]:
    """Describe a topology from a node down.

    Returns:
        For each node its `name`, `corpus`, `told` (its settings in words), its privacy settings, and `children`.
    """
    privacy = {name: getattr(node.settings.privacy, name, None) for name in _PRIVACY_KEYS}
    example_privacy = {key: getattr(node.settings.example_privacy, name, None) for name, key in _PRIVACY_KEYS.items()}
    return {
        "name": node.name,
        "corpus": node.corpus,
        "told": list(facts(node, parent)),
        **privacy,
        **example_privacy,
        **({"example_unit": node.settings.example_privacy.unit} if node.settings.example_privacy else {}),
        "children": [tree_facts(child, node) for child in node.children],
    }


def data_facts(trainer: WorldTrainer) -> dict[str, dict[str, Any]]:
    """Describe the text and batches of every data node; two runs are comparable if these are equal.

    Returns:
        By data node: `text`, `tokens_crc32`, `blocks`, `batch_size`, `steps` per fit, and `fits` per round. `text` has
        the names of the folders of packed text, which end in a digest of its sources. It is null if the data module
        does not provide them. `tokens_crc32` is the CRC-32 of the packed tokens, whatever their folder. Nodes with
        held-out text also have `held_out_text`, `held_out_tokens_crc32`, and `held_out_blocks`, the number of blocks
        that are evaluated.
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
        text = {"held_out_text": _text(loader.dataset), "held_out_tokens_crc32": _checksums(loader.dataset)}
        facts.setdefault(name, {}).update(text, held_out_blocks=used)
    return facts


def _text(blocks: Any) -> list[str] | None:
    paths = [getattr(packed, "path", None) for packed in packed_of(blocks)]
    names = [Path(path).parent.name if path is not None else "" for path in paths]
    return names if all(names) else None


def _checksums(blocks: Any) -> list[str] | None:
    checksums = [getattr(packed, "crc32", None) for packed in packed_of(blocks)]
    known = [f"{checksum:08x}" for checksum in checksums if checksum is not None]
    return known if len(known) == len(checksums) else None


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
