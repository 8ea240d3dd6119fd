"""Organisations that are killed and started again come to the same bits as without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from organisations_at_home import mailboxes

from worldlm.callbacks import LastCheckpoint
from worldlm.organisations.organisation import Organisation
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("kills", "rounds"), [(3, 16), pytest.param(50, 160, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_kills_at_random_moments(
    kills: int, rounds: int, busy_tree: Topology, at_home: Make, one_node: Make, whole_method: Make, differences: Make
) -> None:
    def method() -> list[Any]:
        return [*whole_method(), LastCheckpoint()]

    undisturbed = at_home(busy_tree, one_node(busy_tree, method, max_epochs=rounds))
    disturbed = at_home(busy_tree, one_node(busy_tree, method, max_epochs=rounds), kills=kills)
    for name, found in disturbed.items():
        assert differences(found, undisturbed[name]) == [], name


def test_messages_are_deleted_after_the_checkpoint(
    tree: Topology, at_home: Make, one_node: Make, whole_method: Make, tmp_path: Path
) -> None:
    at_home(tree, one_node(tree, lambda: [*whole_method(), LastCheckpoint()]))
    left = [path for path in (tmp_path / "organisations-1").glob("*/mail/*/*/*") if path.is_file()]
    assert left == []


def test_nobody_changes_the_topology_alone(
    star: Make, at_home: Make, one_node: Make, fit: Make, whole_method: Make, tmp_path: Path
) -> None:
    def method() -> list[Any]:
        return [*whole_method(), LastCheckpoint()]

    at_home(star("ab"), one_node(star("ab"), method))
    last = tmp_path / "organisations-1" / "a" / "checkpoints" / "last.ckpt"
    topology = star("abc")
    organisation = Organisation(node="a", mailboxes=mailboxes(tmp_path, topology, "a"))
    with pytest.raises(ValueError, match="joined: c.*to which the other organisations have not consented"):
        fit(topology, method(), organisation=organisation, resume=last, max_epochs=3)
