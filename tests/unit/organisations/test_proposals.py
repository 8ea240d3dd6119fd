"""Proposed topologies: what they change, who must consent, and what may be approved in advance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worldlm.organisations.proposal_files import Change, ProposalFiles, digest_of
from worldlm.organisations.proposals import Proposals
from worldlm.topology import Topology, parse_topology
from worldlm.topology.errors import UserError

NOW = """
name: pact
settings: {num_local_steps: 5}
root:
  name: world
  children:
    - name: north
      children:
        - {name: a, corpus: a}
        - {name: b, corpus: b, settings: {privacy: {noise_multiplier: 1.0, clip_norm: 1.0}}}
    - {name: c, corpus: c}
"""

JOINED = NOW.replace("- {name: c, corpus: c}", "- {name: c, corpus: c}\n    - {name: d, corpus: d}")
LEFT = NOW.replace("\n    - {name: c, corpus: c}", "")
SETTINGS = NOW.replace("{name: a, corpus: a}", "{name: a, corpus: a, settings: {num_local_steps: 7}}")
LESS_NOISE = NOW.replace("noise_multiplier: 1.0", "noise_multiplier: 0.5")


def parse(text: str) -> Topology:
    return parse_topology(text, "topology.yaml")


Make = Callable[..., Proposals]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return a function that makes the proposals of a node."""

    def build(node: str, approves: tuple[str, ...] = (), revoked: str = "") -> Proposals:
        files = ProposalFiles(tmp_path / node)
        return Proposals(files, parse(NOW), node, parse, approves, lambda child: child == revoked)

    return build


def test_a_consent_climbs_when_all_below_have_consented(make: Make) -> None:
    world, north, a, b, c = (make(name) for name in ("world", "north", "a", "b", "c"))
    world.files.propose(JOINED)
    world.files.consent(JOINED)
    assert world.proposed == "", "it was not compared with the present topology yet"
    world.assess()
    assert world.proposed == JOINED
    for node in (north, a, b, c):
        node.take(world.proposed)
        node.assess()
        assert node.files.assessment["lines"] == ["joined: d (from world)"]
        assert node.agreed() == ""
    for leaf in (a, b, c):
        leaf.files.consent(JOINED)
        assert leaf.agreed() == digest_of(JOINED)
    north.files.note("a", a.agreed())
    north.files.note("b", b.agreed())
    assert north.agreed() == "", "north itself has not consented"
    north.files.consent(JOINED)
    world.files.note("c", c.agreed())
    assert world.agreed() == ""
    world.files.note("north", north.agreed())
    assert world.agreed() == digest_of(JOINED)
    world.files.propose(LEFT)  # another proposal needs other consents
    world.assess()
    assert world.agreed() == ""


def test_a_revoked_child_need_not_consent(make: Make) -> None:
    world = make("world", revoked="c")
    world.files.propose(LEFT)
    world.files.consent(LEFT)
    world.assess()
    assert world.agreed() == ""
    world.files.note("north", digest_of(LEFT))
    assert world.agreed() == digest_of(LEFT)


@pytest.mark.parametrize(
    ("node", "text", "approves", "expected"),
    [
        ("a", JOINED, ("joined",), True),
        ("a", JOINED, ("left", "moved", "settings"), False),
        ("a", LEFT, ("joined", "left"), True),
        ("c", LEFT, ("joined", "left"), False),  # itself
        ("c", SETTINGS, ("settings",), True),
        ("a", SETTINGS, ("settings",), False),  # its own
        ("a", LESS_NOISE, ("joined", "left", "moved", "settings"), False),  # weakens privacy
        ("a", JOINED, (), False),
    ],
)
def test_what_is_approved_in_advance(
    node: str, text: str, approves: tuple[str, ...], expected: bool, make: Make
) -> None:
    proposals = make(node, approves)
    proposals.take(text)
    proposals.assess()
    assert proposals.files.has_consented(text) is expected
    assert (proposals.agreed() == digest_of(text)) is expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (NOW, "it changes nothing"),
        ("name: [", "proposal|topology.yaml"),
        (NOW.replace("name: world", "name: globe"), "its root is globe, but the root cannot change"),
        (NOW.replace("{name: c, corpus: c}", "{name: c, corpus: c, setings: {}}"), "setings"),
        ("!!python/object/apply:os.system ['true']", ""),
    ],
)
def test_what_cannot_be_used_is_not_passed_on(text: str, problem: str, make: Make) -> None:
    north = make("north", approves=("joined", "left", "moved", "settings"))
    north.take(text)
    north.assess()
    assert problem.split("|")[-1] in north.files.assessment["problem"]
    assert north.files.assessment["problem"]
    assert (north.proposed, north.agreed()) == ("", "")
    assert not north.files.has_consented(text)


def test_a_change_without_consent_is_an_error(make: Make) -> None:
    north = make("north")
    with pytest.raises(ValueError, match="the topology changes before round 4, but north has not consented to it"):
        north.changed(3, JOINED)


def test_what_a_change_means_for_a_node(make: Make) -> None:
    moved = LEFT.replace("        - {name: a, corpus: a}\n", "") + "    - {name: a, corpus: a}\n"
    found = {}
    for node in ("world", "north", "a", "c"):
        proposals = make(node)
        proposals.files.consent(moved)
        found[node] = proposals.changed(3, moved)
    assert found["world"] == (Change(round=3, file="topology_3.yaml", joined=[]), ["c"], "")
    assert found["north"][1:] == (["a"], "")
    assert found["a"][2].startswith("a belongs to world after round 3: when world has admitted it")
    assert found["c"][2] == "c has left pact after round 3"


def test_a_change_that_is_made_ends_the_proposal(make: Make) -> None:
    files = make("world").files
    files.propose(JOINED)
    files.decide(3)
    with pytest.raises(UserError, match="is being carried out"):
        files.propose(LEFT)
    files.finish(Change(round=3, file="topology_3.yaml", joined=["d"]), JOINED)
    assert (files.text, files.decided) == ("", None)
    assert files.topology is not None
    assert files.topology.read_text() == JOINED
    assert (files.joins_at("d"), files.joins_at("c")) == (3, 0)


def test_a_huge_proposal_is_rejected(make: Make) -> None:
    with pytest.raises(UserError, match="larger than the 500,000"):
        make("world").files.propose(f"# {'x' * 500_000}")
