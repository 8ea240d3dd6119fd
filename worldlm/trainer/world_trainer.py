"""Lightning's Trainer, in which every epoch is a round of the world."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl

from worldlm.checkpoint.lightning_io import AtomicCheckpointIO, CheckpointConnector
from worldlm.federation.noise_key import NoiseKey
from worldlm.organisations.organisation import Organisation
from worldlm.rounds.context import Context
from worldlm.rounds.method import Method
from worldlm.rounds.world import World
from worldlm.storage.device_placement import NodesOn, check_nodes_on
from worldlm.storage.node_store import NodeStore
from worldlm.storage.paged_store import Paging
from worldlm.topology import Node, Shape, Topology, load_topology, reshape, split_rounds
from worldlm.trainer.callback import FederationCallback
from worldlm.trainer.find_noise_key import find_noise_key
from worldlm.trainer.fit_loop import FederatedFitLoop
from worldlm.trainer.fit_plan import FitPlan
from worldlm.trainer.lightning_callbacks import check_supported
from worldlm.trainer.make_world import make_store
from worldlm.trainer.method_checks import check_listed_once, check_method, warn_of_lost_protection
from worldlm.trainer.metric_callbacks import check_monitors
from worldlm.trainer.options import check_options, check_organisation, choose_precision
from worldlm.trainer.processes import check_metric_callbacks, choose_processes
from worldlm.trainer.run_folder import RunFolder, add_logger
from worldlm.trainer.run_log import RunLog
from worldlm.trainer.run_settings import RunSettings

T = TypeVar("T")


class WorldTrainer(pl.Trainer):
    """Trains a world of federations: a Lightning Trainer whose epochs are rounds.

    The options of Lightning's Trainer keep their meaning; an epoch is a round of the world. `max_epochs` is the number
    of rounds. `check_val_every_n_epoch` evaluates every n rounds. `max_time` and early stopping end a run at the end of
    the round in which they take effect.

    Args:
        topology: A topology, the name or path of its YAML file, or a dict with the content of such a file.
        settings: Override the settings at the top of the topology's file. Settings of single nodes override both.
        shape: `tree`, as the topology is; `star`, all data nodes below the root; `single` or `single_all_tokens`, one
            model on the text of all nodes, measured at every node. See `worldlm.topology.reshape`.
        num_subrounds: Sub-rounds of every federation below the root, among which the local steps are divided; by
            default the topology's. See `worldlm.topology.split_rounds`.
        seed: Seed of all random draws of the federation; by default that of `seed_everything`, else 0.
        devices_per_node: Devices (one process each) that train one node together, each on its share of every batch.
        fully_shard: Whether each of these devices holds a shard of weights, gradients and moments (torch's FSDP2)
            instead of all of them (DDP).
        nodes_on: Where nodes wait and are merged: in the memory of the `host`, or of the `device` that trains them.
            `auto` uses a GPU if the whole world fills at most half of its memory.
        paging: Keeps the tensors of waiting nodes on disk; by default they are in memory.
        noise_key: File of the secret from which noise is drawn if the topology demands privacy; made if it does not
            exist. By default, a new run makes one in its folder, and a resumed run uses that of its checkpoint.
        organisation: The one node that this run holds. The other nodes and their text are elsewhere.
        **kwargs: As `lightning.Trainer`. `devices` and `num_nodes` (machines) set the number of processes among which
            the nodes' fits are distributed; by default 1, or what torchrun has started. On a GPU `precision` is
            bf16-mixed unless it is given.

    Raises:
        ValueError: If a Trainer option has no meaning in a world of rounds, or no callback enforces a setting of the
            topology, such as privacy.
    """

    fit_loop: FederatedFitLoop

    def __init__(
        self,
        *args: Any,
        topology: Topology | Mapping[str, Any] | Path | str,
        settings: dict[str, Any] | None = None,
        shape: Shape = "tree",
        num_subrounds: int | None = None,
        seed: int | None = None,
        devices_per_node: int = 1,
        fully_shard: bool = False,
        nodes_on: NodesOn = "auto",
        paging: Paging | None = None,
        noise_key: str | Path | None = None,
        organisation: Organisation | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(topology, Topology) and settings:
            raise ValueError("settings can only override those of a topology's file: put them into the Topology")
        tree = topology if isinstance(topology, Topology) else load_topology(topology, settings)
        shaped = reshape(tree, shape)
        self.topology = shaped if num_subrounds is None else split_rounds(shaped, num_subrounds)
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.stop_after_round = False
        """Whether the run stops at the end of this round, to be resumed later. Must be equal in all processes."""
        self._run_folder = RunFolder(self, self.topology.name)
        self.nodes_on = check_nodes_on(nodes_on, paging is not None, fully_shard)
        self.paging = paging
        self._noise_key_path = None if noise_key is None else Path(os.path.expanduser(noise_key))
        given = kwargs.get("plugins") or []
        plugins = given if isinstance(given, list) else [given]
        check_options(kwargs, plugins)
        check_listed_once(kwargs.get("callbacks") or ())
        add_logger(kwargs, self._run_folder)
        choose_precision(kwargs, plugins)
        kwargs["plugins"] = [*plugins, AtomicCheckpointIO(mapped=paging is not None)]
        kwargs["num_sanity_val_steps"] = 0
        kwargs["use_distributed_sampler"] = False
        self.num_ranks = choose_processes(kwargs, devices_per_node, fully_shard)
        """Processes that share the world."""
        self.devices_per_node = devices_per_node
        super().__init__(*args, **kwargs)
        self._checkpoint_connector = CheckpointConnector(self)
        check_metric_callbacks(self.callbacks, self.num_ranks)  # type: ignore[attr-defined]
        self.run_log = RunLog(self)
        """Writes metrics and texts to the loggers."""
        self.plan = FitPlan(self, self.topology)
        """How much every node trains."""
        self.run_settings = RunSettings(
            topology=self.topology,
            seed=self.seed if organisation is None or organisation.seed is None else organisation.seed,
            method=Method(self.callbacks),  # type: ignore[attr-defined]
            plan=self.plan,
            log=self.run_log,
            make_store=self._make_store,
            agree_on_folder=self._agree_on_folder,
            collect_callbacks=self._collect_again,
            num_ranks=self.num_ranks,
            devices_per_node=devices_per_node,
            organisation=organisation,
        )
        self.fit_loop = FederatedFitLoop(self, self.run_settings, self.min_epochs, self.max_epochs)
        self._shape: Shape = shape
        self._check_method()
        check_organisation(self.run_settings, shape)
        if self.is_global_zero:
            warn_of_lost_protection(tree, self.topology, shape)

    @property
    def method(self) -> Method:
        """The callbacks of the current fit, as one method."""
        return self.run_settings.method

    def _collect_callbacks(self) -> None:
        """Make the method of the callbacks that the trainer has now, and check all that it requires."""
        self.run_settings.method = Method(self.callbacks)  # type: ignore[attr-defined]
        self._check_method()
        self.method.check(self.topology)

    def _collect_again(self) -> None:
        """As `_collect_callbacks`, when the module has been set."""
        self._collect_callbacks()
        check_monitors(self)

    def _check_method(self) -> None:
        """Check that the callbacks form a method that enforces the settings of the topology."""
        check_supported(self.callbacks)  # type: ignore[attr-defined]
        check_method(self.topology, self._shape, self.method.callbacks)

    def fit(
        self,
        model: pl.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train the world. The arguments are those of Lightning; `ckpt_path="last"` resumes the run started last.

        Raises:
            ValueError: If the callbacks do not suit each other or the topology, or the run's folder cannot be used.
        """
        self._collect_callbacks()
        ckpt_path = self._run_folder.find_last(ckpt_path)
        with self._run_folder.locked(ckpt_path):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def validate(self, model: pl.LightningModule | None = None, *args: Any, **kwargs: Any) -> list[Mapping[str, float]]:
        """Evaluate every node on the held-out text at and below it. `NodeMetrics` or `NodeValidation` must be listed.

        The weights are those of `ckpt_path` if it is given, else those of the nodes after a fit of this module, else
        the module's own.

        Args:
            model: The module; by default that of the last fit.
            *args: As `lightning.Trainer`.
            **kwargs: As `lightning.Trainer`. `verbose=False` prints no table.

        Returns:
            One mapping with `NODE/perplexity` and `NODE/bits_per_byte` of every node, and what the module logs.

        Raises:
            ValueError: If several processes share the world, or no callback evaluates the nodes.
        """
        if self.num_ranks > 1:
            raise ValueError(f"validate runs in one process, but devices and num_nodes set {self.num_ranks}")
        callbacks: list[Any] = self.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, FederationCallback) and callback.evaluates_nodes for callback in callbacks):
            raise ValueError("validate needs a callback that evaluates nodes: add worldlm.callbacks.NodeMetrics")
        super().validate(self.lightning_module if model is None else model, *args, **kwargs)
        return [{name: float(value) for name, value in self.callback_metrics.items()}]

    def prepare(self, model: pl.LightningModule, datamodule: pl.LightningDataModule) -> None:
        """Tokenise and pack the text of all nodes, without training.

        Args:
            model: The model that will read the text; only its sizes matter.
            datamodule: Provides the text.

        Raises:
            ValueError: As the data module's `prepare_data` and `setup`.
        """
        self.strategy.connect(model)
        datamodule.trainer = self
        datamodule.prepare_data()
        datamodule.setup("fit")

    @property
    def world(self) -> World:
        """The nodes and their states, once fitting has begun."""
        return self.fit_loop.world

    @property
    def folder(self) -> Path:
        """The run's folder: `runs/TOPOLOGY/version_N` in `default_root_dir`. Process 0 writes there, others only pages.

        A resumed run uses the folder of its checkpoint. Else a new folder is made when it is first needed.
        """
        return self._run_folder.path

    @folder.setter
    def folder(self, folder: Path) -> None:
        self._run_folder.chosen = folder

    @property
    def log_dir(self) -> str:
        """The run's folder, once a fit has begun. All processes must call this together."""
        return str(self.strategy.broadcast(str(self._run_folder.chosen or self.default_root_dir)))

    def _agree_on_folder(self, fingerprint: str | None) -> None:
        """Set the run's folder to that of process 0, and find the noise key. All processes call this together."""
        folder = self._run_folder.agree()
        run = self.run_settings
        if self.topology.demands_privacy and (run.noise_key is None or fingerprint is not None):
            run.noise_key = find_noise_key(self, folder, self._noise_key_path, fingerprint)

    @property
    def noise_key(self) -> NoiseKey | None:
        """The secret of all noise, once a fit has begun; None if the topology demands no privacy."""
        return self.run_settings.noise_key

    def _make_store(self, names: Collection[str]) -> NodeStore:
        """Make the store for the nodes that this process holds."""
        return make_store(self, self.topology, names, self.nodes_on, self.paging, self.folder / "pages")

    @property
    def active_node(self) -> str:
        """Name of the node whose weights are in the live module."""
        return self.fit_loop.slot.name

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the active node over all rounds if all nodes participate; infinity without a limit."""
        active = self.active_node if self.fit_loop._slot is not None else ""
        return self.plan.steps_of_run(active, self.world.states[active].extra_steps if active else 0)

    def steps_per_round(self) -> dict[str, int]:
        """Return every data node's optimizer steps in one round, if all nodes participate."""
        return self.plan.steps_per_round()

    def steps_per_fit(self, name: str) -> int:
        """Return a data node's optimizer steps in one fit."""
        return self.plan.steps_per_fit(name)

    @property
    def data_nodes(self) -> list[Node]:
        """The nodes with text that this run trains or evaluates."""
        return self.run_settings.data_nodes

    @property
    def enable_validation(self) -> bool:
        """Whether nodes are evaluated. A federation that an organisation runs without text of its own is not."""
        return super().enable_validation and bool(self.data_nodes)

    @property
    def num_visits(self) -> dict[str, int]:
        """Fits of every data node in one round, if all nodes participate."""
        return self.plan.num_visits

    def context(self, name: str, subround: int = 0) -> Context:
        """Return what the hooks of a node receive."""
        return self.method.context(self.world, name, subround)

    def find_callback(self, kind: type[T]) -> T | None:
        """Return the first callback of a type, or None."""
        callbacks: list[Any] = self.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, kind)), None)
