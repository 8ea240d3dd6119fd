"""Opens a finished run by its folder: its nodes, topology, tokenizer and results, without a trainer."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from worldlm.checkpoint.read import SavedWorld, as_written, open_world
from worldlm.cli.safe_mode import add_current_folder, denied, refusal, restricted_imports
from worldlm.cli.safe_values import check_safe_values
from worldlm.data import ByteTokenizer, CorpusDataModule, FileTokenizer, Tokenizer, TrainedBPE, load_tokenizer
from worldlm.data.tokenizers import FILE
from worldlm.files.regular import check_regular
from worldlm.models import LanguageModule, Lora, lora_of
from worldlm.models.hub import is_folder_or_hub_name
from worldlm.runs.folder import CONFIG, find_run, find_saved
from worldlm.runs.results import RESULTS, RunRecord, read_results
from worldlm.topology import Node, Settings, Topology, load_topology, reshape, split_rounds
from worldlm.topology.errors import UserError, join_names, suggest
from worldlm.topology.reader import read_plain


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run as of one of its checkpoints."""

    folder: Path
    """The run's folder."""
    world: SavedWorld
    """The nodes of the checkpoint."""
    config: Mapping[str, Any]
    """The run's config.yaml; empty if there is none."""
    record: RunRecord | None
    """The run's results.json; None if there is none."""
    trusted: bool = False
    """Whether classes in its config.yaml may be built even if `worldlm.cli.safe_mode` does not allow them."""

    # ------------------------------------------------------------------ nodes

    @property
    def names(self) -> list[str]:
        """Names of all nodes, parents first."""
        return list(self.world.children)

    def choose(self, wanted: Iterable[str]) -> list[str]:
        """Return the names of nodes, each once.

        Raises:
            UserError: With all names that are not nodes.
        """
        names, chosen = self.names, list(dict.fromkeys(wanted))
        mistakes = [
            f"{self.folder} has no node {name!r}; it has {join_names(names, 20)}{suggest(name, names)}"
            for name in chosen
            if name not in self.world.children
        ]
        if mistakes:
            raise UserError(mistakes)
        return chosen

    def depth(self, node: str) -> int:
        """Return the number of levels above a node."""
        return self._depths[node]

    @cached_property
    def _depths(self) -> dict[str, int]:
        depths = dict.fromkeys(self.world.children, 0)
        for name, below in self.world.children.items():  # parents come first
            depths |= dict.fromkeys(below, depths[name] + 1)
        return depths

    @property
    def lora(self) -> Lora:
        """The adapters that the run trained, if any."""
        with as_written(self.world.path):
            return lora_of(self.world.hyper_parameters)

    def module(self) -> LanguageModule:
        """Build a module for the nodes' weights, in evaluation mode, on the GPU if there is one.

        Raises:
            ValueError: If the run trained adapters, and their frozen model is missing or has changed.
        """
        with torch.random.fork_rng(devices=[]), as_written(self.world.path):
            module = LanguageModule.from_hyper_parameters(self.world.hyper_parameters)
        if self.lora.is_given:
            if not is_folder_or_hub_name(base := str(module.init_from)):
                folder = Path(os.path.expanduser(base))
                raise UserError([f"the frozen model of the run is not in {folder} now: name its folder with --base"])
            module.load_base(self.world.hyper_parameters.get("base_digest"))
        return module.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def put(self, module: LanguageModule, node: str) -> None:
        """Load a node's weights into a module."""
        with as_written(self.world.path):
            module.load_weights(self.world.parameters(node))

    # ------------------------------------------------------------------ topology and results

    @cached_property
    def topology(self) -> Topology | None:
        """The topology with its settings if its file still has the same nodes, else the recorded tree, if any."""
        recorded = None if self.record is None else _recorded_topology(self.record)
        if recorded is not None and _children(recorded) != self.world.tree:
            recorded = None  # of a later round, before which the topology changed
        try:
            with warnings.catch_warnings(action="ignore"):  # the fit has printed them
                tree = _topology_of(self.config["federation"])
        except (KeyError, ValueError, OSError):
            return recorded  # its file was removed
        if _children(tree) != self.world.tree:
            return recorded  # its file was changed
        settings = _recorded_settings(tree)
        nodes = self.record.nodes if self.record else ()
        is_same = all(settings.get(node["name"]) == (node["corpus"], node["noise_multiplier"]) for node in nodes)
        return tree if is_same else recorded

    @property
    def knows_settings(self) -> bool:
        """Whether `topology` has the settings of the run, and not only its nodes."""
        return self.topology is not None and not self.topology.description.startswith(_RECORDED)

    def figures(self, node: str) -> dict[str, Any]:
        """Return the recorded figures of a node after the last finished round; nothing if they are unknown."""
        rounds = self.record.rounds if self.record else []
        figures = (round_["nodes"].get(node, {}) for round_ in rounds if round_["round"] + 1 == self.world.num_rounds)
        return dict(next(figures, {}))

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The changes of the topology up to the last finished round; see `RunRecord.changes`."""
        changes = self.record.changes if self.record else []
        return [change for change in changes if change["round"] < self.world.num_rounds]

    @property
    def when(self) -> str:
        """The round of the checkpoint, in words."""
        done = self.world.num_rounds
        finished = f"after {done} round{'' if done == 1 else 's'}"
        return f"within round {done + 1}" if self.world.within_round else finished

    @property
    def title(self) -> str:
        """The topology's name and the round of the checkpoint."""
        return f"{self.topology.name if self.topology else self.folder} {self.when}"

    # ------------------------------------------------------------------ text

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the training.

        Raises:
            ValueError: If it is not found.
        """
        setting = (self.config.get("data") or {}).get("tokenizer")
        if setting == "bytes":
            return ByteTokenizer()
        if check_regular(self.folder / FILE).is_file():
            return FileTokenizer(self.folder / FILE)
        if isinstance(setting, str):
            return load_tokenizer(setting)
        if setting is None:
            raise UserError([f"{self.folder} has neither {FILE} nor {CONFIG}: its tokenizer is not known"])
        trained, data = TrainedBPE(**setting.get("init_args", {})), data_module(self.config["data"], self.trusted)
        return trained.load(data.wholes, data.cache_dir)


def _children(tree: Topology) -> dict[str, list[str]]:
    return {name: [child.name for child in node.children] for name, node in tree.nodes.items()}


def _topology_of(federation: Mapping[str, Any]) -> Topology:
    """Load the topology that a run's config names."""
    tree = reshape(load_topology(federation["topology"], federation["settings"]), federation["shape"])
    subrounds = federation["num_subrounds"]
    return tree if subrounds is None else split_rounds(tree, subrounds)


def _recorded_settings(tree: Topology) -> dict[str, tuple[str | None, float | None]]:
    """Return every node's corpus and noise multiplier, which the record has too."""
    privacy = {name: node.settings.privacy for name, node in tree.nodes.items()}
    return {
        name: (node.corpus, setting.noise_multiplier if (setting := privacy[name]) else None)
        for name, node in tree.nodes.items()
    }


def open_run(run: str | Path, round_: int | None = None, trusted: bool = False, base: str | None = None) -> SavedRun:
    """Open a run.

    Args:
        run: Its folder, or the folder of all its versions; see `find_run`.
        round_: A round whose checkpoint was kept, from 1; None for the last checkpoint.
        trusted: Whether any class in its config.yaml may be built.
        base: The folder of the frozen model of adapters; None if it is where the run found it.

    Raises:
        UserError: If there is no such run or checkpoint, or `base` is given and it trained no adapters.
        ValueError: If its files cannot be read.
    """
    folder = find_run(run)
    results, config = folder / RESULTS, folder / CONFIG
    content = read_results(results) if check_regular(results).is_file() else None
    world = open_world(find_saved(folder, round_))
    if not world.hyper_parameters.get("architecture") and not world.hyper_parameters.get("transformer"):
        raise UserError([f"{world.path}: its model is not one of worldlm's: it has no architecture"])
    if base is not None:
        if world.hyper_parameters.get("lora") is None:
            raise UserError([f"--base: {folder} trained no adapters"])
        world = replace(world, hyper_parameters={**world.hyper_parameters, "init_from": base})
    settings = read_plain(config) if check_regular(config).is_file() else {}
    if not isinstance(settings, dict):
        raise UserError([f"{config}: has no settings"])
    return SavedRun(
        folder=folder,
        world=world,
        config=settings,
        record=None if content is None else RunRecord(method=folder.name, folder=folder, content=content),
        trusted=trusted,
    )


def data_module(settings: Mapping[str, Any], trusted: bool) -> CorpusDataModule:
    """Build the data module of the `data` settings of a recipe or a run, without its tokenizer.

    Args:
        settings: The `data` settings.
        trusted: Whether any class may be built, or only those that `worldlm.cli.safe_mode` allows.

    Raises:
        ValueError: If a setting is wrong, or a class is not trusted.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    if trusted:
        add_current_folder()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CorpusDataModule, "data")
    try:
        with restricted_imports(not trusted):
            config = parser.parse_object({"data": {**settings, "tokenizer": "bytes"}})
            if not trusted:
                check_safe_values(config, given=("data",))  # the user may have named any local folder for the fit
            module: CorpusDataModule = parser.instantiate_classes(config).data
    except (ArgumentError, TypeError) as error:
        path = denied(str(error))
        raise ValueError(f"{refusal(path)}; --trust allows all" if path else f"data: {error}") from error
    return module


_RECORDED = "as recorded"


def _recorded_topology(record: RunRecord) -> Topology:
    data_nodes, topology = record.content["data_nodes"], record.content["topology"]

    def build(recorded: Mapping[str, Any]) -> Node:
        facts = data_nodes.get(recorded["name"], {})
        steps = facts.get("steps", 1) if facts.get("fits", 1) else 0  # not recorded of nodes at other organisations
        return Node(
            name=recorded["name"],
            corpus=recorded["corpus"],
            settings=Settings(num_local_steps=steps if recorded["corpus"] is not None else None),
            children=tuple(map(build, recorded["children"])),
        )

    description = f"{_RECORDED}; its settings are not known"
    return Topology(name=topology["name"], description=description, root=build(topology["root"]))
