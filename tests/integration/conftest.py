"""A world small enough that a fit takes a fraction of a second: 2 blocks of width 16, 32 tokens, blocks of 8."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tested_family import FAMILY
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from toy_world import BEGINNING, write_toy_world

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    NodeMetrics,
    ResidualExchange,
    Traffic,
    UpdatePrivacy,
)
from worldlm.data.blocks import Blocks
from worldlm.data.packed import PackedCorpus
from worldlm.data.poisson_samplers import make_sampler
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.seeds import derive_seed
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split
from worldlm.monitoring.pictures import draw
from worldlm.storage.noise_key_file import write_key
from worldlm.topology import Node, Privacy, PrivacyOfExamples, Residuals, Settings, Topology, parse_topology
from worldlm.trainer import WorldTrainer

SEQ_LEN, VOCAB_SIZE, BATCH_SIZE = 8, 32, 2


class TinyData(LightningDataModule):
    """Every node's corpus is a text of its own: 13 blocks of random tokens, skewed by the corpus' name."""

    def __init__(self, num_blocks: int = 13) -> None:
        super().__init__()
        self.num_blocks = num_blocks
        self.bytes_per_token: dict[str, float] = {}

    def blocks(self, corpus: str, split: str) -> Blocks:
        rng = np.random.default_rng(derive_seed(0, corpus, split))
        likely = np.random.default_rng(derive_seed(0, corpus)).dirichlet(np.full(VOCAB_SIZE, 0.3))
        num_blocks = self.num_blocks if split == "train" else 3
        tokens = rng.choice(VOCAB_SIZE, num_blocks * SEQ_LEN + 1, p=likely).astype(np.uint16)
        return Blocks(PackedCorpus(Path(corpus), tokens, len(tokens), 1), SEQ_LEN)  # type: ignore[arg-type]

    def nodes(self) -> list[Node]:
        nodes: list[Node] = self.trainer.data_nodes  # type: ignore[union-attr]
        self.bytes_per_token = {node.name: 1.0 for node in nodes}
        return nodes

    def train_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        return {node.name: self.train_loader(node) for node in self.nodes()}

    def train_loader(self, node: Node) -> DataLoader[Tensor]:
        assert node.corpus is not None
        blocks = self.blocks(node.corpus, "train")
        size = node.settings.batch_size or BATCH_SIZE
        key = self.trainer.noise_key if node.settings.example_privacy else None  # type: ignore[union-attr]
        sampler = make_sampler([len(blocks)], size, 7, node.name, key=key)
        return DataLoader(blocks, batch_sampler=sampler, collate_fn=lambda batch: batch, generator=torch.Generator())

    def val_dataloader(self) -> dict[str, DataLoader[Tensor]]:
        loaders = {}
        for node in self.nodes():
            blocks = self.blocks(str(node.corpus), "validation")
            sampler = BatchSampler(SequentialSampler(blocks), 4, drop_last=False)
            loaders[node.name] = DataLoader(blocks, batch_sampler=sampler, collate_fn=lambda batch: batch)
        return loaders


def tiny_module(seed: int = 0, *, dropout: float = 0.0, lr: float = 1e-2, warmup_steps: int = 1) -> LanguageModule:
    if FAMILY:
        module = families.tiny_module(FAMILY, VOCAB_SIZE, SEQ_LEN, seed=seed, lr=lr, warmup_steps=warmup_steps)
        last: Any = [layer for name, layer in module.model.named_modules() if name.endswith("norm")][-1]
    else:
        architecture = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE)
        split = Split(keys=(r"blocks\.1\.(norm_1|attn)\.",), values=(r"blocks\.1\.", r"norm_f\.", r"wte\."))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = LanguageModule(architecture, split, OptimizerSettings(lr=lr, warmup_steps=warmup_steps))
        last = module.model.transformer.norm_f
    if dropout:
        last.register_forward_hook(lambda _, __, out: torch.dropout(out, dropout, module.training))
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def _no_pictures() -> Iterator[None]:
    """Draw no pictures in TensorBoard, which takes longer than to train a world of this size; `pictures` draws them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldlm.monitoring.pictures.draw", lambda *_, **__: {})
        yield


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pictures in TensorBoard."""
    monkeypatch.setattr("worldlm.monitoring.pictures.draw", draw)


@pytest.fixture
def tolerance(accelerator: str) -> float:
    """How far a weight may be from what a CPU comes to: AdamW's first steps amplify another order of summation."""
    return 1e-6 if accelerator == "cpu" else 1e-4


@pytest.fixture
def make_module() -> Callable[..., LanguageModule]:
    return tiny_module


@pytest.fixture
def make_data() -> type[TinyData]:
    return TinyData


TREE = """
name: tree
settings: {num_local_steps: 2, batch_size: 2, num_subrounds: 1}
root:
  name: world
  children:
    - name: north
      children: [{name: a, corpus: a}, {name: b, corpus: b, settings: {num_local_steps: 1}}]
    - name: south
      settings: {jurisdiction: eu, privacy: {clip_norm: 0.5, noise_multiplier: 0.3}}
      children: [{name: c, corpus: c, settings: {num_local_steps: 1}}, {name: d, corpus: d}]
"""


@pytest.fixture
def tree() -> Topology:
    """Three levels; one federation is private."""
    return parse_topology(TREE, "tree.yaml")


@pytest.fixture
def busy_tree() -> Topology:
    """Three levels; a parent holds data, sub-rounds at two levels, one federation is private."""
    text = TREE.replace("- name: north", "- name: north\n      corpus: e\n      settings: {num_subrounds: 2}")
    return parse_topology(text.replace("num_local_steps: 2", "num_local_steps: 1"), "busy.yaml")


@pytest.fixture
def tree_without_noise() -> Topology:
    """`busy_tree`, whose private federation only clips. Noise differs wherever an update differs by rounding."""
    text = TREE.replace("- name: north", "- name: north\n      corpus: e\n      settings: {num_subrounds: 2}")
    for old, new in (("num_local_steps: 2", "num_local_steps: 1"), ("noise_multiplier: 0.3", "noise_multiplier: 0")):
        text = text.replace(old, new)
    return parse_topology(text, "busy.yaml")


@pytest.fixture
def star() -> Callable[..., Topology]:
    """Return a builder of a star of leaves `a`, `b`, ...; settings as YAML, for all or by leaf."""

    def build(leaves: str = "ab", settings: str = "", **own: str) -> Topology:
        children = "\n".join(f"    - {{name: {n}, corpus: {n}{', ' + own[n] if n in own else ''}}}" for n in leaves)
        text = f"name: star\nsettings: {{num_local_steps: 2, batch_size: 2{', ' + settings if settings else ''}}}\n"
        return parse_topology(f"{text}root:\n  name: world\n  children:\n{children}\n", "star.yaml")

    return build


@pytest.fixture
def single() -> Topology:
    """One node, nobody to talk to."""
    text = "name: single\nsettings: {num_local_steps: 3, batch_size: 2}\nroot: {name: alone, corpus: a}\n"
    return parse_topology(text, "single.yaml")


@pytest.fixture
def whole_method() -> Callable[[], list[Callback]]:
    """Return a builder of the whole method; a residual finds a home whatever it is like."""

    def build() -> list[Callback]:
        nesterov = {"lr": 0.7, "momentum": 0.9, "nesterov": True}
        return [
            Averaging(optimizer="SGD", arguments=nesterov),
            AttentionAggregation(temperature=0.5),
            ResidualExchange(num_residuals=1),
            UpdatePrivacy(),
            NodeMetrics(),
            Traffic(),
        ]

    return build


@pytest.fixture
def noise_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a noise key that is the same in every test."""
    path = tmp_path_factory.mktemp("key") / "noise.key"
    write_key(NoiseKey(bytes(32)), path)
    return path


@pytest.fixture
def trainer_for(tmp_path: Path, noise_key: Path, accelerator: str) -> Callable[..., WorldTrainer]:
    """Return a builder of quiet trainers; keywords as WorldTrainer. `default_root_dir` is the folder of the run."""

    def build(
        topology: Topology,
        callbacks: Sequence[Callback] = (),
        *,
        share_memory: bool | None = None,
        **options: Any,
    ) -> WorldTrainer:
        quiet: dict[str, Any] = {
            "accelerator": accelerator,
            "precision": "32-true",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            "seed": 7,
            "noise_key": noise_key,
        }
        if "max_time" not in options:
            quiet["max_epochs"] = 2
        if any(isinstance(callback, Checkpoint) for callback in callbacks):
            quiet["enable_checkpointing"] = True
        if accelerator != "cpu":
            quiet["nodes_on"] = "host"  # merged where those on disk, and those of several processes, are
            if share_memory:
                pytest.skip("in the host's memory nodes share none with a module on a GPU")
        trainer = WorldTrainer(topology=topology, callbacks=list(callbacks), **{**quiet, **options})
        trainer.folder = Path(trainer.default_root_dir)
        trainer.run_settings.share_memory = share_memory
        return trainer

    return build


@pytest.fixture
def fit(trainer_for: Callable[..., WorldTrainer]) -> Callable[..., WorldTrainer]:
    """Return a function that trains a world and gives its trainer back; SIGTERM ends it without an error."""

    def run(
        topology: Topology,
        callbacks: Sequence[Callback] = (),
        *,
        resume: Path | None = None,
        module: LanguageModule | None = None,
        data: LightningDataModule | None = None,
        **options: Any,
    ) -> WorldTrainer:
        trainer = trainer_for(topology, callbacks, **options)
        with suppress(SIGTERMException):
            trainer.fit(
                tiny_module(0) if module is None else module,
                datamodule=TinyData() if data is None else data,
                ckpt_path=resume,
            )
        return trainer

    return run


def snapshot(trainer: WorldTrainer) -> dict[str, Any]:
    """Everything that a run came to: nodes, messages, optimizers, callbacks, counters."""
    loop = trainer.fit_loop
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    ours = [callback for callback in callbacks if type(callback).__module__.startswith("worldlm")]
    state = loop.on_save_checkpoint()
    return {
        "world": state["world"],
        "optimizers": state["optimizers"],
        "callbacks": {callback.state_key: callback.state_dict() for callback in ours},
        "epochs": (trainer.current_epoch, loop.epoch_progress.total.processed),
        "global_step": trainer.global_step,
        "batches": loop.epoch_loop.batch_progress.total.completed,
        "batches_that_stepped": loop.epoch_loop._batches_that_stepped,
        "live": {name: value.detach() for name, value in trainer.lightning_module.named_parameters()},
    }


def differences(left: Any, right: Any, path: str = "") -> list[str]:
    """Name where two nests of containers, tensors and values differ by a single bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        same = left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu())
        return [] if same else [f"{path}: tensors differ"]
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        if sorted(map(str, left)) != sorted(map(str, right)):
            return [f"{path}: {sorted(map(str, left))} and {sorted(map(str, right))}"]
        return [line for key in left for line in differences(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        if len(left) != len(right):
            return [f"{path}: lengths {len(left)} and {len(right)}"]
        pairs = zip(left, right, strict=True)
        return [line for i, (one, two) in enumerate(pairs) for line in differences(one, two, f"{path}/{i}")]
    both_nan = isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right)
    return [] if both_nan or (type(left) is type(right) and left == right) else [f"{path}: {left!r} and {right!r}"]


@pytest.fixture(name="snapshot")
def _snapshot() -> Callable[[WorldTrainer], dict[str, Any]]:
    return snapshot


@pytest.fixture(name="differences")
def _differences() -> Callable[..., list[str]]:
    return differences


def _tightened(draw: st.DrawFn, demand: Privacy | None, noises: Sequence[float]) -> Privacy | None:
    if demand is None:
        return draw(st.sampled_from([None, None, *(Privacy(clip_norm=0.5, noise_multiplier=one) for one in noises)]))
    noise = draw(st.sampled_from([one for one in noises if one >= demand.noise_multiplier]))
    return replace(demand, clip_norm=draw(st.sampled_from([0.25, demand.clip_norm])), noise_multiplier=noise)


@st.composite
def _worlds(
    draw: st.DrawFn, max_nodes: int = 7, noises: Sequence[float] = (0.0, 0.5, 1.0), examples: bool = False
) -> Topology:
    """Trees with chance of every kind, whose children never ask for less privacy than their parents."""
    num_nodes = draw(st.integers(3, max_nodes))
    above = [draw(st.integers(max(0, i - 3), i - 1)) for i in range(1, num_nodes)]
    below = {i: [j for j, parent in enumerate(above, 1) if parent == i] for i in range(num_nodes)}

    def build(i: int, demand: Privacy | None, of_examples: PrivacyOfExamples | None) -> Node:
        inner = bool(below[i])
        demand = _tightened(draw, demand, noises) if noises else None
        if examples and of_examples is None and draw(st.booleans()):
            of_examples = PrivacyOfExamples(clip_norm=0.5, noise_multiplier=draw(st.sampled_from([*noises])))
        own = Settings(
            num_local_steps=draw(st.integers(1, 2)),
            batch_size=2,
            num_subrounds=draw(st.integers(1, 2)) if inner else 1,
            participation=draw(st.sampled_from([1.0, 1.0, 0.6])) if inner else 1.0,
            sampling=draw(st.sampled_from(["auto", "fixed", "poisson"])) if inner else "auto",
            dropout=draw(st.sampled_from([0.0, 0.0, 0.4])) if i else 0.0,
            residuals=Residuals(
                share=draw(st.sampled_from([True, True, True, False])),
                accept_from=draw(st.sampled_from([None, None, (), ("eu",), ("us", "eu")])),
            ),
            jurisdiction=draw(st.sampled_from([None, "eu", "us"])),
            privacy=demand,
            example_privacy=of_examples,
        )
        corpus = f"text{i}" if not inner or draw(st.sampled_from([False, False, True])) else None
        children = tuple(build(j, demand, of_examples) for j in below[i])
        return Node(name=f"n{i}", corpus=corpus, settings=own, children=children)

    return Topology(name="random", root=build(0, None, None))


@pytest.fixture(scope="session")
def worlds() -> Callable[..., st.SearchStrategy[Topology]]:
    """Return a builder of strategies for small random worlds, the root `n0`."""
    return _worlds


class SaveEverywhere(Callback):
    """Saves a checkpoint within every one of Lightning's hooks it is told of."""

    def __init__(self, folder: Path, hooks: Sequence[str]) -> None:
        self.folder = folder
        self.saved: list[Path] = []
        for hook in hooks:
            setattr(self, hook, partial(self._save, hook))

    def _save(self, hook: str, trainer: Any, *args: Any) -> None:
        path = self.folder / f"{len(self.saved):03}-{hook}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self.saved.append(path)


@pytest.fixture
def save_everywhere(tmp_path: Path) -> Callable[..., SaveEverywhere]:
    """Return a builder of a callback that saves in the hooks it is given; `saved` lists the files."""
    return lambda *hooks: SaveEverywhere(tmp_path, hooks)


@pytest.fixture
def resume_from_all(
    fit: Callable[..., WorldTrainer],
    make_module: Callable[..., LanguageModule],
    save_everywhere: Callable[..., SaveEverywhere],
) -> Callable[..., int]:
    """Return a function that resumes from all that a run saved, or every so-manieth, and asks for the same bits."""

    def resume(
        topology: Topology,
        method: Callable[[], list[Callback]],
        hooks: Sequence[str],
        *,
        every: int = 1,
        dropout: float = 0.0,
        **options: Any,
    ) -> int:
        saver = save_everywhere(*hooks)
        whole = snapshot(fit(topology, [*method(), saver], module=make_module(dropout=dropout), **options))
        for path in saver.saved[::every]:
            other = make_module(seed=99, dropout=dropout)
            found = differences(snapshot(fit(topology, method(), resume=path, module=other, **options)), whole)
            assert found == [], f"after a resume from {path.name}"
        return len(saver.saved)

    return resume


# ---------------------------------------------------------------------- a run by the command line

SHORE_RECIPE = (
    "seed_everything: 7\n"
    + BEGINNING
    + """\
trainer:
  max_epochs: 2
  log_every_n_steps: 1
  callbacks:
    - class_path: worldlm.callbacks.Averaging
      init_args: {parts: [backbone]}
    - class_path: worldlm.callbacks.AttentionAggregation
      init_args: {temperature: 0.1}
    - class_path: worldlm.callbacks.ResidualExchange
    - class_path: worldlm.callbacks.UpdatePrivacy
    - {class_path: worldlm.callbacks.Samples, init_args: {num_new_tokens: 1}}
"""
)

SHORE = """\
name: shore
settings: {num_local_steps: 3}
root:
  name: world
  children:
    - name: land
      settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0}}
      children:
        - {name: hills, corpus: hills}
        - {name: woods, corpus: hills}
    - {name: sea, corpus: sea}
"""


@pytest.fixture
def shore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, its topology and its text, to stand in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return write_toy_world(tmp_path, SHORE, SHORE_RECIPE)
