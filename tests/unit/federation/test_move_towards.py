"""A soft download, compared with numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from worldlm.federation.averaging import move_towards_


def test_by_hand() -> None:
    target = {"a": torch.tensor([8.0, -4.0]), "kept": torch.tensor([1.0])}
    source = {"a": torch.tensor([0.0, 4.0])}
    memory = target["a"]
    move_towards_(target, source, 0.25)
    assert memory.tolist() == [6.0, -2.0]
    assert (source["a"].tolist(), target["kept"].tolist()) == ([0.0, 4.0], [1.0])


def test_at_one_it_copies_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    target, source = ({"a": torch.randn(1000, generator=generator)} for _ in range(2))
    move_towards_(target, source, 1.0)
    assert torch.equal(target["a"], source["a"])


def test_unknown_names_are_rejected() -> None:
    with pytest.raises(KeyError, match="b"):
        move_towards_({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.5)
