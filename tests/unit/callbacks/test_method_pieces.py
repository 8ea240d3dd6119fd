"""Callbacks of other methods reject bad arguments and bad combinations before training."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    ClusteredAveraging,
    Ditto,
    ExamplePrivacy,
    FedAMP,
    Proximal,
    TokenRows,
)
from worldlm.callbacks.averaging import WeighsRows
from worldlm.rounds import Method, World
from worldlm.topology import Node, Settings, Topology
from worldlm.trainer.method_checks import check_parts

RATE = "must be a number above 0 and at most 1, or two such numbers, first and last"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Averaging(download_rate=0.0), f"download_rate {RATE}, got 0.0"),
        (lambda: Averaging(download_rate=1.5), f"download_rate {RATE}, got 1.5"),
        (lambda: Averaging(leaf_download_rate=-0.5), f"leaf_download_rate {RATE}, got -0.5"),
        (lambda: Averaging(leaf_download_rate=(1.0, 0.0)), f"leaf_download_rate {RATE}, got \\(1.0, 0.0\\)"),
        (lambda: Averaging(download_rate=[1.0, 0.5, 0.1]), f"download_rate {RATE}, got \\[1.0, 0.5, 0.1\\]"),
        (lambda: Averaging(download_rate="half"), f"download_rate {RATE}, got 'half'"),
        (lambda: AttentionAggregation(download_rate=float("nan")), f"download_rate {RATE}, got nan"),
        (lambda: AttentionAggregation(leaf_download_rate=()), f"leaf_download_rate {RATE}, got \\(\\)"),
        (lambda: Proximal(mu=-0.1), "mu must be at least 0, got -0.1"),
        (lambda: Proximal(mu=float("nan")), "mu must be at least 0, got nan"),
        (lambda: FedAMP(self_weight=1.0), "self_weight must be at least 0 and below 1, got 1.0"),
        (lambda: FedAMP(self_weight=-0.1), "self_weight must be at least 0 and below 1, got -0.1"),
        (lambda: ClusteredAveraging(min_similarity=1.1), r"min_similarity must be in \[-1, 1\], got 1.1"),
        (lambda: ClusteredAveraging(after_round=0), "after_round must be at least 1, got 0"),
        (lambda: ClusteredAveraging(download_rate=0.0), f"download_rate {RATE}, got 0.0"),
        (lambda: Ditto(mu=-0.1), "mu must be at least 0, got -0.1"),
        (lambda: Ditto(shared_steps=1.0), "shared_steps must be above 0 and below 1, got 1.0"),
        (lambda: Ditto(leaf_download_rate=0.0), f"leaf_download_rate {RATE}, got 0.0"),
        (lambda: FedAMP(sigma=0.0), "sigma must be above 0 and finite, got 0.0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()


def _leaf(name: str) -> Node:
    return Node(name=name, corpus="a", settings=Settings(num_local_steps=1))


def _topology(root: Node | None = None) -> Topology:
    return Topology(name="mine", root=root or Node(name="world", children=(_leaf("a"),)))


class Module(torch.nn.Module):
    """Three parameters whose names have the same last component."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"wte": 7, "other": 3, "norm": 3}
        self.model = torch.nn.ModuleDict({name: torch.nn.Embedding(size, 2) for name, size in sizes.items()})

    def partition(self) -> dict[str, str]:
        return {"model.wte.weight": "backbone", "model.other.weight": "keys", "model.norm.weight": "values"}


def _setup(rows: TokenRows, *others: Any) -> None:
    module: Any = Module()
    method = Method([rows, *others])
    method.check(_topology())
    trainer: Any = SimpleNamespace(callbacks=list(method.callbacks))
    rows.setup(trainer, module, "fit")


def test_token_rows_finds_the_tensor_and_the_callback_that_averages_it() -> None:
    rows, averagings = TokenRows("wte.weight"), (Averaging(parts=["keys"]), Averaging(parts=["backbone"]))
    _setup(rows, *averagings)
    assert rows.part not in averagings[0].parts
    assert rows.part in averagings[1].parts
    _setup(TokenRows("model.wte.weight"), Averaging())


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("te.weight", r"no parameter is named 'te\.weight'; parameters: model\.wte\.weight, model\.other\.weight"),
        ("weight", r"3 parameters are named 'weight'; parameters:"),
    ],
)
def test_token_rows_needs_exactly_one_tensor_of_that_name(parameter: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _setup(TokenRows(parameter), Averaging())


def test_token_rows_needs_an_averaging_of_its_part() -> None:
    message = r"TokenRows needs an Averaging of the backbone, the part that contains model\.wte\.weight"
    with pytest.raises(ValueError, match=message):
        _setup(TokenRows("wte.weight"), Averaging(parts=["keys"]), AttentionAggregation())
    with pytest.raises(ValueError, match="an Averaging of the keys"):  # attention mixes only rows of the values
        _setup(TokenRows("other.weight"), Averaging(), AttentionAggregation())
    with pytest.raises(ValueError, match="an Averaging or an AttentionAggregation of the values"):
        _setup(TokenRows("norm.weight"), Averaging())
    _setup(TokenRows("norm.weight"), Averaging(), AttentionAggregation())
    with pytest.raises(ValueError, match="more than once"):
        _setup(TokenRows("wte.weight"), Averaging(), TokenRows("wte.weight"))


def test_token_rows_does_not_change_the_averaging() -> None:
    """The same Averaging in another method, without TokenRows, averages whole tensors again."""
    rows, averaging = TokenRows("wte.weight"), Averaging()
    before = dict(vars(averaging))
    _setup(rows, averaging)
    assert vars(averaging) == before
    world = World(_topology(), {"w": "backbone"}, {"w": torch.zeros(1)})
    assert Method([rows, averaging]).context(world, "world").find(WeighsRows) is rows  # type: ignore[type-abstract]
    assert Method([averaging]).context(world, "world").find(WeighsRows) is None  # type: ignore[type-abstract]


@pytest.mark.parametrize("pulling", [Proximal(0.1), Ditto()])
def test_example_privacy_must_not_overwrite_the_proximal_term(pulling: Proximal | Ditto) -> None:
    privacy, leaf = ExamplePrivacy(), Node(name="a", corpus="a", settings=Settings(num_local_steps=2))
    topology = _topology(Node(name="world", children=(leaf,)))
    with pytest.raises(ValueError, match=f"list {type(pulling).__name__} after it"):
        Method([pulling, privacy]).check(topology)
    Method([privacy, pulling]).check(topology)


@pytest.mark.parametrize("kind", [FedAMP, ClusteredAveraging])
def test_some_methods_need_a_star(kind: type[FedAMP | ClusteredAveraging]) -> None:
    north = Node(name="north", children=(_leaf("a"), _leaf("b")))
    tree = Node(name="world", children=(north, _leaf("c")))
    for root, levels in ((tree, 3), (_leaf("alone"), 1)):
        message = rf"^{kind.__name__} needs a star \(a root and its leaves\), but mine has {levels} levels$"
        with pytest.raises(ValueError, match=message):
            Method([kind()]).check(_topology(root))
    Method([kind()]).check(_topology())


def test_fedamp_merges_everything() -> None:
    with pytest.raises(ValueError, match="FedAMP and Averaging both merge backbone"):
        check_parts([FedAMP(), Averaging()])
