"""The topology changes between two rounds, at all organisations that have consented, as in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from identities import admit, create_identities, create_identity, free_port
from organisations_at_home import mailboxes, of_node

from worldlm.callbacks import LastCheckpoint
from worldlm.callbacks.organisation_network import OrganisationNetwork
from worldlm.organisations import link
from worldlm.organisations.organisation import Organisation
from worldlm.organisations.proposal_files import ProposalFiles
from worldlm.organisations.proposals import Proposals, TopologyChanged
from worldlm.topology import Topology, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]

BEFORE = """
name: before
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: north
      children:
        - {name: a, corpus: a}
        - {name: b, corpus: b}
    - name: south
      children:
        - {name: c, corpus: c}
        - {name: d, corpus: d}
"""

AFTER = """
name: after
settings: {num_local_steps: 2, batch_size: 2}
root:
  name: world
  children:
    - name: north
      children:
        - {name: a, corpus: a, settings: {num_local_steps: 3}}
        - {name: e, corpus: e}
    - name: south
      settings: {num_subrounds: 2}
      children:
        - {name: c, corpus: c}
        - {name: b, corpus: b}
"""

ROUNDS = 6


def topology_of(text: str) -> Topology:
    return parse_topology(text, "topology.yaml")


class Slow(FederationCallback):
    """Lets consents climb while a round goes on."""

    def on_train_epoch_end(self, *args: Any) -> None:
        time.sleep(0.3)


@pytest.fixture
def one_changing_node(fit: Make, whole_method: Make, make_module: Make, snapshot: Make, tmp_path: Path) -> Make:
    """Return a builder of the job of an organisation that trains its node, with each topology after the other."""

    def build(everybody: Topology, **options: Any) -> Make:
        identities = create_identities(tmp_path / "identities", topology_of(BEFORE))
        identities["e"] = create_identity(tmp_path / "identities", "e")
        admit(identities["north"], identities["e"])
        ports = {name: free_port() for name, node in everybody.nodes.items() if node.children}

        def train(name: str, folder: Path) -> Mapping[str, Any]:
            files = ProposalFiles(folder / "changes")
            topology = topology_of(BEFORE if files.topology is None else files.topology.read_text())
            if name not in topology.nodes:  # it joins
                topology = topology_of(AFTER)
            node, parent = topology.nodes[name], topology.parent(name)
            organisation = Organisation(
                node=name,
                mailboxes=mailboxes(folder.parent, topology, name),
                proposals=Proposals(files, topology, name, topology_of),
            )
            network = OrganisationNetwork(
                identities[name],
                listen=f"127.0.0.1:{ports[name]}" if node.children else None,
                parent=f"127.0.0.1:{ports[parent.name]}" if parent else None,
            )
            last = folder / "checkpoints" / "last.ckpt"
            trainer = fit(
                topology,
                [*whole_method(), LastCheckpoint(), Slow(), network],
                module=make_module(),
                organisation=organisation,
                default_root_dir=folder,
                resume=last if last.exists() else None,
                max_epochs=ROUNDS,
                **options,
            )
            changed = files.last
            assert changed is not None
            return {**of_node(snapshot(trainer), name), "changed": changed.round}

        def job(organisation: Organisation, folder: Path) -> Mapping[str, Any]:
            name = organisation.node
            link._SECONDS_BETWEEN_QUESTIONS = 0.05
            files = ProposalFiles(folder / "changes")
            if name == "world" and files.last is None and files.decided is None:
                files.propose(AFTER)
            if name in topology_of(BEFORE).nodes:
                files.consent(AFTER)
            else:  # it is started after the change was made
                while ProposalFiles(folder.parent / "north" / "changes").last is None:
                    time.sleep(0.05)
            while True:
                if name == "b" and files.last is not None:  # it has moved
                    admit(identities["south"], identities["b"])
                try:
                    return train(name, folder)
                except TopologyChanged as change:
                    if name == "d":
                        return {"ended": str(change)}
                    if bool(str(change)) != (name == "b"):
                        raise

        return job

    return build


@pytest.mark.parametrize("kills", [0, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_change_equals_that_of_one_process(
    kills: int,
    at_home: Make,
    one_changing_node: Make,
    fit: Make,
    whole_method: Make,
    make_module: Make,
    snapshot: Make,
    differences: Make,
    tmp_path: Path,
) -> None:
    everybody = topology_of(f"{AFTER}        - {{name: d, corpus: d}}\n")
    apart = at_home(everybody, one_changing_node(everybody), kills=kills, carried=False)
    rounds = {name: found.pop("changed") for name, found in apart.items() if name != "d"}
    (changed,) = set(rounds.values())
    assert 1 <= changed < ROUNDS
    assert apart.pop("d") == {"ended": f"d has left after after round {changed}"}

    options = {"max_epochs": ROUNDS, "default_root_dir": tmp_path / "whole"}
    keep = [LastCheckpoint(keep_every_n_rounds=1)]
    fit(topology_of(BEFORE), [*whole_method(), *keep], module=make_module(), **options)
    resume = tmp_path / "whole" / "checkpoints" / f"round_{changed}.ckpt"
    whole = snapshot(fit(topology_of(AFTER), whole_method(), module=make_module(), resume=resume, **options))
    for name, found in apart.items():
        expected = of_node(whole, name)
        for state in (found["state"], expected["state"]):
            state["memory"].pop("NodeMetrics", None)  # a federation has no text of its own to measure
        assert differences(found, expected) == [], name
