"""A run in TensorBoard: pictures, the layout of charts, and text samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from worldlm.callbacks import NodeMetrics, Pictures, Record, Samples, Summary
from worldlm.monitoring.pictures import layout, rounds_between
from worldlm.topology import Topology, parse_topology

Make = Callable[..., Any]


class Letters:
    """A tokenizer with 32 tokens, one letter each."""

    vocab_size, end_of_text = 32, 31

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) % 32 for letter in text] for text in texts]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(64 + token) for token in tokens)


@pytest.fixture
def board(tmp_path: Path) -> Callable[[], EventAccumulator]:
    def read() -> EventAccumulator:
        events = EventAccumulator(str(tmp_path / "board"), size_guidance={"images": 0, "tensors": 0})
        events.Reload()
        return events

    return read


@pytest.fixture
def logger(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path, name="board", version="")


@pytest.mark.usefixtures("pictures")
def test_pictures_are_drawn_every_n_rounds(
    tree: Topology, fit: Make, whole_method: Make, logger: TensorBoardLogger, board: Make
) -> None:
    fit(tree, [*whole_method(), Record(), Pictures(every_n_rounds=2)], max_epochs=3, logger=logger)
    events = board()
    names = ["attention", "bytes", "curves", "perplexity", "privacy", "residuals"]
    assert sorted(events.Tags()["images"]) == [f"pictures/{name}" for name in names]
    for name in names:
        assert [event.step for event in events.Images(f"pictures/{name}")] == [2, 3]
    picture = events.Images("pictures/perplexity")[0]
    assert picture.encoded_image_string.startswith(b"\x89PNG")


def test_charts_are_laid_out_by_federation(
    tree: Topology, fit: Make, whole_method: Make, logger: TensorBoardLogger, board: Make
) -> None:
    fit(tree, [*whole_method(), Record(), Pictures(every_n_rounds=9)], max_epochs=2, logger=logger, log_every_n_steps=1)
    events = board()
    stored = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [section.title for section in stored.category] == list(layout(tree)) == [
        "world at a glance", "world", "world > north", "world > south",
    ]  # fmt: skip
    known = set(events.Tags()["scalars"])
    wanted = {tag.strip("^$") for section in stored.category for chart in section.chart for tag in chart.multiline.tag}
    missing = {tag for tag in wanted - known if not tag.endswith("/max_epsilon")}  # this topology sets no budget
    assert missing == set()


def test_one_node_has_charts_without_a_federation() -> None:
    tree = parse_topology("name: t\nsettings: {num_local_steps: 1}\nroot: {name: w, corpus: a}", "t.yaml")
    charts = {title: list(charts) for title, charts in layout(tree).items()}
    assert charts == {
        "world at a glance": ["mean perplexity after_merge", "mean perplexity after_fit"],
        "w": ["perplexity after_fit", "loss by local step"],
    }


def test_pictures_need_a_record(tree: Topology, fit: Make, whole_method: Make) -> None:
    with pytest.raises(ValueError, match="Pictures needs Record"):
        fit(tree, [*whole_method(), Pictures()])


@pytest.mark.parametrize(
    ("rounds", "steps", "expected"),
    [
        *[(1, 100, 1), (5, 100, 1), (6, 100, 2), (20, 100, 4)],  # a fifth of the run
        *[(5, 99, 2), (5, 20, 5), (20, 20, 5), (5, 1, 100), (20, 0, 100)],  # a hundred steps
        *[(100, 20, 20), (1000, 1, 200), (None, 500, 10), (-1, 500, 10), (-1, 2, 50)],  # the larger of both
    ],
)
def test_rounds_between_pictures(rounds: int | None, steps: int, expected: int) -> None:
    trainer = SimpleNamespace(max_epochs=rounds, steps_per_round=lambda: {"a": steps, "b": steps // 2})
    assert rounds_between(trainer) == expected  # type: ignore[arg-type]


@pytest.mark.usefixtures("pictures")
def test_by_default_a_short_run_is_drawn_once(
    tree: Topology, with_letters: Make, whole_method: Make, logger: TensorBoardLogger, board: Make
) -> None:
    method = [callback for callback in whole_method() if not isinstance(callback, NodeMetrics)]
    with_letters(tree, [*method, Record(), Pictures(), Samples("AB", num_new_tokens=2)], max_epochs=2, logger=logger)
    events = board()
    assert [event.step for event in events.Images("pictures/perplexity")] == [2]
    assert {event.step for event in events.Tensors("samples/world/text_summary")} == {2}


def test_epsilon_and_max_epsilon_share_a_chart() -> None:
    text = "name: t\nsettings: {num_local_steps: 1}\nroot: {name: w, children: [{name: a, corpus: a, settings: "
    tree = parse_topology(text + "{privacy: {clip_norm: 1, noise_multiplier: 1, max_epsilon: 9}}}]}", "t.yaml")
    assert layout(tree)["w"]["epsilon, and max_epsilon"] == ["Multiline", ["^a/epsilon$", "^a/max_epsilon$"]]


@pytest.fixture
def with_letters(fit: Make) -> Make:
    class Lettered(NodeMetrics):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            super().setup(trainer, pl_module, stage)
            trainer.datamodule.tokenizer = Letters()

    return lambda tree, callbacks, **options: fit(tree, [Lettered(), *callbacks], **options)


def test_every_node_continues_the_prompt(
    tree: Topology, with_letters: Make, whole_method: Make, logger: TensorBoardLogger, board: Make
) -> None:
    method = [callback for callback in whole_method() if not isinstance(callback, NodeMetrics)]
    with_letters(tree, [*method, Samples(prompt="AB", num_new_tokens=6, every_n_rounds=1)], max_epochs=2, logger=logger)
    events = board()
    for name in tree.nodes:
        texts = events.Tensors(f"samples/{name}/text_summary")
        assert sorted({event.step for event in texts}) == [1, 2]
        written = texts[-1].tensor_proto.string_val[0].decode().removeprefix("    ")
        assert written.startswith("AB")
        assert len(written) == 8


def test_a_diverged_node_has_no_sample(
    tree: Topology, with_letters: Make, whole_method: Make, logger: TensorBoardLogger, board: Make
) -> None:
    class Diverge(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.active_node == "a":
                with torch.no_grad():
                    next(pl_module.parameters()).fill_(torch.nan)

    method = [callback for callback in whole_method() if not isinstance(callback, NodeMetrics)]
    with_letters(tree, [*method, Samples("AB", num_new_tokens=2), Diverge()], max_epochs=2, logger=logger)
    events = board()
    texts = {
        name: events.Tensors(f"samples/{name}/text_summary")[-1].tensor_proto.string_val[0].decode()
        for name in tree.nodes
    }
    diverged = [name for name, text in texts.items() if "no text: the model has diverged" in text]
    assert diverged == ["a"]


def test_samples_do_not_change_the_run(tree: Topology, with_letters: Make, whole_method: Make, tmp_path: Path) -> None:
    method = [callback for callback in whole_method() if not isinstance(callback, NodeMetrics)]
    logger = TensorBoardLogger(tmp_path, name="board", version="")
    writing = with_letters(tree, [*method, Samples()], logger=logger).world.states
    method = [callback for callback in whole_method() if not isinstance(callback, NodeMetrics)]
    silent = with_letters(tree, method).world.states
    for name, state in writing.items():
        for key, tensor in state.parameters.items():
            assert torch.equal(tensor, silent[name].parameters[key])


@pytest.mark.parametrize("arguments", [{"prompt": ""}, {"num_new_tokens": 0}, {"every_n_rounds": 0}])
def test_samples_reject_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Samples needs a prompt"):
        Samples(**arguments)


def test_final_figures_are_logged_with_the_settings(
    tree: Topology, fit: Make, whole_method: Make, tmp_path: Path, board: Make
) -> None:
    logger = TensorBoardLogger(tmp_path, name="board", version="", default_hp_metric=False)
    trainer = fit(tree, [*whole_method(), Summary()], logger=logger)
    events = board()
    metrics = next(callback for callback in trainer.callbacks if isinstance(callback, NodeMetrics))
    scores = [metrics.scores(trainer.world.states[node.name])["after_fit"].perplexity for node in tree.data_nodes]
    (mean,) = events.Scalars("hp/mean/after_fit")
    assert mean.value == pytest.approx(sum(scores) / len(scores), rel=1e-6)
    experiment = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    shown = [metric.name.tag for metric in experiment.experiment.metric_infos]
    assert shown[:2] == ["hp/mean/after_fit", "hp/mean/after_merge"]
    assert not [tag for tag in shown if tag.endswith("/before")]
