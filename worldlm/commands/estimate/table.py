"""An estimate as a table, and in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from worldlm.commands.estimate.memory import Device
from worldlm.commands.estimate.whole import Estimate, Level
from worldlm.topology import Topology

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")
_TIMES = (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("s", 1.0))


def draw(title: str, found: Estimate) -> Table:
    """Return the table of one round: a line for every level of the tree below the root, and their sum."""
    expected = "one round" if found.is_certain else "one round, as expected"
    table = Table(title=f"{title}: {expected}")
    for i, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if i else "left")
    for level in found.levels:
        table.add_row("root" if level.depth == 0 else str(level.depth), *_cells(level))
    if len(found.levels) > 1:
        table.add_section()
        table.add_row("all", *_cells(_sum(found)))
    return table


_HEADINGS = (
    "level", "nodes", "with data", "messages", "down", "up", "residuals at most", "slowest link", "memory of a node",
)  # fmt: skip


def _cells(level: Level) -> list[str]:
    return [
        f"{level.num_nodes:,}",
        f"{level.num_with_data:,}",
        f"{level.messages:,.10g}" if level.messages < 1e9 else f"{level.messages:.3g}",
        size(level.bytes_down),
        size(level.bytes_up),
        size(level.residual_bytes) if level.residual_bytes else "",
        duration(level.link_seconds) if level.link_seconds else "",
        size(level.machine_bytes),
    ]


def _sum(found: Estimate) -> Level:
    levels = found.levels
    return Level(
        depth=-1,
        num_nodes=sum(level.num_nodes for level in levels),
        num_with_data=sum(level.num_with_data for level in levels),
        messages=sum(level.messages for level in levels),
        bytes_down=sum(level.bytes_down for level in levels),
        bytes_up=sum(level.bytes_up for level in levels),
        residual_bytes=sum(level.residual_bytes for level in levels),
        link_seconds=found.link_seconds,
        machine_bytes=max(level.machine_bytes for level in levels),
    )


def lines(topology: Topology, found: Estimate, origin: str) -> Iterator[str]:
    """Yield the estimate of the run, and what it leaves out, in words.

    Args:
        topology: The tree.
        found: The estimate.
        origin: Where the tokens per second come from.
    """
    parts = ", ".join(f"{part} {size(number)}" for part, number in found.sizes.parts.items())
    sizes = found.sizes
    packed = ""
    if sizes.packed_up is not None and {sizes.download, sizes.packed_up} != {sizes.model}:
        packed = f", as {size(sizes.download)} down and {size(sizes.packed_up)} up"
    yield f"model: {size(found.sizes.whole)} ({parts}), of which {size(found.sizes.model)} travel each way{packed}"
    whole, rounds = _sum(found), found.num_rounds
    if rounds is not None:
        down, up, most = (rounds * number for number in (whole.bytes_down, whole.bytes_up, whole.residual_bytes))
        residuals = f", at most {size(most)} of residuals" if most else ""
        yield f"run of {rounds} rounds: {size(down)} down, {size(up)} up{residuals}; {_tokens(rounds * found.tokens)}"
    by_use = sorted(found.process_bytes.items(), key=lambda one: -one[1])
    uses = ", ".join(f"{use} {size(number)}" for use, number in by_use)
    yield f"memory of one process for the whole world: {size(sum(found.process_bytes.values()))} ({uses})"
    yield f"memory of a device that trains a node: {_of_device(found.device)}"
    yield f"disk: {size(found.checkpoint_bytes)} for a checkpoint of the whole world"
    if all(node.settings.link is None for node in topology.nodes.values()):
        yield "links: the topology describes none, so that messages take no time"
    yield from _times(found, origin)
    yield from _left_out(topology, found)
    yield f"done. estimated, not run: {topology.name}, {len(topology.nodes):,} nodes"


def _of_device(device: Device) -> str:
    if device.num_slices == 1:
        return f"{size(device.kept)} (weights, gradient, moments)"
    slices = f"{size(device.kept)} of weights, gradient and moments in {device.num_slices} slices"
    return f"{size(device.kept + device.gathered)} ({slices}, {size(device.gathered)} gathered within a step)"


def _times(found: Estimate, origin: str) -> Iterator[str]:
    number, what = (found.num_rounds, "run") if found.num_rounds is not None else (1, "round")
    if found.link_seconds:
        yield f"links: {duration(number * found.link_seconds)} of a {what}, along the slowest way through the tree"
    speed, one, side_by_side = found.tokens_per_second, found.process_seconds, found.round_seconds
    if speed is None or one is None or side_by_side is None:
        yield "wall time: unknown; the model is too large to be tried here: give --tokens_per_second"
        return
    yield (
        f"wall time at {speed:,.0f} tokens/s ({origin}): {duration(number * one)} in one process, "
        f"{duration(number * side_by_side)} if every node has a machine of its own"
    )
    yield f"the node that reads most trains for {duration(found.tokens_of_longest / speed)} of a round"


def _left_out(topology: Topology, found: Estimate) -> Iterator[str]:
    told = ["activations", "evaluation", "reading of text"]
    nodes = topology.nodes.values()
    if any(node.settings.link is not None and node.settings.link.jitter > 0 for node in nodes):
        told.append("jitter in times")
    budgets = (demand for node in nodes for demand in (node.settings.privacy, node.settings.example_privacy))
    if any(demand is not None and demand.max_epsilon is not None for demand in budgets):
        told.append("budgets of privacy that run out")
    yield f"left out: {', '.join(told)}"
    if not found.is_certain:
        yield "messages and bytes are expectations: participants are drawn, uploads may be lost or late"


def _tokens(number: float) -> str:
    return f"{number:,.0f} tokens"


def size(num_bytes: float) -> str:
    """Tell bytes in three digits, by powers of 1000."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 999.5 else f"{value:,.0f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Tell seconds in three digits, in the largest unit of which there are two."""
    name, length = next((one for one in _TIMES if seconds >= 2 * one[1]), _TIMES[-1])
    value = seconds / length
    return f"{value:.3g} {name}" if value < 999.5 else f"{value:,.0f} {name}"
