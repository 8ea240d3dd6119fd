"""Times by hand, speed, figures in words, and a world that nobody can run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange, TokenRows
from worldlm.cli import main
from worldlm.commands.estimate import Estimate, estimate, traffic
from worldlm.commands.estimate.memory import Device, device_memory
from worldlm.commands.estimate.message_sizes import MessageSizes
from worldlm.commands.estimate.round_time import critical_path
from worldlm.commands.estimate.speed import measure_speed
from worldlm.commands.estimate.table import draw, duration, lines, size
from worldlm.federation.parameters import Part
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.topology import Topology, find_file, load_topology, parse_topology
from worldlm.trainer.world_trainer import WorldTrainer


def _module(num_blocks: int, d_model: int, vocab_size: int, device: str = "meta") -> LanguageModule:
    last = num_blocks - 1
    with torch.device(device):
        return LanguageModule(
            Architecture(num_blocks=num_blocks, d_model=d_model, num_heads=8, max_seq_len=32, vocab_size=vocab_size),
            Split(keys=(rf"blocks\.{last}\.attn",), values=(rf"blocks\.{last}\.", r"norm_f\.")),
            OptimizerSettings(),
        )


def _trainer(topology: Topology, callbacks: Sequence[Any], tmp_path: Path) -> WorldTrainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "default_root_dir": tmp_path, "enable_model_summary": False, **quiet}
    return WorldTrainer(topology=topology, callbacks=list(callbacks), max_epochs=20, seed=1, **options)


TREE = """
name: t
settings: {num_local_steps: 10}
root:
  name: w
  settings: {num_subrounds: 2}
  children:
    - name: near
      settings: {num_subrounds: 3, link: {bandwidth_mbps: 8, latency_ms: 500}}
      children:
        - {name: a, corpus: c, settings: {link: {bandwidth_mbps: 16}}}
        - {name: b, corpus: c, settings: {link: null, num_local_steps: 40}}
    - {name: far, corpus: c, settings: {link: {bandwidth_mbps: 0.8, latency_ms: 1000}}}
    - {name: ear, corpus: c, settings: {num_local_steps: 0, link: {bandwidth_mbps: 0.1, latency_ms: 0}}}
"""


def test_residuals_of_a_deep_tree() -> None:
    """A federation of at least two sends up to `num_residuals`, also those from below; one of one child only those."""
    tree = "{name: n39, children: [{name: a, corpus: c}, {name: b, corpus: c}]}"
    for i in range(38, -1, -1):
        tree = f"{{name: n{i}, children: [{tree}]}}"
    text = f"name: t\nsettings: {{num_local_steps: 1, residuals: {{share: true}}}}\nroot: {tree}"
    parts: dict[Part, int] = {"backbone": 8, "keys": 4, "values": 4}
    sizes = MessageSizes(parts=parts, model=16, residual_down=8, residual_up=8, num_residuals=1)
    found = traffic.expect_traffic(parse_topology(text, "t"), sizes)
    assert [found[f"n{i}"].residuals for i in range(40)] == [0, *[1] * 39]
    assert found["a"].residuals == 0


def test_the_critical_path_by_hand() -> None:
    sizes = MessageSizes(parts={"backbone": 1_000_000, "keys": 0, "values": 0}, model=1_000_000)

    def way(text: str, seconds_of_a_step: float) -> float:
        steps = seconds_of_a_step
        return critical_path(
            parse_topology(text, "t"), sizes, lambda node: steps * (node.settings.num_local_steps or 0)
        )

    # ear only receives, 80 s; far 2 * (1 + 10) s; near 2 * 1.5 s and 3 times a, 2 * 0.5 s
    assert way(TREE, 0.0) == pytest.approx(2 * 80)
    without_ear = TREE[: TREE.index("    - {name: ear")]
    assert way(without_ear, 0.0) == pytest.approx(2 * 22)
    hurried = without_ear.replace("{num_subrounds: 2}", "{num_subrounds: 2, deadline_seconds: 7}")
    assert way(hurried, 0.0) == pytest.approx(2 * 7)
    assert way(hurried, 0.1) == pytest.approx(2 * max(7 + 1, 3 + 3 * max(1 + 1, 4)))
    own = without_ear.replace("name: w\n", "name: w\n  corpus: c\n")
    assert way(own, 10.0) == pytest.approx(2 * max(100, 22 + 100, 3 + 3 * 400))


@pytest.fixture(scope="module")
def giant(tmp_path_factory: pytest.TempPathFactory) -> tuple[Topology, Estimate]:
    """100 federations of 100 nodes, at 6.65 G parameters."""
    callbacks = [Averaging(), TokenRows(), AttentionAggregation(), ResidualExchange(num_residuals=1)]
    text = find_file("topologies", "hundred_thousand").read_text()
    topology = parse_topology(text.replace("copies: 1000", "copies: 100"), "ten_thousand.yaml")
    trainer = _trainer(topology, callbacks, tmp_path_factory.mktemp("giant"))
    return topology, estimate(trainer, _module(32, 4096, 50368), 8, tokens_per_second=3000.0)


def test_a_world_that_nobody_can_run(giant: tuple[Topology, Estimate]) -> None:
    _, found = giant
    model = 4 * (50368 * 4096 + 32 * (12 * 4096**2 + 2 * 4096) + 4096)
    assert found.sizes.model == found.sizes.whole == model
    root, federations, nodes = found.levels
    assert (root.num_nodes, federations.num_nodes, nodes.num_nodes, nodes.num_with_data) == (1, 100, 10_000, 10_000)
    assert nodes.bytes_down == 10_000 * model
    assert nodes.bytes_up == 10_000 * (model + 4 * 50368)
    assert (federations.messages, nodes.messages) == (200, 20_000)
    residual = found.sizes.parts["keys"] + found.sizes.parts["values"]
    assert federations.residual_bytes == 200 * residual  # one climbs from each federation, and is answered
    assert nodes.residual_bytes == 0
    of_leaf = 2 * 0.02 + (2 * model + 4 * 50368) * 8 / 1e9
    of_federation = 2 * 0.08 + (2 * model + 4 * 50368) * 8 / 1e10
    assert nodes.link_seconds == pytest.approx(of_leaf)
    assert found.link_seconds == pytest.approx(of_leaf + of_federation)
    fit = 500 * 8 * 32
    assert found.tokens == 10_000 * fit
    assert found.process_seconds == pytest.approx(found.tokens / 3000)
    assert found.round_seconds == pytest.approx(found.link_seconds + fit / 3000)
    assert found.process_bytes["weights"] == 10_101 * model
    assert found.process_bytes["inner optimizers"] == 20_000 * model
    assert nodes.machine_bytes == 5 * model + residual  # weights, moments, gradient, download; the common first layers


def test_a_device_holds_four_models_or_its_slices_of_them_and_two_blocks() -> None:
    block, rest = 4 * (12 * 64**2 + 2 * 64), 4 * (257 * 64 + 64)
    module = _module(5, 64, 257)
    assert device_memory(module, 1) == Device(owned=4 * (5 * block + rest), gathered=0, num_slices=1)
    assert device_memory(module, 8) == Device(owned=(5 * block + rest) // 2, gathered=2 * block + rest, num_slices=8)


def test_moments_that_are_not_kept_are_those_of_the_node_at_work(tmp_path: Path) -> None:
    topology = parse_topology(
        TREE.replace("{num_local_steps: 10}", "{num_local_steps: 10, optimizer_state: reset}"), "t"
    )
    found = estimate(_trainer(topology, [Averaging()], tmp_path), _module(2, 16, 257), 8, tokens_per_second=1.0)
    assert "inner optimizers" not in found.process_bytes
    assert found.process_bytes["active inner optimizer"] == 2 * found.sizes.whole


def test_the_lines_of_an_estimate(giant: tuple[Topology, Estimate]) -> None:
    topology, found = giant
    assert draw("t", found).row_count == 4
    text = "\n".join(lines(topology, found, "given"))
    assert "run of 20 rounds: 5.37 PB down, 5.37 PB up, at most" in text
    assert "wall time at 3,000 tokens/s (given)" in text
    assert text.splitlines()[-1] == "done. estimated, not run: hundred-thousand, 10,101 nodes"
    assert "expectations" not in text


def test_speed_is_measured_on_real_steps(tmp_path: Path) -> None:
    topology = load_topology("single")
    trainer = _trainer(topology, [], tmp_path)
    before = torch.get_rng_state()
    assert 0 < measure_speed(trainer, _module(1, 16, 32), 2) < float("inf")
    assert torch.equal(before, torch.get_rng_state())


def test_a_slow_machine_is_measured_with_smaller_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(load_topology("single"), [], tmp_path)
    module, loss, sequences = _module(1, 16, 32), LanguageModule.loss, list[int]()

    def recorded(self: LanguageModule, batch: torch.Tensor) -> torch.Tensor:
        sequences.append(len(batch))
        return loss(self, batch)

    monkeypatch.setattr(LanguageModule, "loss", recorded)
    clock = count(0, 2)  # each step takes two seconds
    monkeypatch.setattr("worldlm.commands.estimate.speed.time.perf_counter", lambda: next(clock))
    assert measure_speed(trainer, module, 64) == 2 * module.architecture.max_seq_len / 2
    assert sequences == [1, 2, 2, 2]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (12_345, "12.3 kB"), (5e15, "5 PB"), (3e24, "3,000 ZB")],
)
def test_sizes_in_words(number: float, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (1.234, "1.23 s"), (119, "119 s"), (120, "2 minutes"), (7200, "2 hours"), (1e12, "31,688 years")],
)
def test_times_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ---------------------------------------------------------------------- the command


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--recipe", "methods/fedper", "--trainer.max_epochs", "3", "--tokens_per_second", "1000"]
    topology = tmp_path / "drawn.yaml"
    topology.write_text(
        "name: drawn\nsettings: {num_local_steps: 2}\nroot:\n  name: w\n  settings: {participation: 0.5}\n"
        "  children: [{name: a, corpus: tools, copies: 4}]\n"
    )
    assert main(["topology", "estimate", "quickstart", *options, "--federation.topology", str(topology)]) == 0
    output, messages = capsys.readouterr()
    assert "measuring" not in messages
    assert "drawn: one round, as expected" in output
    assert "run of 3 rounds: 10.2 MB down, 10.2 MB up; 12,288 tokens" in output  # 3 * 2 backbones; 2 * 2 * 8 * 128
    assert "12.3 s in one process" in output
    assert "messages and bytes are expectations" in output
    assert output.splitlines()[-1].startswith("done. estimated, not run: drawn, 5 nodes")
    assert [path.name for path in tmp_path.iterdir()] == ["drawn.yaml"]  # it leaves nothing behind


def test_measuring_takes_time_and_is_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worldlm.commands.estimate.command.measure_speed", lambda *_: 100.0)
    assert main(["topology", "estimate", "quickstart"]) == 0
    output, messages = capsys.readouterr()
    assert "wall time at 100 tokens/s (measured on this machine)" in output
    assert "worldlm: measuring the speed of this machine; --tokens_per_second X skips it" in messages


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "topology estimate: needs a recipe"),
        (["quickstrat"], "no file 'quickstrat', and no file of that name in recipes"),
        (["quickstart", "--tokens_per_second", "0"], "--tokens_per_second must be a finite number above 0, but is 0"),
        (["quickstart", "--trainer.max_epochz", "3"], "no setting --trainer.max_epochz; did you mean"),
    ],
)
def test_a_mistake_is_reported_in_one_line(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "estimate", *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"worldlm: {message}")
    assert not any("Traceback" in line for line in lines)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topology", "estimate", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: worldlm topology estimate RECIPE")
