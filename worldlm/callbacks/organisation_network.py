"""Connects the node of an organisation with its parent and its children, while it trains."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm import __version__
from worldlm.callbacks.residual_exchange import ResidualExchange
from worldlm.federation.parameters import num_bytes, weights_digest
from worldlm.organisations.agreement import Agreement, digest_of, plain
from worldlm.organisations.identity import Identity
from worldlm.organisations.link import Link
from worldlm.organisations.organisation import MailboxTransport, Organisation, neighbours
from worldlm.organisations.proposal_files import Change
from worldlm.organisations.server import Server
from worldlm.organisations.status import STATUS, Status
from worldlm.rounds import RoundCallback
from worldlm.storage.host_memory import give_back_freed_memory, share_heap_between_threads
from worldlm.topology import Node
from worldlm.topology.errors import join_names
from worldlm.trainer import WorldTrainer
from worldlm.trainer.epoch_loop import trackers

log = logging.getLogger(__name__)

_SECONDS_AT_END = 60.0
"""How long a node that has finished waits for a parent that does not answer."""

_SECONDS_BETWEEN_STATUSES = 1.0

_MAX_NODES = 200
"""Largest world of which every node is compared on its own, so that a difference is named."""


class OrganisationNetwork(Callback):
    """Connects a node with its parent and its children before the first round, and until all messages are delivered.

    Before the first round, child and parent compare what they have agreed on: the version of WorldLM, the topology with
    its rules, the number of rounds, the method, the architecture, the tokenizer, the initial weights, and the settings
    and the frozen model of adapters. A child that has agreed to something else ends with one line for each difference.

    Args:
        identity: The folder of keys and certificates.
        listen: HOST:PORT at which a federation waits for its children; None for a leaf.
        parent: HOST:PORT of the parent; None for the root.
    """

    def __init__(self, identity: Identity, listen: str | None = None, parent: str | None = None) -> None:
        self._identity = identity
        self._listen = listen
        self._parent = parent
        self._server: Server | None = None
        self._link: Link | None = None
        self._initial_weights = ""
        self._ended = threading.Event()
        self._watcher: threading.Thread | None = None

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        node = trainer.run_settings.main_node
        self._initial_weights = self._initial_weights or weights_digest(trainer.world.states[node].parameters)
        self._connect(trainer, pl_module)

    def _connect(self, trainer: WorldTrainer, pl_module: LightningModule, at_end: bool = False) -> None:
        give_back_freed_memory()  # of the weights before the node had its own: else pieces of messages scatter over it
        share_heap_between_threads()
        organisation, transport, round = _organisation(trainer), _transport(trainer), _num_rounds(trainer)
        node, parent = trainer.topology.nodes[organisation.node], trainer.topology.parent(organisation.node)
        if round == 0 and (joined_at := organisation.joined_at):  # and its program ended before its first checkpoint
            _join(trainer, joined_at)
            round = joined_at
        organisation.catch_up(round)
        agreement, largest = self._agreement(trainer, pl_module), _max_bytes(trainer)
        self._ended.clear()
        self._watcher = threading.Thread(target=self._watch, args=(trainer,), daemon=True, name="status")
        self._watcher.start()
        change = transport.change_before(round)  # it arrived, and the program ended before it was made
        if at_end:
            self._serve(node, trainer, agreement, largest)
        if parent is not None and not change:
            self._connect_to(parent.name, trainer, agreement, largest, _SECONDS_AT_END if at_end else math.inf)
        if not at_end:  # a node that joins tells its children at which round, as its parent has told it
            self._serve(node, trainer, agreement, largest)
        if change:
            transport.change_topology(round, change)

    def _serve(self, node: Node, trainer: WorldTrainer, agreement: Agreement, largest: int) -> None:
        if not node.children:
            return
        assert self._listen is not None, "the command demands it"
        organisation = _organisation(trainer)
        mailboxes = {child.name: organisation.mailboxes[child.name] for child in node.children}
        self._server = Server(self._listen, self._identity, mailboxes, agreement, largest, organisation.proposals)

    def _connect_to(
        self, parent: str, trainer: WorldTrainer, agreement: Agreement, largest: int, patience: float
    ) -> None:
        assert self._parent is not None, "the command demands it"
        organisation = _organisation(trainer)
        self._link = Link(
            self._parent,
            parent,
            self._identity,
            organisation.mailboxes[organisation.node],
            agreement,
            largest,
            sends_up=not trainer.topology.nodes[organisation.node].listens,
            proposals=organisation.proposals,
        )
        began = time.monotonic()
        self._link.start(lambda: bool(trainer.received_sigterm) or time.monotonic() - began > patience)
        if self._link.joins_at and _num_rounds(trainer) == 0:
            _join(trainer, self._link.joins_at)

    def _agreement(self, trainer: WorldTrainer, module: LightningModule) -> Agreement:
        nodes = trainer.world.description
        if len(nodes) <= _MAX_NODES:
            topology = {f"the topology at {name}": json.dumps(node, sort_keys=True) for name, node in nodes.items()}
        else:
            topology = {"the topology": digest_of(nodes)}
        callbacks: Iterable[Any] = trainer.callbacks  # type: ignore[attr-defined]
        method = [callback for callback in callbacks if isinstance(callback, RoundCallback) and _is_method(callback)]
        tokenizer: Any = getattr(getattr(trainer, "datamodule", None), "tokenizer", None)
        return {
            "the version of WorldLM": __version__,
            "the number of rounds": str(trainer.max_epochs),
            "the name of the topology": trainer.topology.name,
            **topology,
            "the order of the callbacks": ", ".join(type(callback).__name__ for callback in method),
            **{f"the callback {type(callback).__name__}": plain(vars(callback)) for callback in method},
            "the architecture": str(getattr(module, "architecture", type(module).__name__)),
            "the adapters": str(lora) if (lora := getattr(module, "lora", None)) and lora.is_given else "none",
            "the weights of the frozen model (init_from)": str(getattr(module, "base_digest", None) or "none"),
            "the split of the model": digest_of(sorted(trainer.world.partition.items())),
            "the tokenizer": str(tokenizer.fingerprint()) if hasattr(tokenizer, "fingerprint") else "none",
            "the initial weights (seed_everything, and the sizes of the model)": self._initial_weights,
        }

    def on_train_epoch_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        """At the root, change the topology if all organisations have consented to a proposal."""
        organisation, round = _organisation(trainer), trainer.world.round
        proposals = organisation.proposals
        if proposals is None or organisation.node != trainer.topology.root.name or round == 0:
            return
        has_begun = any(mailbox.has_begun(round) for mailbox in organisation.mailboxes.values())  # before a restart
        if proposals.files.decided is None and proposals.agreed() and not has_begun:
            proposals.files.decide(round)
        if proposals.files.decided == round:
            _transport(trainer).change_topology(round, proposals.files.text)

    def on_train_epoch_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        """Record the privacy loss so far, if there is any."""
        organisation = _organisation(trainer)
        node = trainer.topology.nodes[organisation.node]
        figures = trainer.method.node_figures(node, trainer.world.states[node.name])
        spent: dict[str, float] = {kind: figures[kind] for kind in ("epsilon", "example epsilon") if kind in figures}
        if organisation.audit is not None and spent:
            organisation.audit.add_epsilon(trainer.world.round, spent)

    # ------------------------------------------------------------------ status

    def _watch(self, trainer: WorldTrainer) -> None:
        """Write what the node is doing, and look for proposals, every second."""
        proposals = _organisation(trainer).proposals
        while not self._ended.is_set():
            if proposals is not None:
                proposals.assess()
            self._write_status(trainer)
            self._ended.wait(_SECONDS_BETWEEN_STATUSES)

    def _write_status(self, trainer: WorldTrainer) -> None:
        with suppress(OSError):  # the disk may be full; what needs the disk more reports it
            self._status(trainer).write(self._identity.folder.parent / STATUS)

    def _status(self, trainer: WorldTrainer) -> Status:
        organisation, transport = _organisation(trainer), _transport(trainer)
        parent = trainer.topology.parent(organisation.node)
        called = {} if self._server is None else self._server.last_seen()
        names = neighbours(trainer.topology, organisation.node)
        return Status(
            node=organisation.node,
            round=trainer.world.round + 1,
            num_rounds=trainer.max_epochs or 0,
            waits_for=transport.waits_for,
            parent="" if parent is None else f"{parent.name} at {self._parent}",
            parent_answered=None if self._link is None else self._link.last_answer,
            called={child.name: called.get(child.name) for child in trainer.topology.nodes[organisation.node].children},
            undelivered={names[edge]: len(box.undelivered()) for edge, box in organisation.mailboxes.items()},
        )

    # ------------------------------------------------------------------ the end

    def on_fit_end(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        """Wait until the neighbours have stored all messages, also those of a run that ended before."""
        organisation, reported = _organisation(trainer), False
        mailboxes = {n: box for n, box in organisation.mailboxes.items() if not organisation.is_revoked(n)}
        is_connected = self._link is not None or self._server is not None
        if not is_connected and any(mailbox.undelivered() for mailbox in mailboxes.values()):
            with suppress(SIGTERMException):  # also if the parent does not answer: it may have ended
                self._connect(trainer, pl_module, at_end=True)
        began, names = time.monotonic(), neighbours(trainer.topology, organisation.node)
        deadline = trainer.topology.nodes[organisation.node].settings.deadline_seconds
        while waiting := [name for name, mailbox in mailboxes.items() if mailbox.undelivered()]:
            if trainer.received_sigterm:
                raise SIGTERMException
            is_late = deadline is not None and time.monotonic() - began > deadline and organisation.node not in waiting
            if is_late or self._parent_has_ended(waiting):
                print(f"not all messages were delivered to {join_names([names[name] for name in waiting])}: the same "
                      "command tries again")  # fmt: skip
                return
            if not reported:
                print(f"waiting until all messages are delivered to {join_names([names[name] for name in waiting])}")
                reported = True
            time.sleep(0.02)
        while self._link is not None and not (self._link.is_idle or trainer.received_sigterm):
            time.sleep(0.02)

    def _parent_has_ended(self, waiting: list[str]) -> bool:
        """Return whether only the parent is waited for, and does not answer: it may have ended, and need no more."""
        own = self._identity.node
        return waiting == [own] and self._link is not None and self._link.seconds_since_answer() > _SECONDS_AT_END

    def teardown(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._stop(trainer)

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop(trainer)

    def _stop(self, trainer: WorldTrainer) -> None:
        self._ended.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
            self._write_status(trainer)  # as it is at the end
        if self._link is not None:
            self._link.stop()
        if self._server is not None:
            self._server.stop()
        self._link = self._server = None

    # ------------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"initial_weights": self._initial_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._initial_weights = str(state_dict["initial_weights"])


def _organisation(trainer: WorldTrainer) -> Organisation:
    organisation = trainer.run_settings.organisation
    assert organisation is not None, "only worldlm join and serve add this callback"
    return organisation


def _num_rounds(trainer: WorldTrainer) -> int:
    """Return the number of rounds that this node has finished."""
    return trackers(trainer.fit_loop.epoch_progress)[0].processed


def _join(trainer: WorldTrainer, round: int) -> None:
    """Begin with a later round: this node has joined the world while it trains."""
    organisation = _organisation(trainer)
    for tracker in trackers(trainer.fit_loop.epoch_progress):
        tracker.ready = tracker.started = tracker.processed = tracker.completed = round
    for name, steps in trainer.fit_loop.plan.steps_per_round().items():
        trainer.world.states[name].extra_steps -= round * steps  # its learning rate warms up, and decays to the end
    organisation.catch_up(round)
    if organisation.proposals is not None:
        below = [node.name for node in trainer.topology.nodes[organisation.node].walk()]
        organisation.proposals.files.finish(Change(round=round, file="", joined=below))
    log.info("%s joins before round %d", organisation.node, round + 1)


def _transport(trainer: WorldTrainer) -> MailboxTransport:
    transport = trainer.world.transport
    assert isinstance(transport, MailboxTransport), "an organisation has no other"
    return transport


def _is_method(callback: RoundCallback) -> bool:
    """Return whether a callback is part of the method, and not one that only observes it."""
    return not type(callback).__module__.startswith("worldlm.monitoring.")


def _max_bytes(trainer: WorldTrainer) -> int:
    """Return the size of the largest message that this world can need: a model, and residuals of less than one each."""
    exchange = trainer.find_callback(ResidualExchange)
    residuals = 0 if exchange is None else exchange.num_residuals
    model = num_bytes({name: value.detach() for name, value in trainer.lightning_module.named_parameters()})
    return (2 + residuals) * model + 10_000_000
