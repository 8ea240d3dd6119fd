"""Federated rounds as a Lightning loop: one epoch is one round of the world, one run of the epoch loop one fit.

With `epoch_loop.py` the one place that touches Lightning's private loops (2.6), which is why the dependency is pinned.
All stepping (precision, gradient clipping, accumulation, schedulers, hooks, loggers) stays Lightning's; what is
replaced is which batches, weights and optimizer it sees, and how an interrupted run is taken up again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage, _FitLoop
from lightning.pytorch.trainer.connectors.data_connector import _process_dataloader, _request_dataloader
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from worldlm.checkpoint.read import as_written
from worldlm.distributed.transport import place_nodes
from worldlm.federation.seeds import seed_torch
from worldlm.rounds.executor import Steps
from worldlm.rounds.program import Step
from worldlm.rounds.world import World
from worldlm.topology import Topology
from worldlm.trainer.epoch_loop import NodeEpochLoop, trackers
from worldlm.trainer.loaders import check_loaders, num_tokens
from worldlm.trainer.loggers import Told, write
from worldlm.trainer.metric_callbacks import MetricCallback, find_metric_callbacks, set_metric_callbacks
from worldlm.trainer.node_slot import NodeSlot

if TYPE_CHECKING:
    from worldlm.trainer.world_trainer import WorldTrainer


class FederatedFitLoop(_FitLoop):
    """Runs the program of a round, step by step, and keeps what a restart needs: a cursor and the world."""

    trainer: WorldTrainer

    def __init__(
        self, trainer: WorldTrainer, topology: Topology, seed: int, min_epochs: int | None, max_epochs: int | None
    ) -> None:
        super().__init__(trainer, min_epochs=min_epochs, max_epochs=max_epochs)
        self.epoch_loop = NodeEpochLoop(trainer)
        self.topology = topology
        self.seed = seed
        self.cursor = 0
        self.visiting = False
        self.loaders: dict[str, DataLoader[Any]] = {}
        self._world: World | None = None
        self._steps: Steps | None = None
        self._slot: NodeSlot | None = None
        self._restored: dict[str, Any] = {}
        self.told: list[Told] = []
        """What the nodes held here have told since the last round's end, where process 0 is another."""
        self._half_way = False  # within a step in which nodes talk: nothing that could be saved
        self._metric_callbacks: list[MetricCallback] = []

    @property
    def world(self) -> World:
        """The world, once a fit has begun."""
        if self._world is None:
            raise RuntimeError("the world is made when fitting starts")
        return self._world

    @property
    def slot(self) -> NodeSlot:
        """The live module's place for one node at a time."""
        assert self._slot is not None, "the slot is made together with the world"
        return self._slot

    # ------------------------------------------------------------------ data

    def num_batches(self, name: str) -> int:
        """Batches of one fit of a node."""
        steps = self.topology.nodes[name].settings.num_local_steps
        assert steps is not None, "checked when the topology was read"
        number, limit = steps * self.trainer.accumulate_grad_batches, self.trainer.limit_train_batches
        return min(number, limit if isinstance(limit, int) else max(1, int(number * limit)))

    def setup_data(self) -> None:
        """Make every data node's loader, once, and the world with its initial weights."""
        if self._combined_loader is not None:
            return
        names = [node.name for node in self.topology.data_nodes]
        loaders = check_loaders(_request_dataloader(self._data_source), names, self.trainer.devices_per_node)
        stage = (self.trainer, TrainerFn.FITTING, RunningStage.TRAINING)
        self.loaders = {
            name: cast(DataLoader[Any], _process_dataloader(*stage, loader)) for name, loader in loaders.items()
        }
        self._combined_loader = CombinedLoader(self.loaders, "sequential")
        self.max_batches = max(map(self.num_batches, names))
        self.trainer.val_check_batch = float("inf")
        self._metric_callbacks = self._metric_callbacks or find_metric_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
        set_metric_callbacks(self._metric_callbacks, True)
        self.trainer.agree_on_folder()
        self.val_loaders()  # of which Lightning wants all processes to know at the same point
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

    def _make_world(self) -> None:
        module: Any = self.trainer.lightning_module
        if self._slot is not None and self._slot.module is module and not self._restored:
            if self._half_way:
                raise RuntimeError("the last fit broke off while nodes talked: resume from a checkpoint")
            return  # a second fit goes on where the first one ended
        live = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
        live = self.trainer.strategy.broadcast(live)
        visits = self.trainer.num_visits
        costs = {name: visits[name] * num_tokens(self.loaders[name], self.num_batches(name)) for name in visits}
        transport = place_nodes(self.trainer, costs)
        self._world = World(self.trainer, self.topology, module.partition(), live, self.seed, transport)
        self._steps = Steps(self._world)
        self._slot = NodeSlot(module, self.trainer.strategy, self.trainer.share_memory, self._world.store)
        start = self.topology.root.name
        if self._restored:
            with as_written(self.trainer.ckpt_path):
                start = self._restore(self._world, self._slot)
        self._restored, self._half_way = {}, False
        self.visiting = self.visiting and transport.is_local(self._world.program[self.cursor].node)
        if transport.is_local(start):
            self._slot.put_weights(start, self._world.states[start])

    def _restore(self, world: World, slot: NodeSlot) -> str:
        """Restore what a checkpoint holds, and return whose weights were live."""
        rounds, saved = trackers(self.epoch_progress)[0], self._restored["optimizers"]
        within = rounds.started > rounds.processed and self.cursor > 0
        world.load_state_dict(self._restored["world"], None if within else rounds.processed)
        wanted = [name for name in saved if name in self.loaders and world.transport.is_local(name)]
        slot.load_state_dict({name: saved[name] for name in wanted})
        if world.changes:
            self._count_all()  # of the nodes that are in the world now
        return self.topology.root.name if world.changes else self.topology.nodes[self._restored["active"]].name

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
            self.cursor, self.visiting = 0, False

    @property
    def _can_stop_early(self) -> bool:  # early stopping and max_time take effect at the end of a round
        return super()._can_stop_early and self.cursor >= len(self.world.program)

    def on_advance_start(self) -> None:
        if not self.restarted_mid_epoch:
            self.cursor = 0
        self.world.round = trackers(self.epoch_progress)[0].processed
        set_metric_callbacks(self._metric_callbacks, True)
        super().on_advance_start()

    def on_advance_end(self) -> None:
        set_metric_callbacks(self._metric_callbacks, self.evaluates or not self.val_loaders())
        super().on_advance_end()
        self.told = []  # of the round as a whole, which process 0 told too

    # ------------------------------------------------------------------ one round

    def advance(self) -> None:
        """Run one round of the world from the cursor on."""
        device = self.trainer.strategy.root_device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            assert self._steps is not None, "made together with the world"
            steps = self._steps
            steps.begin(self.cursor)
            while self.cursor < len(self.world.program):
                step = self.world.program[self.cursor]
                if self.world.transport.is_local(step.node):
                    self._half_way = step.kind != "fit"
                    if step.kind != "fit":
                        steps.run(step)
                    elif steps.takes_part(step):
                        self._fit(step)
                self.cursor += 1
                self._half_way = False
                if self.trainer.received_sigterm and self.cursor < len(self.world.program):
                    raise SIGTERMException
        root = self.topology.root.name  # what Lightning saves as the model is the root's
        if self.world.transport.is_local(root):
            self.slot.put_weights(root, self.world.states[root])
        if self.trainer.num_ranks > 1:
            self._sync_processes()

    def _sync_processes(self) -> None:
        """Let all processes know what the nodes of the others came to, and whether one of them is to stop."""
        world, trainer = self.world, self.trainer
        world.transport.flush()
        own = {"figures": world.figures(), "told": self.told, "stop": trainer.should_stop}
        for other in world.transport.gather(own):
            world.take_figures(other["figures"])
            trainer.should_stop = trainer.should_stop or other["stop"]
            write(trainer, other["told"] if trainer.is_global_zero else ())
        self._count_all()

    def _count_all(self) -> None:
        states = self.world.states.values()
        self.epoch_loop.count(sum(state.num_steps for state in states), sum(state.num_batches for state in states))

    def _fit(self, step: Step) -> None:
        """Train one node for its local steps."""
        world, name, loop = self.world, step.node, self.epoch_loop
        context, state = world.context(name, step.subround), world.states[name]
        own = self.slot.put(name, state)
        self.max_batches = num_batches = self.num_batches(name)
        loop.restarting = self.visiting
        loop.reset()
        done = loop.batch_progress.current.ready
        loop.restarting = done > 0  # `run` resets once more, which must keep what was found
        seed_torch(context.seed("fit"), self.trainer.strategy.root_device)
        for callback in world.callbacks:
            callback.on_local_fit_start(self.trainer, context)
        if done < num_batches:
            self._run_batches(name, done, num_batches)
        self.visiting, self._half_way = False, True
        self._count(name, num_batches)
        if not context.node.keeps_moments:
            own.optimizer.state.clear()  # now, lest it takes up memory while the others train
        self.slot.rest()
        for callback in world.callbacks:
            callback.on_local_fit_end(self.trainer, context)

    def _run_batches(self, name: str, done: int, num_batches: int) -> None:
        loader = self.loaders[name]
        sampler: Any = loader.batch_sampler
        sampler.start = self.world.states[name].num_batches + done
        sampler.length = num_batches - done
        fetcher = self._data_fetcher = _PrefetchDataFetcher()
        fetcher.setup(CombinedLoader(loader, "max_size_cycle"))
        iter(fetcher)
        self.visiting = True
        self.epoch_loop.run(fetcher)
        fetcher.teardown()
        self._data_fetcher = None

    def _count(self, name: str, num_batches: int) -> None:
        state, tokens = self.world.states[name], num_tokens(self.loaders[name], num_batches)
        state.num_visits += 1
        state.num_batches += num_batches
        state.num_steps += self.trainer.steps_per_fit(name)
        state.num_tokens += tokens
        state.fit_tokens = tokens
        state.unsent_tokens += tokens

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self) -> dict[str, Any]:
        if self._world is None:
            return {}
        if self._half_way:
            raise RuntimeError(
                "a checkpoint cannot be saved while nodes talk, only within Lightning's own hooks of a batch or a round"
            )
        if self.trainer.num_ranks > 1 and self.cursor < len(self.world.program):
            raise RuntimeError("several processes can save a checkpoint at the end of a round only, where they meet")
        if self.visiting:
            self.slot.take_back()
        world, optimizers = self.world.state_dict(), self.slot.state_dict()
        own = {name: (state, optimizers.get(name)) for name, state in world["states"].items()}
        found = self.world.transport.collect(own)
        return {
            "cursor": self.cursor,
            "visiting": self.visiting,
            "active": self.slot.name,
            "world": {**world, "states": {name: state for name, (state, _) in found.items()}},
            "optimizers": {name: optimizer for name, (_, optimizer) in found.items() if optimizer is not None},
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        if "world" not in state_dict:
            raise ValueError("the checkpoint holds no world of nodes: it is none that WorldTrainer saved while fitting")
        self._restored = dict(state_dict)
        self.cursor, self.visiting = state_dict["cursor"], state_dict["visiting"]
