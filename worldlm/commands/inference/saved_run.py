"""A run that was, opened by the name of its folder: its nodes, tree, tokenizer and record, without a trainer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from worldlm.checkpoint.read import SavedWorld, as_written, open_world
from worldlm.cli.safe_mode import add_current_folder, denied, refusal, restricted_imports
from worldlm.data import ByteTokenizer, CorpusDataModule, FileTokenizer, Tokenizer, TrainedBPE, load_tokenizer
from worldlm.data.tokenizers import FILE
from worldlm.models import LanguageModule
from worldlm.runs.folder import CONFIG, find_run, find_saved
from worldlm.runs.results import RESULTS, RunRecord, read_results
from worldlm.topology import Node, Settings, Topology, load_topology, reshape, split_rounds
from worldlm.topology.errors import UserError, join_names, suggest
from worldlm.topology.reader import read_plain


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run left behind, as of one of its checkpoints."""

    folder: Path
    """The run's folder."""
    world: SavedWorld
    """Its nodes."""
    config: Mapping[str, Any]
    """Its config.yaml; empty if there is none."""
    record: RunRecord | None
    """Its results.json; None if there is none."""
    trusted: bool = False
    """Whether classes that `worldlm.cli.safe_mode` does not allow may be made of its config.yaml."""

    # ------------------------------------------------------------------ nodes

    @property
    def names(self) -> list[str]:
        """All nodes, parents first."""
        return list(self.world.children)

    def choose(self, wanted: Iterable[str]) -> list[str]:
        """Return nodes by name, each once.

        Raises:
            UserError: Names all that are none.
        """
        names, chosen = self.names, list(dict.fromkeys(wanted))
        wrong = [
            f"{self.folder} has no node {name!r}; it has {join_names(names, 20)}{suggest(name, names)}"
            for name in chosen
            if name not in self.world.children
        ]
        if wrong:
            raise UserError(wrong)
        return chosen

    def depth(self, node: str) -> int:
        """Return the levels above a node."""
        return self._depths[node]

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths = dict.fromkeys(self.world.children, 0)
        for name, below in self.world.children.items():  # parents come first
            depths |= dict.fromkeys(below, depths[name] + 1)
        return depths

    def module(self) -> LanguageModule:
        """Build a module for the nodes' weights, on the accelerator if there is one, in evaluation mode."""
        with torch.random.fork_rng(devices=[]), as_written(self.world.path):
            module = LanguageModule.from_hyper_parameters(self.world.hyper_parameters)
        return module.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def put(self, module: LanguageModule, node: str) -> None:
        """Let a module be a node's model."""
        with as_written(self.world.path):
            module.load_weights(self.world.parameters(node))

    # ------------------------------------------------------------------ what it was

    @cached_property
    def topology(self) -> Topology | None:
        """The tree with its settings, where its file still tells the same nodes; else what the record tells of it."""
        recorded = None if self.record is None else _recorded_topology(self.record)
        if recorded is not None and _children(recorded) != self.world.children:
            recorded = None  # of a later round, before which the topology changed
        try:
            with warnings.catch_warnings(action="ignore"):  # said when it was trained
                tree = _topology_of(self.config["federation"])
        except (KeyError, ValueError, OSError):
            return recorded  # its file is gone
        if _children(tree) != self.world.children:
            return recorded  # its file was changed
        asked = _asks(tree)
        nodes = self.record.nodes if self.record else ()
        is_same = all(asked.get(one["name"]) == (one["corpus"], one["noise_multiplier"]) for one in nodes)
        return tree if is_same else recorded

    @property
    def knows_settings(self) -> bool:
        """Whether `topology` has the settings of the run, and not just its nodes."""
        return self.topology is not None and not self.topology.description.startswith(_RECORDED)

    def figures(self, node: str) -> dict[str, Any]:
        """Return what the record says of a node at the end of the last round that had ended; nothing if unknown."""
        rounds = self.record.rounds if self.record else []
        figures = (one["nodes"].get(node, {}) for one in rounds if one["round"] + 1 == self.world.num_rounds)
        return dict(next(figures, {}))

    @property
    def changes(self) -> list[dict[str, Any]]:
        """How the topology changed before a round that had ended; see `RunRecord.changes`."""
        changes = self.record.changes if self.record else []
        return [one for one in changes if one["round"] < self.world.num_rounds]

    @property
    def when(self) -> str:
        """How far it had come, in words."""
        done = self.world.num_rounds
        ended = f"after {done} round{'' if done == 1 else 's'}"
        return f"within round {done + 1}" if self.world.within_round else ended

    @property
    def title(self) -> str:
        """Which run it is, and how far it had come."""
        return f"{self.topology.name if self.topology else self.folder} {self.when}"

    # ------------------------------------------------------------------ text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that it was trained with.

        Raises:
            ValueError: If it cannot be found.
        """
        chosen = (self.config.get("data") or {}).get("tokenizer")
        if chosen == "bytes":
            return ByteTokenizer()
        if (self.folder / FILE).is_file():
            return FileTokenizer(self.folder / FILE)
        if isinstance(chosen, str):
            return load_tokenizer(chosen)
        if chosen is None:
            raise UserError([f"{self.folder} holds neither {FILE} nor {CONFIG}: its tokenizer is not known"])
        trained, data = TrainedBPE(**chosen.get("init_args", {})), data_module(self.config["data"], self.trusted)
        return trained.load(data.corpora, data.cache_dir)


def _children(tree: Topology) -> dict[str, list[str]]:
    return {name: [one.name for one in node.children] for name, node in tree.nodes.items()}


def _topology_of(federation: Mapping[str, Any]) -> Topology:
    """Load the topology that a run's config names."""
    tree = reshape(load_topology(federation["topology"], federation["settings"]), federation["shape"])
    subrounds = federation["num_subrounds"]
    return tree if subrounds is None else split_rounds(tree, subrounds)


def _asks(tree: Topology) -> dict[str, tuple[str | None, float | None]]:
    """Return what the record knows of every node's text and privacy."""
    privacy = {name: node.settings.privacy for name, node in tree.nodes.items()}
    return {
        name: (node.corpus, one.noise_multiplier if (one := privacy[name]) else None)
        for name, node in tree.nodes.items()
    }


def open_run(run: str | Path, round_: int | None = None, trusted: bool = False) -> SavedRun:
    """Open a run.

    Args:
        run: Its folder, or that of all its versions; see `find_run`.
        round_: As it was after this round, from 1, if that was kept; None for its last checkpoint.
        trusted: Whether any class may be made of its config.yaml.

    Raises:
        UserError: If there is none.
        ValueError: If its files cannot be read.
    """
    folder = find_run(run)
    results, config = folder / RESULTS, folder / CONFIG
    content = read_results(results) if results.is_file() else None
    world = open_world(find_saved(folder, round_))
    if "architecture" not in world.hyper_parameters:
        raise UserError([f"{world.path}: its model is not one of worldlm's, whose sizes would be told there"])
    settings = read_plain(config) if config.is_file() else {}
    if not isinstance(settings, dict):
        raise UserError([f"{config}: holds no settings"])
    return SavedRun(
        folder=folder,
        world=world,
        config=settings,
        record=None if content is None else RunRecord(method=folder.name, folder=folder, content=content),
        trusted=trusted,
    )


def data_module(settings: Mapping[str, Any], trusted: bool) -> CorpusDataModule:
    """Build the data module of a recipe's or a run's `data`, for its corpora; its tokenizer is not loaded.

    Args:
        settings: The `data`.
        trusted: Whether any class may be made of it, or those alone that `worldlm.cli.safe_mode` allows.

    Raises:
        ValueError: If a setting is wrong, or a class not trusted.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if trusted:
        add_current_folder()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CorpusDataModule, "data")
    try:
        with restricted_imports(not trusted):
            config = parser.parse_object({"data": {**settings, "tokenizer": "bytes"}})
            made: CorpusDataModule = parser.instantiate_classes(config).data
    except (ArgumentError, TypeError) as error:
        refused = denied(str(error))
        raise ValueError(f"{refusal(refused)}; --trust allows all" if refused else f"data: {error}") from error
    return made


_RECORDED = "as recorded"


def _recorded_topology(record: RunRecord) -> Topology:
    facts, told = record.content["data_nodes"], record.content["topology"]

    def node(one: Mapping[str, Any]) -> Node:
        known = facts.get(one["name"], {})
        steps = known.get("steps") if known.get("fits", 1) else 0
        below = tuple(map(node, one["children"]))
        return Node(
            name=one["name"],
            corpus=one["corpus"],
            settings=Settings(num_local_steps=steps if one["corpus"] is not None else None),
            children=below,
        )

    return Topology(name=told["name"], description=f"{_RECORDED}; its settings are not known", root=node(told["root"]))


def finite(value: float | None) -> float:
    """Return a figure of a record, which has null for what is not finite."""
    return math.inf if value is None else float(value)
