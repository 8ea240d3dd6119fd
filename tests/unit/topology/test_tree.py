"""Nodes, topologies and settings built in Python."""

import copy
import pickle

import pytest

from worldlm.topology import Node, OuterOptimizer, Privacy, Residuals, Settings, Topology
from worldlm.topology.checks import FieldError

STEPS = Settings(num_local_steps=1)


def leaf(name: str) -> Node:
    return Node(name=name, corpus="text", settings=STEPS)


def small() -> Topology:
    west = Node(name="west", children=(leaf("it"), leaf("fr")))
    return Topology(name="small", root=Node(name="world", children=(west, leaf("uk"))))


def test_walks_in_preorder() -> None:
    topology = small()
    assert list(topology.nodes) == ["world", "west", "it", "fr", "uk"]
    assert [node.name for node in topology.root.leaves()] == ["it", "fr", "uk"]
    assert topology.data_nodes == list(topology.root.leaves())
    assert topology.depth == 3


def test_parents() -> None:
    topology = small()
    assert topology.parent("it") is topology.nodes["west"]
    assert topology.parent("world") is None
    with pytest.raises(KeyError):
        topology.parent("nobody")


def test_path_from_the_root() -> None:
    topology = small()
    assert [node.name for node in topology.path("it")] == ["world", "west", "it"]
    assert topology.path("world") == [topology.root]
    with pytest.raises(KeyError):
        topology.path("nobody")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_and_pickles(copied) -> None:
    outer = OuterOptimizer(name="SGD", arguments={"lr": 0.7})
    settings = Settings(num_local_steps=1, outer_optimizer=outer, residuals=Residuals(share=False))
    topology = Topology(name="t", root=Node(name="w", corpus="c", settings=settings))
    assert copied(topology) == topology
    assert hash(settings) == hash(copied(settings))


def test_duplicate_names_are_rejected() -> None:
    with pytest.raises(ValueError, match="repeats it"):
        Topology(name="t", root=Node(name="world", children=(leaf("it"), leaf("it"))))


def test_all_invalid_fields_are_reported_together() -> None:
    with pytest.raises(FieldError) as caught:
        Node(name="a b", weight=float("nan"))
    assert set(caught.value.mistakes) == {"name", "weight", "corpus"}
    with pytest.raises(FieldError) as caught:
        Settings(num_local_steps=-1, participation=0.0, optimizer_state="lose")  # type: ignore[arg-type]
    assert set(caught.value.mistakes) == {"num_local_steps", "participation", "optimizer_state"}


@pytest.mark.parametrize("name", ["", "a/b", "a\n", "é", "x" * 101, ".."])
def test_invalid_names_are_rejected(name: str) -> None:
    with pytest.raises(FieldError, match="letters, digits"):
        leaf(name)


def test_settings_copy_the_arguments_of_the_caller() -> None:
    arguments = {"lr": 0.7}
    outer = OuterOptimizer(name="SGD", arguments=arguments)
    arguments["lr"] = 1.0
    assert outer.arguments == {"lr": 0.7}


def test_loosened_fields_are_listed() -> None:
    demand = Privacy(clip_norm=1.0, noise_multiplier=1.0, max_epsilon=8.0)
    assert demand.loosened_by(demand) == {}
    below = Privacy(clip_norm=2.0, noise_multiplier=0.5, delta=1e-4)
    loosened = {"clip_norm", "noise_multiplier", "delta", "max_epsilon"}
    assert set(demand.loosened_by(below)) == loosened


def test_accept_from_must_be_a_list() -> None:
    with pytest.raises(FieldError, match="must be a list of names, but is 'eu'"):
        Residuals(accept_from="eu")  # type: ignore[arg-type]


def listener(name: str) -> Node:
    return Node(name=name, corpus="text", settings=Settings(num_local_steps=0))


def test_a_leaf_without_steps_listens() -> None:
    assert (listener("it").listens, listener("it").fits, listener("it").holds_data) == (True, False, True)
    assert (leaf("it").listens, leaf("it").fits) == (False, True)
    assert Node(name="west", children=(listener("it"), listener("fr"))).listens
    assert not Node(name="west", children=(listener("it"), leaf("fr"))).listens
    assert not Node(name="west", corpus="text", settings=STEPS, children=(listener("it"),)).listens


def test_a_parent_with_data_cannot_be_a_listener() -> None:
    with pytest.raises(FieldError, match="num_local_steps is 0 at node 'west', which has children"):
        Node(name="west", corpus="text", settings=Settings(num_local_steps=0), children=(leaf("it"),))


def test_a_node_must_train() -> None:
    with pytest.raises(FieldError, match="root must contain a node that trains"):
        Topology(name="t", root=Node(name="world", children=(listener("it"),)))


@pytest.mark.parametrize(
    ("below", "expected"),
    [
        (None, "privacy of 'b' may only be tightened, but is removed"),
        (Privacy(clip_norm=2.0, noise_multiplier=1.0), "privacy.clip_norm of 'b' may only be tightened: at most 1 as"),
    ],
)
def test_a_tree_built_by_hand_cannot_loosen_privacy(below: Privacy | None, expected: str) -> None:
    strict = Settings(num_local_steps=1, privacy=Privacy(clip_norm=1.0, noise_multiplier=1.0))
    leaf = Node(name="b", corpus="text", settings=Settings(num_local_steps=1, privacy=below))
    with pytest.raises(FieldError, match=f"root must not loosen privacy: {expected}"):
        Topology(name="t", root=Node(name="a", settings=strict, children=(leaf,)))
