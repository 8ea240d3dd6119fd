"""Runs one node of a world, and carries its messages to and from its parent as a network does."""

from __future__ import annotations

import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from worldlm.organisations.mailbox import Mailbox
from worldlm.organisations.organisation import Organisation, neighbours
from worldlm.topology import Topology

Job = Callable[[Organisation, Path], Any]


def carry(source: Mailbox, target: Mailbox) -> None:
    """Carry the undelivered messages from one end of an edge to the other, as a network does."""
    for name in source.undelivered():
        if target.expects(name):
            shutil.copyfile(source.path(name), target.arriving(name))
            target.store(name)
        source.mark_delivered(name)


def mailboxes(folder: Path, topology: Topology, node: str) -> dict[str, Mailbox]:
    """Return the mailboxes of a node, in its own folder."""
    return {edge: Mailbox(folder / node / "mail" / edge, edge) for edge in neighbours(topology, node)}


def be_organisation(folder: Path, topology: Topology, node: str, job: Job, carried: bool) -> None:
    """Run a node, and carry its messages to and from its parent, unless the job does so itself."""
    torch.set_num_threads(1)
    organisation = Organisation(node=node, mailboxes=mailboxes(folder, topology, node))
    parent, ended = topology.parent(node) if carried else None, threading.Event()

    def carry_all() -> None:
        assert parent is not None
        try:
            above = Mailbox(folder / parent.name / "mail" / node, node)
            while not ended.is_set():
                carry(organisation.mailboxes[node], above)
                carry(above, organisation.mailboxes[node])
                time.sleep(0.01)
        except BaseException:
            (folder / node / "error").write_text(traceback.format_exc())
            os._exit(1)  # at once: the main thread would wait for ever

    courier = threading.Thread(target=carry_all, daemon=True)
    try:
        if parent is not None:
            courier.start()
        torch.save(job(organisation, folder / node), folder / node / "result.pt")
        if parent is not None:
            while organisation.mailboxes[node].undelivered():
                time.sleep(0.01)
            ended.set()
            courier.join()
    except BaseException:
        (folder / node / "error").write_text(traceback.format_exc())
        raise


def of_node(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return what a run came to for one node."""
    world = state["world"]
    return {"state": world["states"][name], "optimizer": state["optimizers"].get(name), "reference": world["reference"]}
