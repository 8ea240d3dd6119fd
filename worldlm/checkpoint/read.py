"""A saved world, read without building it: any node's weights out of a checkpoint of any size."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldlm.federation.parameters import Tensors
from worldlm.topology.errors import join_names, reason, suggest

FORMAT = 2
"""Counted up whenever what a checkpoint says of the world changes its meaning."""
_WITH_NODES = (1, FORMAT)
"""Formats in which nodes and their weights are where `open_world` looks; one that says nothing is of format 1."""


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: The file.
        mapped: Whether to map it into memory instead of reading it whole: what is not used is not read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a whole checkpoint of a model, is not what was written there, or holds anything but
            tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        _check(path)
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # what a reader stumbles over in a foreign file is anybody's guess
        said = (str(error) or type(error).__name__).splitlines()[0]
        others = sorted(one.name for one in path.parent.glob("*.ckpt") if one.name != path.name)
        beside = f" (beside it: {', '.join(others)})" if others else ""
        raise ValueError(f"{path} cannot be read as a checkpoint: {said}{beside}") from error
    if not (isinstance(checkpoint, dict) and {"state_dict", "loops"} <= checkpoint.keys()):
        raise ValueError(f"{path} cannot be read as a checkpoint: it is not one that a trainer saved")
    return checkpoint


def _check(path: Path) -> None:
    """Compare a checkpoint with the checksums in it: torch reads it without looking at them.

    Raises:
        ValueError: If a byte that counts is not what was written.
    """
    if not zipfile.is_zipfile(path):
        return  # cut short, or no checkpoint at all, as torch will say
    with zipfile.ZipFile(path) as archive:
        if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
            raise ValueError("it is compressed, which torch never does: what is in it may be of any size")
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"it is damaged: the checksum of {damaged} differs")


@dataclass(frozen=True, kw_only=True)
class SavedWorld:
    """The nodes of a checkpoint."""

    path: Path
    """The checkpoint."""
    hyper_parameters: Mapping[str, Any]
    """What the module was built with, as plain values."""
    children: Mapping[str, list[str]]
    """Names of every node's children, by name, parents first."""
    num_rounds: int
    """Rounds that had ended."""
    within_round: bool
    """Whether it was saved before the round that followed had ended: federations are then older than leaves."""
    states: Mapping[str, Mapping[str, Any]]
    """What is kept of every node, by name; see `NodeState`."""

    def parameters(self, node: str) -> Tensors:
        """Return a node's weights by name, as they lie in the file: read where they are used.

        Raises:
            ValueError: If there is no such node, with the nearest name.
        """
        if node not in self.states:
            names = list(self.children)
            raise ValueError(f"{self.path} has no node {node!r}; it has {join_names(names, 20)}{suggest(node, names)}")
        weights: Tensors = self.states[node]["parameters"]
        if strange := [name for name, one in weights.items() if not isinstance(one, torch.Tensor)]:
            raise ValueError(f"{self.path}: the weights {str(strange[0])[:100]} of {node!r} are none")
        return weights


def open_world(path: str | Path) -> SavedWorld:
    """Open a checkpoint of a world.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none of a world, or of another format.
    """
    checkpoint = read_checkpoint(path, mapped=True)
    with as_written(path):
        return _opened(Path(path), checkpoint)


def _opened(path: Path, checkpoint: Mapping[str, Any]) -> SavedWorld:
    loop = checkpoint["loops"].get("fit_loop", {})
    world = loop.get("state_dict", {}).get("world")
    if world is None or world.get("format", 1) not in _WITH_NODES:
        known = " and ".join(map(str, _WITH_NODES))
        told = (
            "it holds no world of nodes" if world is None else f"it is of format {world['format']}, known are {known}"
        )
        raise ValueError(f"{path} cannot be read as a saved world: {told}")
    progress, states, children = loop["epoch_progress"]["current"], world["states"], world["topology"]
    if any(not isinstance(states[name]["parameters"], Mapping) for name in children):
        raise TypeError("the parameters of a node are none")
    if any(below not in children for names in children.values() for below in names):
        raise TypeError("a node is below another, and nowhere")
    return SavedWorld(
        path=path,
        hyper_parameters={**checkpoint.get("hyper_parameters", {})},
        children=children,
        num_rounds=int(progress["processed"]),
        within_round=bool(progress["started"] > progress["processed"]),
        states=states,
    )


@contextmanager
def as_written(path: str | Path | None) -> Iterator[None]:
    """Say of a checkpoint that it is not as worldlm writes it, where something stumbles over what it holds.

    Raises:
        ValueError: If so.
    """
    try:
        yield
    except (LookupError, TypeError, AttributeError, RuntimeError, OverflowError) as error:
        told = f"{path} cannot be read as a saved world: not as worldlm writes it: {reason(error)}"
        raise ValueError(told) from error
