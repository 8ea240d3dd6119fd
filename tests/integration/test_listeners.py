"""Nodes that only listen, and trees in other shapes: what each node trains on, and what must not change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from worldlm.callbacks import Averaging, NodeMetrics, RoundProgress, Summary, Traffic
from worldlm.data import CorpusDataModule, TextFiles
from worldlm.federation.parameters import PARTS
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import WorldTrainer

Make = Callable[..., Any]
LISTENS = "settings: {num_local_steps: 0}"


def fedavg() -> list[Callback]:
    return [Averaging(parts=PARTS), NodeMetrics()]


def with_listener(star: Make, settings: str = "") -> Topology:
    """A star of c, which listens, and of a and b."""
    return star("cab", settings, c=LISTENS)  # type: ignore[no-any-return]


class Start(Callback):
    """Copies the root's weights before the last round."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.world = {name: value.clone() for name, value in weights(trainer, "world").items()}


def weights(trainer: WorldTrainer, name: str) -> dict[str, torch.Tensor]:
    return trainer.world.states[name].parameters


@pytest.mark.parametrize("settings", ["", "participation: 0.7"])
def test_a_listener_does_not_affect_other_nodes(
    star: Make, fit: Make, whole_method: Make, differences: Make, settings: str
) -> None:
    """Three of four children are drawn, not four of five; weights, moments and bytes are the same without c."""
    without_c = fit(star("abde", settings), whole_method(), max_epochs=3)
    with_c = fit(star("abcde", settings, c=LISTENS), whole_method(), max_epochs=3)
    for name in ("world", *"abde"):
        left, right = with_c.world.states[name].state_dict(), without_c.world.states[name].state_dict()
        if name == "world":  # evaluated on the text of all nodes below it, including the listener
            assert left["attention"].pop("c").keys() <= set("abde")  # the mixture that it got
            assert left["memory"].pop("NodeMetrics").keys() == right["memory"].pop("NodeMetrics").keys()
        assert differences(left, right) == [], name
    assert differences(with_c.fit_loop.slot.state_dict(), without_c.fit_loop.slot.state_dict()) == []
    assert with_c.global_step == without_c.global_step


def test_a_listener_receives_and_is_evaluated_but_sends_nothing(star: Make, fit: Make) -> None:
    callbacks = [*fedavg(), Traffic(), Summary(), RoundProgress(), start := Start()]
    trainer = fit(with_listener(star), callbacks, enable_progress_bar=True)
    assert all(torch.equal(value, start.world[name]) for name, value in weights(trainer, "c").items())
    state, other = trainer.world.states["c"], trainer.world.states["a"]
    assert (state.num_visits, state.num_steps, state.num_tokens, state.num_batches) == (0, 0, 0, 0)
    assert state.bytes_down == other.bytes_down > 0
    assert state.bytes_up == 0
    assert all(state.download is None for state in trainer.world.states.values())
    (metrics,) = (callback for callback in callbacks if isinstance(callback, NodeMetrics))
    scores = metrics.scores(state)
    assert set(scores) == {"before", "after_merge"}
    assert scores["after_merge"].perplexity < scores["before"].perplexity


def test_a_listener_does_not_change_the_schedule(star: Make, fit: Make) -> None:
    for limit in (None, 0.5, 1):
        trainer = fit(with_listener(star), fedavg(), limit_train_batches=limit)
        expected = fit(star("ab"), fedavg(), limit_train_batches=limit)
        assert trainer.plan.num_batches("c") == 0
        assert trainer.estimated_stepping_batches == expected.estimated_stepping_batches
        assert [trainer.lr_scheduler_configs[0].scheduler.state_dict()] == [
            expected.lr_scheduler_configs[0].scheduler.state_dict()
        ]


def test_a_federation_of_listeners_passes_on_its_download(fit: Make) -> None:
    text = """
name: t
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - {name: a, corpus: a}
    - name: deaf
      settings: {num_local_steps: 0}
      children: [{name: c, corpus: c}, {name: d, corpus: d}]
"""
    trainer = fit(parse_topology(text, "t.yaml"), metrics := fedavg())
    assert [trainer.world.states[name].participants for name in ("world", "deaf")] == [("a",), ()]
    for name in ("c", "d"):
        assert all(torch.equal(value, weights(trainer, "deaf")[key]) for key, value in weights(trainer, name).items())
    scores = metrics[1].scores(trainer.world.states["deaf"])  # type: ignore[attr-defined]
    assert set(scores) == {"before", "after_merge"}


@pytest.mark.slow
def test_resume_with_listeners(star: Make, whole_method: Make, resume_from_all: Make) -> None:
    hooks = ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_end")
    for topology, options in (
        (with_listener(star), {}),
        (star("ab"), {"shape": "single_all_tokens", "share_memory": False}),
    ):
        method = whole_method if not options else lambda: [Averaging(parts=PARTS), NodeMetrics(), Traffic()]
        assert resume_from_all(topology, method, hooks, **options) == 2 * (2 * 4 + 1)


# ---------------------------------------------------------------------- shapes


def test_fedavg_on_a_flattened_tree_equals_fedavg_on_a_star(
    tree: Topology, star: Make, fit: Make, differences: Make
) -> None:
    flat = star("abcd", b="settings: {num_local_steps: 1}", c="settings: {num_local_steps: 1}")
    public = parse_topology(TREE_WITHOUT_PRIVACY, "t.yaml")
    assert [node.name for node in public.nodes.values()] == [node.name for node in tree.nodes.values()]
    left, right = fit(public, fedavg(), shape="star"), fit(flat, fedavg())
    states = [{name: state.state_dict() for name, state in run.world.states.items()} for run in (left, right)]
    assert differences(*states) == []
    assert differences(left.fit_loop.slot.state_dict(), right.fit_loop.slot.state_dict()) == []


TREE_WITHOUT_PRIVACY = """
name: tree
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: north
      children: [{name: a, corpus: a}, {name: b, corpus: b, settings: {num_local_steps: 1}}]
    - name: south
      children: [{name: c, corpus: c, settings: {num_local_steps: 1}}, {name: d, corpus: d}]
"""


@pytest.mark.parametrize(
    ("options", "world", "leaves"),
    [
        ({}, 0, (4, 2, 2, 4)),
        ({"shape": "star"}, 0, (4, 2, 2, 4)),
        ({"shape": "single"}, 4, (0, 0, 0, 0)),
        ({"shape": "single_all_tokens"}, 12, (0, 0, 0, 0)),
    ],
    ids=str,
)
def test_tokens_of_every_shape(options: dict[str, Any], world: int, leaves: tuple[int, ...], fit: Make) -> None:
    """Two rounds of batches of 2 blocks of 8 tokens; the total is equal except for the step-matched model."""
    trainer = fit(parse_topology(TREE_WITHOUT_PRIVACY, "t.yaml"), fedavg(), **options)
    tokens = {name: state.num_tokens for name, state in trainer.world.states.items()}
    steps = {"world": world} | dict(zip("abcd", leaves, strict=True))
    assert {name: tokens[name] for name in steps} == {name: number * 2 * 8 for name, number in steps.items()}


def test_sub_rounds_do_not_change_the_number_of_tokens(fit: Make) -> None:
    text = TREE_WITHOUT_PRIVACY.replace("num_local_steps: 1", "num_local_steps: 4")
    trainer = fit(parse_topology(text, "t.yaml"), fedavg(), num_subrounds=2)
    states = trainer.world.states
    assert [states[name].num_steps for name in "abcd"] == [4, 8, 8, 4]
    assert [states[name].num_visits for name in "abcd"] == [4, 4, 4, 4]
    assert states["a"].bytes_up == 2 * states["north"].bytes_up


def test_listeners_of_a_single_model_have_its_weights_before_the_round(star: Make, fit: Make) -> None:
    start = Start()
    trainer = fit(star("ab"), [*(metrics := fedavg()), start], shape="single")
    for name in "ab":
        assert all(torch.equal(value, start.world[key]) for key, value in weights(trainer, name).items())
    assert not any(torch.equal(value, start.world[key]) for key, value in weights(trainer, "world").items())
    scores = [metrics[1].scores(trainer.world.states[name]) for name in ("world", "a")]  # type: ignore[attr-defined]
    assert [set(moments) for moments in scores] == [{"before", "after_fit"}, {"before", "after_merge"}]
    assert not any(state.bytes_up for state in trainer.world.states.values())


def test_a_single_model_needs_a_callback_that_merges_all_parts(star: Make, trainer_for: Make) -> None:
    with pytest.raises(ValueError, match="shape single measures one whole model at every node: let one callback merge"):
        trainer_for(star("ab"), [Averaging()], shape="single")


def test_one_corpus_in_one_node_equals_plain_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: Make, differences: Make
) -> None:
    """`single` over one data node, with a listener and the corpus `all`, is that node alone, bit for bit."""
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("wave after wave, salt; " * 40)
    Path("held_out.txt").write_text("salt, wave after wave; " * 5)

    def run(root: str, **options: Any) -> WorldTrainer:
        corpora = {"sea": TextFiles(train="train.txt", validation="held_out.txt")}
        data = CorpusDataModule(dict(corpora), batch_size=2, cache_dir="cache")
        size = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=8, vocab_size=257)
        split = Split(keys=(r"blocks\.1\.(norm_1|attn)\.",), values=(r"blocks\.1\.", r"norm_f\."))
        torch.manual_seed(0)
        module = LanguageModule(size, split, OptimizerSettings(lr=1e-2, warmup_steps=1))
        topology = parse_topology(f"name: t\nsettings: {{num_local_steps: 3}}\nroot: {root}", "t.yaml")
        return fit(topology, fedavg(), data=data, module=module, **options)  # type: ignore[no-any-return]

    plain = run("{name: world, corpus: sea}")
    pooled = run("{name: world, children: [{name: coast, corpus: sea}]}", shape="single")
    assert plain.world.states["world"].num_steps == 6
    assert differences(weights(pooled, "world"), weights(plain, "world")) == []
    assert differences(pooled.fit_loop.slot.state_dict(), plain.fit_loop.slot.state_dict()) == []
    left, right = (trainer.callbacks[1].scores(trainer.world.states["world"]) for trainer in (pooled, plain))  # type: ignore[attr-defined]
    assert left["after_fit"] == right["after_fit"]
