"""What a checkpoint says of the world, and whether this run can go on from it."""

from collections.abc import Mapping
from typing import Any

from worldlm.federation.saved import FORMAT
from worldlm.topology import Topology


def tree(topology: Topology) -> dict[str, list[str]]:
    """Return every node's children by name."""
    return {name: [child.name for child in node.children] for name, node in topology.nodes.items()}


def check_saved(saved: Mapping[str, Any], topology: Topology, seed: int) -> None:
    """Check a saved world against the run that is to go on with it.

    Raises:
        ValueError: If it is of another tree, seed or version.
    """
    if saved.get("format") != FORMAT:
        raise ValueError(
            f"the checkpoint is of format {saved.get('format', 1)}, this WorldLM reads format {FORMAT}: "
            "go on with the version that wrote it, or start anew"
        )
    here, there = tree(topology), saved["topology"]
    if {name: sorted(below) for name, below in here.items()} != {name: sorted(below) for name, below in there.items()}:
        raise ValueError(
            f"the checkpoint is of another topology, with nodes {', '.join(there)}; this run has {', '.join(here)}"
        )
    if saved["seed"] != seed:
        raise ValueError(
            f"the checkpoint was made with seed {saved['seed']}, this run has seed {seed}: "
            "its data order and noise would change half way"
        )
