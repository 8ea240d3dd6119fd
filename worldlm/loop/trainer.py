"""Lightning's Trainer, with rounds for epochs."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from worldlm.federation.parameters import PARTS, num_bytes
from worldlm.federation.program import num_visits
from worldlm.loop.checkpoint_io import AtomicCheckpointIO, CheckpointConnector
from worldlm.loop.fit_loop import FederatedFitLoop
from worldlm.loop.hooks import FederationCallback
from worldlm.loop.node_store import NodeStore, PagedStore, Paging
from worldlm.loop.processes import check_followers, choose_processes
from worldlm.loop.room import NodesOn, check_nodes_on, warn_of_little_memory, where_nodes_wait
from worldlm.loop.world import World
from worldlm.topology import Settings, Shape, Topology, load_topology, reshape, split_rounds
from worldlm.topology.settings import KINDS_OF_PRIVACY
from worldlm.topology.shape import gone_as_one

log = logging.getLogger(__name__)


class WorldTrainer(pl.Trainer):
    """Trains a world of federations: a Lightning Trainer whose epochs are rounds.

    Everything a Trainer takes works as it does there, with an epoch read as a round of the world: `max_epochs`
    rounds; `check_val_every_n_epoch` for evaluating every n rounds; `max_time` and early stopping end a run after the
    round they fall into.

    Args:
        topology: A topology, or the name or path of its YAML file.
        settings: Laid over the settings at the top of the topology's file; those of its nodes win over both.
        shape: `tree`, as the topology is; `star`, all data nodes below the root; `single` or `single_all_tokens`, one
            model on the text of all, measured at every node. See `worldlm.topology.reshape`.
        num_subrounds: Sub-rounds of every federation below the root, among which the local steps are divided; by
            default those that the topology sets. See `worldlm.topology.split_rounds`.
        seed: Seed of all random draws of the federation; by default that of `seed_everything`, else 0.
        devices_per_node: Devices, and processes, that train one node together, each on its share of every batch.
        fully_shard: Each of these devices holds a slice of weights, gradients, moments (torch's FSDP2), not all (DDP).
        nodes_on: Where nodes wait and are merged: in the memory of the `host`, or of the `device` that trains them;
            `auto` takes a GPU of whose memory the whole world fills no more than half.
        paging: Keeps the tensors of waiting nodes on disk; by default they are in memory.
        **kwargs: As `lightning.Trainer`. `devices` and `num_nodes` (machines) say how many processes share the nodes'
            fits out among them: by default 1, or as torchrun says. On a GPU `precision` is bf16-mixed unless given.

    Raises:
        ValueError: If a Trainer option has no meaning in a world of rounds, or the topology demands what no callback
            provides (privacy above all).
    """

    fit_loop: FederatedFitLoop

    def __init__(
        self,
        *args: Any,
        topology: Topology | Path | str,
        settings: dict[str, Any] | None = None,
        shape: Shape = "tree",
        num_subrounds: int | None = None,
        seed: int | None = None,
        devices_per_node: int = 1,
        fully_shard: bool = False,
        nodes_on: NodesOn = "auto",
        paging: Paging | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(topology, Topology) and settings:
            raise ValueError("settings are laid over a topology's file: build them into the Topology that is given")
        tree = topology if isinstance(topology, Topology) else load_topology(topology, settings)
        shaped = reshape(tree, shape)
        self.topology = shaped if num_subrounds is None else split_rounds(shaped, num_subrounds)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.share_memory: bool | None = None
        self.leaves = False
        """Whether the run stops at the end of this round, to be taken up later: in all processes alike."""
        self._folder: Path | None = None
        self.nodes_on = check_nodes_on(nodes_on, paging is not None, fully_shard)
        self.paging = paging
        plugins = kwargs.get("plugins") or []
        kwargs["plugins"] = [
            *(plugins if isinstance(plugins, list) else [plugins]),
            AtomicCheckpointIO(mapped=paging is not None),
        ]
        self._refuse(kwargs)
        check_listed_once(kwargs.get("callbacks") or ())
        kwargs["num_sanity_val_steps"] = 0
        kwargs["use_distributed_sampler"] = False
        if kwargs.get("precision") is None:
            kwargs["precision"] = default_precision(kwargs.get("accelerator") or "auto")
        self.num_ranks = choose_processes(kwargs, devices_per_node, fully_shard)
        """Processes that share the world."""
        self.devices_per_node = devices_per_node
        super().__init__(*args, **kwargs)
        self._checkpoint_connector = CheckpointConnector(self)
        check_followers(self.callbacks, self.num_ranks)  # type: ignore[attr-defined]
        self.fit_loop = FederatedFitLoop(self, self.topology, self.seed, self.min_epochs, self.max_epochs)
        self._shape: Shape = shape
        self._check_method()
        for name in gone_as_one(tree, self.topology) if self.is_global_zero else ():
            told = "shape %s has no %s, whose privacy held for all below it as one: what is left is that of every node"
            log.warning(told, shape, name)

    def _check_method(self) -> None:
        """Check that the callbacks are a method which does what the topology asks for."""
        ours = [one for one in self.callbacks if isinstance(one, FederationCallback)]  # type: ignore[attr-defined]
        check_settings(self.topology, ours)
        check_parts(ours)
        check_handed_out(self.topology, self._shape, ours)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train the world.

        Raises:
            ValueError: If a callback that the topology demands was taken away since the trainer was built.
        """
        self._check_method()
        super().fit(*args, **kwargs)

    def prepare(self, model: pl.LightningModule, datamodule: pl.LightningDataModule) -> None:
        """Tokenise and pack the text of all nodes, without training.

        Args:
            model: The model that will read it; only its sizes matter.
            datamodule: The text.

        Raises:
            ValueError: As the data module's `prepare_data` and `setup`.
        """
        self.strategy.connect(model)
        datamodule.trainer = self
        datamodule.prepare_data()
        datamodule.setup("fit")

    @staticmethod
    def _refuse(kwargs: dict[str, Any]) -> None:
        for name, (harmless, reason) in _REFUSED.items():
            value = kwargs.get(name)
            if repr(value) not in ("None", *map(repr, harmless)):  # 1.0 is a whole round, 1 a batch
                raise ValueError(f"{name} is {value!r}: {reason}")

    @property
    def world(self) -> World:
        """The nodes and what they hold, once fitting has begun."""
        return self.fit_loop.world

    @property
    def folder(self) -> Path:
        """The run's folder: its logger's, else `default_root_dir`. Only process 0 writes there, but for pages."""
        return self._folder or Path(self.log_dir or self.default_root_dir)

    def agree_on_folder(self) -> None:
        """Let process 0 say which the run's folder is; all processes call this at the same point."""
        self._folder = None
        self._folder = self.folder

    def node_store(self, names: Collection[str]) -> NodeStore:
        """Make the place for the nodes that are held here."""
        if self.paging is not None:
            return PagedStore(self.topology, self.paging, Path(self.paging.folder or self.folder / "pages"))
        size = num_bytes(dict(self.lightning_module.named_parameters()))
        device = where_nodes_wait(self.nodes_on, self.strategy.root_device, len(self.topology.nodes), size)
        if device.type == "cpu" and self.is_global_zero:
            held, slices = [self.topology.nodes[name] for name in names], getattr(self.strategy, "num_slices", 1)
            warn_of_little_memory(held, size, self.num_devices, slices)
        return NodeStore(device)

    @property
    def active_node(self) -> str:
        """Name of the node whose weights are in the live module."""
        return self.fit_loop.slot.name

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the active node over all rounds, all nodes participating; infinity without a limit."""
        if self.max_epochs is None or self.max_epochs < 0:
            return float("inf")
        loop, steps = self.fit_loop, self.steps_per_round()
        active = loop._slot.name if loop._slot is not None else ""
        own, rounds = steps.get(active, 0), max(self.max_epochs, 1)
        return rounds * own + loop.world.states[active].extra_steps if own else rounds * max(steps.values())

    def steps_per_round(self) -> dict[str, int]:
        """Return every data node's optimizer steps in one round, all nodes participating."""
        steps = {name: -(-self.fit_loop.num_batches(name) // self.accumulate_grad_batches) for name in self.num_visits}
        return {name: number * self.num_visits[name] for name, number in steps.items()}

    @cached_property
    def num_visits(self) -> dict[str, int]:
        """Fits of every data node in one round, all nodes participating."""
        return num_visits(self.topology)  # the whole round is compiled for it


def default_precision(accelerator: object) -> str:
    """Return bf16-mixed where a GPU that computes in it will be used, else 32-true."""
    uses_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if uses_gpu and torch.cuda.is_bf16_supported() else "32-true"


def check_listed_once(callbacks: pl.Callback | Iterable[pl.Callback]) -> None:
    """Check that no callback which is saved, or keeps a node's privacy, is listed twice.

    Raises:
        ValueError: Names the callback; or the two of them, where they keep the same kind of privacy.
    """
    seen: dict[str, str] = {}
    for one in [callbacks] if isinstance(callbacks, pl.Callback) else callbacks:
        name, kinds = type(one).__name__, frozenset(KINDS_OF_PRIVACY) & getattr(one, "honours", frozenset())
        is_saved = type(one).state_dict is not pl.Callback.state_dict
        for what in (*sorted(kinds), *([one.state_key] if is_saved else ())):
            other = seen.setdefault(what, "")
            if other == name:
                raise ValueError(f"{name} is among trainer.callbacks more than once")
            if other:
                raise ValueError(f"{what} is kept by {other} and by {name} too: let one callback keep it")
            seen[what] = name


def check_parts(callbacks: list[FederationCallback]) -> None:
    """Check that every part of the model is merged by one callback at most.

    Raises:
        ValueError: Names a part and the callbacks that would both overwrite it.
    """
    for i, one in enumerate(callbacks):
        for other in callbacks[i + 1 :]:
            if shared := ", ".join(sorted(one.parts & other.parts)):
                raise ValueError(
                    f"{shared}: merged by {type(one).__name__} and by {type(other).__name__} too; "
                    "let one callback merge each part"
                )


def check_handed_out(topology: Topology, shape: Shape, callbacks: list[FederationCallback]) -> None:
    """Check that the one model of a centralised run reaches, as a whole, the nodes that it is measured at.

    Raises:
        ValueError: If no callback merges all parts of the model.
    """
    is_whole = any(callback.parts == set(PARTS) for callback in callbacks)
    if shape in ("single", "single_all_tokens") and topology.root.children and not is_whole:
        raise ValueError(
            f"shape {shape} measures one whole model at every node: let one callback merge {', '.join(PARTS)}, as "
            "--recipe methods/centralized_steps does"
        )


def check_settings(topology: Topology, callbacks: list[FederationCallback]) -> None:
    """Check that some callback obeys every setting of the topology that asks for one.

    Rules on residuals and links ask for nothing where no residuals are exchanged, or no traffic is measured.

    Raises:
        ValueError: Names the settings, and the nodes that ask for them.
    """
    honoured = frozenset().union(*(callback.honours for callback in callbacks))
    nothing = Settings()
    asked: dict[str, list[str]] = {}
    for node in topology.nodes.values():
        for name in ("privacy", "example_privacy", "outer_optimizer"):
            if getattr(node.settings, name) != getattr(nothing, name) and name not in honoured:
                asked.setdefault(name, []).append(node.name)
        if node.weight is not None and "weight" not in honoured:
            asked.setdefault("weight", []).append(node.name)
    if asked:
        raise ValueError(
            "\n".join(
                f"the topology {topology.name} asks for {name} at {', '.join(nodes)}, and no callback provides it: "
                f"add {_PROVIDERS[name]} to trainer.callbacks"
                for name, nodes in asked.items()
            )
        )


_REFUSED: dict[str, tuple[tuple[float, ...], str]] = {
    "max_steps": ((-1,), "a world is counted in rounds, and stops at the end of one; use max_epochs"),
    "min_steps": ((), "a world is counted in rounds; use min_epochs"),
    "val_check_interval": (
        (1.0,),
        "nodes are evaluated once they merged and once they trained; use check_val_every_n_epoch to evaluate every "
        "n rounds",
    ),
    "num_sanity_val_steps": ((0, 2), "every node is evaluated before the first round anyway"),
    "overfit_batches": ((0, 0.0), "every node reads its own data; use limit_train_batches"),
    "reload_dataloaders_every_n_epochs": ((0,), "a node goes on reading where it stopped"),
}

_PROVIDERS = {
    "privacy": "worldlm.callbacks.UpdatePrivacy",
    "example_privacy": "worldlm.callbacks.ExamplePrivacy",
    "outer_optimizer": "worldlm.callbacks.Averaging",
    "weight": "worldlm.callbacks.Averaging",
}
