"""Prints an estimate as a table and as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from worldlm.commands.estimate.memory import Device
from worldlm.commands.estimate.run_estimate import Estimate, Level
from worldlm.topology import Topology
from worldlm.topology.upload_noise import noise_warnings

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB")
_TIMES = (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0), ("s", 1.0))


def draw(title: str, result: Estimate) -> Table:
    """Return the table of one round, with a row for every level of the tree and one for their sum."""
    heading = "one round" if result.is_exact else "one round, as expected"
    table = Table(title=f"{title}: {heading}")
    for i, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if i else "left")
    for level in result.levels:
        table.add_row("root" if level.depth == 0 else str(level.depth), *_cells(level))
    if len(result.levels) > 1:
        table.add_section()
        table.add_row("all", *_cells(_sum(result)))
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


def _sum(result: Estimate) -> Level:
    levels = result.levels
    return Level(
        depth=-1,
        num_nodes=sum(level.num_nodes for level in levels),
        num_with_data=sum(level.num_with_data for level in levels),
        messages=sum(level.messages for level in levels),
        bytes_down=sum(level.bytes_down for level in levels),
        bytes_up=sum(level.bytes_up for level in levels),
        residual_bytes=sum(level.residual_bytes for level in levels),
        link_seconds=result.link_seconds,
        machine_bytes=max(level.machine_bytes for level in levels),
    )


def lines(topology: Topology, result: Estimate, origin: str) -> Iterator[str]:
    """Yield lines about the estimate of the run and about its limits.

    Args:
        topology: The tree.
        result: The estimate.
        origin: The source of the tokens per second.
    """
    parts = ", ".join(f"{part} {size(number)}" for part, number in result.sizes.parts.items())
    sizes = result.sizes
    packed = ""
    if sizes.packed_up is not None and {sizes.download, sizes.packed_up} != {sizes.model}:
        packed = f", as {size(sizes.download)} down and {size(sizes.packed_up)} up"
    yield f"model: {size(result.sizes.whole)} ({parts}), of which {size(result.sizes.model)} are sent each way{packed}"
    whole, rounds = _sum(result), result.num_rounds
    if rounds is not None:
        down, up, most = (rounds * number for number in (whole.bytes_down, whole.bytes_up, whole.residual_bytes))
        residuals = f", at most {size(most)} of residuals" if most else ""
        yield f"run of {rounds} rounds: {size(down)} down, {size(up)} up{residuals}; {_tokens(rounds * result.tokens)}"
    by_use = sorted(result.process_bytes.items(), key=lambda use: -use[1])
    uses = ", ".join(f"{use} {size(number)}" for use, number in by_use)
    yield f"memory of one process for the whole world: {size(sum(result.process_bytes.values()))} ({uses})"
    if frozen := result.process_bytes.get("frozen model"):
        yield f"frozen model: {size(frozen)}, once in a process; it is neither sent nor stored"
    yield f"memory of a device that trains a node: {_device_text(result.device)}"
    yield f"disk: {size(result.checkpoint_bytes)} for a checkpoint of the whole world"
    if all(node.settings.link is None for node in topology.nodes.values()):
        yield "links: the topology has none, so messages take no time"
    yield from _times(result, origin)
    yield from noise_warnings(topology, sizes.num_sent)
    yield from _left_out(topology, result)
    yield f"done. estimated, not run: {topology.name}, {len(topology.nodes):,} nodes"


def _device_text(device: Device) -> str:
    if device.num_slices == 1:
        return f"{size(device.owned)} (weights, gradient, moments)"
    slices = f"{size(device.owned)} of weights, gradient and moments in {device.num_slices} slices"
    return f"{size(device.owned + device.gathered)} ({slices}, {size(device.gathered)} gathered within a step)"


def _times(result: Estimate, origin: str) -> Iterator[str]:
    number, unit = (result.num_rounds, "run") if result.num_rounds is not None else (1, "round")
    if result.link_seconds:
        yield f"links: {duration(number * result.link_seconds)} of a {unit}, along the slowest path through the tree"
    speed, sequential, parallel = result.tokens_per_second, result.process_seconds, result.round_seconds
    if speed is None or sequential is None or parallel is None:
        yield "wall time: unknown; the model is too large to be measured here: give --tokens_per_second"
        return
    yield (
        f"wall time at {speed:,.0f} tokens/s ({origin}): {duration(number * sequential)} in one process, "
        f"{duration(number * parallel)} if every node has a machine of its own"
    )
    yield f"the node with most tokens trains for {duration(result.max_node_tokens / speed)} of a round"


def _left_out(topology: Topology, result: Estimate) -> Iterator[str]:
    parts = ["activations", "evaluation", "reading of text"]
    nodes = topology.nodes.values()
    if any(node.settings.link is not None and node.settings.link.jitter > 0 for node in nodes):
        parts.append("jitter in times")
    budgets = (setting for node in nodes for setting in (node.settings.privacy, node.settings.example_privacy))
    if any(setting is not None and setting.max_epsilon is not None for setting in budgets):
        parts.append("privacy budgets that run out")
    yield f"left out: {', '.join(parts)}"
    if not result.is_exact:
        yield "messages and bytes are expectations: participants are drawn, and uploads may be lost or late"


def _tokens(number: float) -> str:
    return f"{number:,.0f} tokens"


def size(num_bytes: float) -> str:
    """Format bytes with three digits, by powers of 1000."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.3g} {_UNITS[unit]}" if value < 999.5 else f"{value:,.0f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Format seconds with three digits, in the largest unit of which there are at least two."""
    name, length = next((unit for unit in _TIMES if seconds >= 2 * unit[1]), _TIMES[-1])
    value = seconds / length
    return f"{value:.3g} {name}" if value < 999.5 else f"{value:,.0f} {name}"
