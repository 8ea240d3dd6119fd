"""Federated rounds as a Lightning loop: one epoch is one round of the world, one run of the epoch loop one local fit.

`fit_loop.py` and `epoch_loop.py` are the only modules that use Lightning's private loops (2.6), which is why the
dependency is pinned. All stepping (precision, gradient clipping, accumulation, schedulers, hooks, loggers) stays
Lightning's. This loop chooses which batches, weights and optimizer Lightning sees, and how an interrupted run resumes.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage, _FitLoop
from lightning.pytorch.trainer.connectors.data_connector import _process_dataloader, _request_dataloader
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from worldlm.checkpoint.read import as_written, restore_world
from worldlm.checkpoint.validate import check_format
from worldlm.checkpoint.write import loop_state
from worldlm.federation.parameters import Tensors
from worldlm.federation.seeds import derive_seed, seed_torch
from worldlm.rounds.context import Context, LocalFit
from worldlm.rounds.executor import FitCounts, RoundExecutor
from worldlm.rounds.world import World
from worldlm.trainer.epoch_loop import NodeEpochLoop, trackers
from worldlm.trainer.loaders import check_loaders, num_tokens
from worldlm.trainer.make_world import log_changes, make_world
from worldlm.trainer.metric_callbacks import MetricCallback, find_metric_callbacks, set_metric_callbacks
from worldlm.trainer.node_slot import NodeSlot
from worldlm.trainer.phase import Phase
from worldlm.trainer.run_settings import RunSettings


class FederatedFitLoop(_FitLoop):
    """Runs the program of a round step by step, and keeps what a restart needs: a cursor, a phase and the world."""

    def __init__(self, trainer: pl.Trainer, run: RunSettings, min_epochs: int | None, max_epochs: int | None) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.run_settings = run
        self.topology = run.topology
        self.plan = run.plan
        self.epoch_loop = NodeEpochLoop(trainer, self._seed_batch)
        self.cursor = 0
        self.phase = Phase.IDLE
        self.loaders: dict[str, DataLoader[Any]] = {}
        self._world: World | None = None
        self._executor: RoundExecutor | None = None
        self._slot: NodeSlot | None = None
        self._restored: dict[str, Any] = {}
        self._metric_callbacks: list[MetricCallback] = []

    @property
    def world(self) -> World:
        """The world, once a fit has begun."""
        if self._world is None:
            raise RuntimeError("the world is made when fitting starts")
        return self._world

    @property
    def executor(self) -> RoundExecutor:
        """Carries out the steps of a round."""
        assert self._executor is not None, "made together with the world"
        return self._executor

    @property
    def slot(self) -> NodeSlot:
        """The live module's place for one node at a time."""
        assert self._slot is not None, "made together with the world"
        return self._slot

    # ------------------------------------------------------------------ data

    def setup_data(self) -> None:
        """Make every data node's loader, once, and the world with its initial weights."""
        if self._combined_loader is not None:
            return
        names = [node.name for node in self.topology.data_nodes]
        loaders = check_loaders(_request_dataloader(self._data_source), names, self.run_settings.devices_per_node)
        stage = (self.trainer, TrainerFn.FITTING, RunningStage.TRAINING)
        self.loaders = {
            name: cast(DataLoader[Any], _process_dataloader(*stage, loader)) for name, loader in loaders.items()
        }
        self._combined_loader = CombinedLoader(self.loaders, "sequential")
        self.max_batches = max(map(self.plan.num_batches, names))
        self.trainer.val_check_batch = float("inf")
        self._metric_callbacks = self._metric_callbacks or find_metric_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        set_metric_callbacks(self._metric_callbacks, True)
        self.run_settings.agree_on_folder()
        self.val_loaders()  # Lightning wants all processes to request them at the same point
        self._make_world()

    @property
    def evaluates(self) -> bool:
        """Whether nodes are evaluated in this round: every `check_val_every_n_epoch` rounds, and in the last."""
        every, finished = self.trainer.check_val_every_n_epoch or 1, self.world.round + 1
        return bool(self.val_loaders()) and (finished % every == 0 or finished == self.max_epochs)

    def val_loaders(self) -> dict[str, DataLoader[Any]]:
        """Every data node's validation loader, by name; empty if there is no validation."""
        if not self.trainer.enable_validation:
            return {}
        loop = self.epoch_loop.val_loop
        if loop._combined_loader is None:
            self.trainer.validating = True
            loop.setup_data()
            self.trainer.training = True
        assert loop._combined_loader is not None
        loaders: dict[str, DataLoader[Any]] = loop._combined_loader.iterables
        return loaders

    # ------------------------------------------------------------------ the world

    def _make_world(self) -> None:
        """Make the world from the module's weights or from a checkpoint; a second fit keeps the first one's."""
        module: Any = self.trainer.lightning_module
        run = self.run_settings
        if self._slot is not None and self._slot.module is module and not self._restored:
            if self.phase is Phase.EXCHANGING:
                raise RuntimeError("the last fit stopped while nodes exchanged messages: resume from a checkpoint")
            self._executor = RoundExecutor(self.world, run.method)
            return
        visits = self.plan.num_visits
        costs = {name: visits[name] * num_tokens(self.loaders[name], self.plan.num_batches(name)) for name in visits}
        self._world = world = make_world(self.trainer, run, module, costs)
        self._executor = RoundExecutor(world, run.method)
        self._slot = NodeSlot(module, self.trainer.strategy, run.share_memory, world.store)
        start = self.topology.root.name
        if self._restored:
            with as_written(self.trainer.ckpt_path):
                start = self._restore()
        self._restored = {}
        is_local = world.transport.is_local
        resumes_fit = self.phase is Phase.FITTING and is_local(self.executor.program[self.cursor].node)
        self.phase = Phase.FITTING if resumes_fit else Phase.IDLE
        if is_local(start):
            self._slot.load_weights(start, world.states[start])

    def _restore(self) -> str:
        """Restore the content of a checkpoint, and return whose weights were live."""
        world, saved = self.world, self._restored
        rounds, optimizers = trackers(self.epoch_progress)[0], saved["optimizers"]
        within_round = rounds.started > rounds.processed and self.cursor > 0
        model: Tensors = dict(self.trainer.lightning_module.named_parameters())
        num_rounds = None if within_round else rounds.processed
        restore_world(world, self.run_settings.method, saved["world"], model, self.plan.steps_per_round(), num_rounds)
        names = [name for name in optimizers if name in self.loaders and world.transport.is_local(name)]
        self.slot.load_state_dict({name: optimizers[name] for name in names})
        if not world.changes:
            return self.topology.nodes[saved["active"]].name
        if self.trainer.is_global_zero:
            log_changes(world.changes, rounds.processed)
        self._count_all()  # counts the nodes that are in the world now
        return self.topology.root.name

    # ------------------------------------------------------------------ starting and restarting

    def reset(self) -> None:
        """Find out where an interrupted run stopped."""
        torch.set_grad_enabled(True)
        current, total = trackers(self.epoch_progress)
        within_round = current.started > current.processed
        total.ready -= current.ready - current.started
        current.ready = current.started
        current.completed, total.completed = current.processed, total.processed
        self._restart_stage = RestartStage.RESTARTED_MID_EPOCH if within_round else RestartStage.NONE
        if not within_round:
            self.cursor = 0
            self.phase = Phase.EXCHANGING if self.phase is Phase.EXCHANGING else Phase.IDLE

    @property
    def _can_stop_early(self) -> bool:  # early stopping and max_time take effect at the end of a round
        return super()._can_stop_early and self.cursor >= len(self.executor.program)

    def on_advance_start(self) -> None:
        if not self.restarted_mid_epoch:
            self.cursor = 0
        self.world.round = trackers(self.epoch_progress)[0].processed
        self.world.num_rounds = self.max_epochs
        set_metric_callbacks(self._metric_callbacks, True)
        super().on_advance_start()

    def on_advance_end(self) -> None:
        set_metric_callbacks(self._metric_callbacks, self.evaluates or not self.val_loaders())
        super().on_advance_end()
        self.run_settings.log.pending = []  # entries of the round as a whole, which process 0 logs too

    # ------------------------------------------------------------------ one round

    def advance(self) -> None:
        """Run one round of the world from the cursor on."""
        executor, device = self.executor, self.trainer.strategy.root_device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            executor.enter(self.cursor)
            while self.cursor < len(executor.program):
                step = executor.program[self.cursor]
                if step.kind != "fit":
                    self.phase = Phase.EXCHANGING
                executor.run(step, self._train)
                self.cursor += 1
                self.phase = Phase.IDLE
                if self.trainer.received_sigterm and self.cursor < len(executor.program):
                    raise SIGTERMException
        root = self.topology.root.name  # what Lightning saves as the model is the root's
        if self.world.transport.is_local(root):
            self.slot.load_weights(root, self.world.states[root])
        if self.run_settings.num_ranks > 1:
            self._sync_processes()

    def _sync_processes(self) -> None:
        """Exchange the figures of all nodes, what was logged, and whether to stop."""
        world, trainer, run_log = self.world, self.trainer, self.run_settings.log
        world.transport.flush()
        own = {"figures": world.figures(), "log": run_log.pending, "stop": trainer.should_stop}
        for other in world.transport.gather(own):
            world.take_figures(other["figures"])
            trainer.should_stop = trainer.should_stop or other["stop"]
            run_log.write(other["log"] if trainer.is_global_zero else ())
        self._count_all()

    def _count_all(self) -> None:
        states = self.world.states.values()
        self.epoch_loop.count(sum(state.num_steps for state in states), sum(state.num_batches for state in states))

    def _train(self, context: Context) -> FitCounts:
        """Train one node for its local steps."""
        name, loop, resumed = context.node.name, self.epoch_loop, self.phase is Phase.FITTING
        optimizer, device = self.slot.load(name, context.state), self.trainer.strategy.root_device
        self.max_batches = num_batches = self.plan.num_batches(name)
        loop.restarting = resumed
        loop.reset()
        done = loop.batch_progress.current.ready
        loop.restarting = done > 0  # `run` resets once more, and must keep what was found
        seed_torch(context.seed("fit"), device)
        fit = LocalFit(
            module=self.trainer.lightning_module,
            optimizers=self.trainer.optimizers,
            device=device,
            batch_sampler=self.loaders[name].batch_sampler,
            resumed=resumed,
        )
        self.run_settings.method.on_local_fit_start(context, fit)
        if done < num_batches:
            self._run_batches(name, done, num_batches)
        self.phase = Phase.EXCHANGING
        if not context.node.keeps_moments:
            optimizer.optimizer.state.clear()  # at once, to free its memory while other nodes train
        self.slot.unload()
        tokens = num_tokens(self.loaders[name], num_batches)
        return FitCounts(num_tokens=tokens, num_batches=num_batches, num_steps=self.plan.steps_per_fit(name))

    def _run_batches(self, name: str, done: int, num_batches: int) -> None:
        loader = self.loaders[name]
        sampler: Any = loader.batch_sampler
        sampler.start = self.world.states[name].num_batches + done
        sampler.length = num_batches - done
        fetcher = self._data_fetcher = _PrefetchDataFetcher()
        fetcher.setup(CombinedLoader(loader, "max_size_cycle"))
        iter(fetcher)
        self.phase = Phase.FITTING
        self.epoch_loop.run(fetcher)
        fetcher.teardown()
        self._data_fetcher = None

    def _seed_batch(self, position: int) -> None:
        """Seed torch for a batch, given its position in the fit of the active node."""
        name = self.slot.name
        batch = self.world.states[name].num_batches + position
        seed_torch(derive_seed(self.run_settings.seed, name, batch, "batch"), self.trainer.strategy.root_device)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self._world is None:
            return {}
        if self.phase is Phase.EXCHANGING:
            raise RuntimeError(
                "a checkpoint cannot be saved while nodes exchange messages, only within Lightning's own hooks of a "
                "batch or a round"
            )
        if self.run_settings.num_ranks > 1 and self.cursor < len(self.executor.program):
            raise RuntimeError("several processes can save a checkpoint at the end of a round only, where they meet")
        if self.phase is Phase.FITTING:
            self.slot.save_weights()
        return loop_state(
            self.world,
            self.slot.state_dict(),
            self.plan.steps_per_round(),
            cursor=self.cursor,
            fitting=self.phase is Phase.FITTING,
            active=self.slot.name,
        )

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        if "world" not in state_dict:
            raise ValueError("the checkpoint holds no world of nodes: it is none that WorldTrainer saved while fitting")
        check_format(state_dict["world"])
        self._restored = dict(state_dict)
        self.cursor, self.phase = state_dict["cursor"], Phase.FITTING if state_dict["fitting"] else Phase.IDLE
