"""Federated rounds as a Lightning loop.

One epoch is one round of the world, and one run of the epoch loop is one local fit. Stepping stays Lightning's:
precision, gradient clipping, accumulation, schedulers, hooks and loggers. This loop chooses the batches, the weights
and the optimizer that Lightning sees, and it resumes an interrupted round.

No state of a random generator is saved, because none is needed. Torch is seeded before every fit from the run's seed,
node, round and sub-round, and before every batch from seed, node and number of batches. All other draws use generators
of their own, seeded with `context.seed`. A callback that draws from a global generator does not resume bit for bit. A
fit that was interrupted repeats the batches after its last finished optimizer step.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage, _FitLoop
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
from worldlm.trainer.loaders import load_states, num_tokens, request_loaders, request_val_loaders, states_of
from worldlm.trainer.make_world import accept_changes, make_world
from worldlm.trainer.metric_callbacks import MetricCallback, find_metric_callbacks, set_metric_callbacks
from worldlm.trainer.module_checks import check_module
from worldlm.trainer.node_slot import NodeSlot
from worldlm.trainer.phase import Phase
from worldlm.trainer.run_settings import RunSettings


class FederatedFitLoop(_FitLoop):
    """Carries out the program of a round, step by step, and keeps what a restart needs.

    One process can save a checkpoint between two steps of the program, and within a fit in Lightning's batch hooks, but
    not while nodes exchange messages. Several processes can save one only together, at the end of a round.

    A restart needs the cursor (the position in the program), the phase, and the world. A run resumes in this order:

    1. `on_load_checkpoint` keeps what the loop saved, and sets the cursor and the phase.
    2. `setup_data` requests the loaders; `_make_world` makes a world, and `_restore` fills it from the checkpoint.
    3. `reset` finds out whether the run stopped within a round; if not, the round begins at its first step.
    4. `advance` continues at the cursor. In phase FITTING, `_train` continues after the last finished optimizer step.
    """

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
        """Holds one node at a time in the live module."""
        assert self._slot is not None, "made together with the world"
        return self._slot

    # ------------------------------------------------------------------ data

    def setup_data(self) -> None:
        """Request the loader of every data node, and make the world. Further calls do nothing."""
        if self._combined_loader is not None:
            return
        run, names = self.run_settings, [node.name for node in self.run_settings.data_nodes]
        run.agree_on_folder(self._restored.get("world", {}).get("noise_key"))
        run.collect_callbacks()  # again: `configure_callbacks` of the module, or a `setup`, may have changed them
        check_module(self.trainer, run.method.callbacks)
        self.loaders = request_loaders(self.trainer, self._data_source, names, run.seed, run.devices_per_node)
        self._combined_loader = CombinedLoader(self.loaders, "sequential")
        self.max_batches = max([1, *map(self.plan.num_batches, names)])  # with 0, Lightning would skip the fit
        self.trainer.val_check_batch = float("inf")
        self._metric_callbacks = self._metric_callbacks or find_metric_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        set_metric_callbacks(self._metric_callbacks, True)
        self.val_loaders()  # Lightning requires all processes to request them at the same point
        self._make_world()

    @property
    def evaluates(self) -> bool:
        """Whether nodes are evaluated in this round, here or at organisations below: by `check_val_every_n_epoch`."""
        every, finished = self.trainer.check_val_every_n_epoch or 1, self.world.round + 1
        return (finished % every == 0 or finished == self.max_epochs) and bool(self.val_loaders() or not self.loaders)

    def val_loaders(self) -> dict[str, DataLoader[Any]]:
        """Every data node's validation loader, by name; empty if there is no validation."""
        return request_val_loaders(self.trainer, self.epoch_loop.val_loop, list(self.loaders))

    # ------------------------------------------------------------------ the world

    def _make_world(self) -> None:
        """Make the world from the module's weights or from a checkpoint. A second fit keeps the first one's world."""
        module: Any = self.trainer.lightning_module
        run = self.run_settings
        if self._slot is not None and self._slot.module is module and not self._restored:
            if self.phase is Phase.EXCHANGING:
                raise RuntimeError("the last fit stopped while nodes exchanged messages: resume from a checkpoint")
            self._executor = RoundExecutor(self.world, run.method)
            return
        self._world = world = make_world(self.trainer, run, self.loaders)
        self._executor = RoundExecutor(world, run.method)
        self._slot = NodeSlot(module, self.trainer.strategy, run.share_memory, world.store)
        active = run.main_node
        if self._restored:
            with as_written(self.trainer.ckpt_path):
                active = self._restore()
        self._restored = {}
        is_local = world.transport.is_local
        resumes_fit = self.phase is Phase.FITTING and is_local(self.executor.program[self.cursor].node)
        self.phase = Phase.FITTING if resumes_fit else Phase.IDLE
        if is_local(active):
            self._slot.load_weights(active, world.states[active])

    def _restore(self) -> str:
        """Restore the content of a checkpoint, and return the name of the node that the live module is to hold."""
        world, saved = self.world, self._restored
        rounds, optimizers = trackers(self.epoch_progress)[0], saved["optimizers"]
        within_round = rounds.started > rounds.processed and self.cursor > 0  # at 0 the topology may still change
        model: Tensors = dict(self.trainer.lightning_module.named_parameters())
        num_rounds = None if within_round else rounds.processed
        restore_world(world, self.run_settings.method, saved["world"], model, self.plan.steps_per_round(), num_rounds)
        names = [name for name in optimizers if name in self.loaders and world.transport.is_local(name)]
        self.slot.load_state_dict({name: optimizers[name] for name in names})
        load_states(self.loaders, saved.get("loaders", {}))
        if not world.changes:
            return self.topology.nodes[saved["active"]].name  # an unknown name is an error of the checkpoint
        if self.trainer.is_global_zero:
            accept_changes(world.changes, rounds.processed, self.run_settings.organisation)
        self._count_all()  # only the nodes that are in the world now
        return self.run_settings.main_node

    # ------------------------------------------------------------------ starting and restarting

    def reset(self) -> None:
        """Set the counters of rounds, and find out whether an interrupted run stopped within a round."""
        torch.set_grad_enabled(True)
        current, total = trackers(self.epoch_progress)
        within_round = current.started > current.processed
        total.ready -= current.ready - current.started
        current.ready = current.started
        current.completed, total.completed = current.processed, total.processed
        self._restart_stage = RestartStage.RESTARTED_MID_EPOCH if within_round else RestartStage.NONE
        if not within_round:
            self.cursor = 0
            if self.phase is Phase.FITTING:  # EXCHANGING stays: a fit that broke off there cannot go on
                self.phase = Phase.IDLE

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
        """Run one round of the world, from the cursor on."""
        executor, device = self.executor, self.trainer.strategy.root_device
        # what is drawn outside a round must not depend on the seeds set within it
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
        main = self.run_settings.main_node
        if self.world.transport.is_local(main):  # Lightning saves the live module as the model
            self.slot.load_weights(main, self.world.states[main])
        if self.run_settings.num_ranks > 1:
            self._sync_processes()

    def _sync_processes(self) -> None:
        """Exchange between processes the figures of all nodes, pending log entries, and whether to stop."""
        world, trainer, run_log = self.world, self.trainer, self.run_settings.log
        world.transport.flush()
        local = {"figures": world.figures(), "log": run_log.pending, "stop": trainer.should_stop}
        for process in world.transport.gather(local):
            world.take_figures(process["figures"])
            trainer.should_stop = trainer.should_stop or process["stop"]
            run_log.write(process["log"] if trainer.is_global_zero else ())
        self.epoch_loop.sync_counts(world.transport.gather)
        self._count_all()

    def _count_all(self) -> None:
        states = self.world.states.values()
        self.epoch_loop.count(sum(state.num_steps for state in states), sum(state.num_batches for state in states))

    def _train(self, context: Context) -> FitCounts:
        """Train one node for its local steps."""
        name, loop = context.node.name, self.epoch_loop
        resumed = self.phase is Phase.FITTING  # only if a checkpoint of this fit was restored: it is IDLE otherwise
        optimizer, device = self.slot.load(name, context.state), self.trainer.strategy.root_device
        self.max_batches = num_batches = self.plan.num_batches(name)
        loop.restarting = resumed
        loop.reset()
        done = loop.batch_progress.current.ready
        loop.restarting = done > 0  # `run` calls `reset` again, which must then keep these counts
        seed_torch(context.seed("fit"), device)
        module, sampler = self.trainer.lightning_module, self.loaders[name].batch_sampler
        optimizers = self.trainer.optimizers
        fit = LocalFit(module=module, optimizers=optimizers, device=device, batch_sampler=sampler, resumed=resumed)
        self.run_settings.method.on_local_fit_start(context, fit)
        if done < num_batches:
            self._run_batches(name, done, num_batches)
        loop.end_fit()
        self.phase = Phase.EXCHANGING
        if not context.node.keeps_moments:
            optimizer.optimizer.state.clear()  # at once, which frees its memory while other nodes train
        self.slot.unload()
        tokens = num_tokens(self.loaders[name], num_batches)
        return FitCounts(num_tokens=tokens, num_batches=num_batches, num_steps=self.plan.steps_per_fit(name))

    def _run_batches(self, name: str, done: int, num_batches: int) -> None:
        """Run the epoch loop over the batches of a node's fit that are not done yet."""
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
            raise RuntimeError("a checkpoint cannot be saved while nodes exchange messages: save it in a batch hook")
        if not self.run_settings.saves_within_round and self.cursor < len(self.executor.program):
            raise RuntimeError("a node that exchanges messages with other processes can be saved at the end of a round")
        if fitting := self.phase is Phase.FITTING:
            self.slot.save_weights()
        position = {"cursor": self.cursor, "fitting": fitting, "active": self.slot.name}
        saved = self.slot.state_dict(), states_of(self.loaders), self.plan.steps_per_round()
        return {**position, **loop_state(self.world, *saved)}

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        if "world" not in state_dict:
            raise ValueError("the checkpoint holds no world of nodes: WorldTrainer did not save it during a fit")
        check_format(state_dict["world"])
        self._restored = dict(state_dict)
        self.cursor, self.phase = state_dict["cursor"], Phase.FITTING if state_dict["fitting"] else Phase.IDLE
