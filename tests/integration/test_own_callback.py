"""The callback in docs/how-to/write_a_callback.md works as described, and callbacks of a module's own run."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from worldlm.callbacks import Averaging
from worldlm.federation.messages import Upload
from worldlm.rounds import Context
from worldlm.topology import Topology
from worldlm.trainer import FederationCallback


def test_a_federation_takes_a_vote(
    star: Callable[..., Topology], fit: Callable[..., Any], make_module: Callable[..., Any]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "write_a_callback.md").read_text()
    shown = re.search(r"```python\n( *# vote\.py\n.*?)```", page, re.DOTALL)
    assert shown is not None
    names: dict[str, Any] = {"__name__": "vote"}
    exec(textwrap.dedent(shown.group(1)), names)
    module = make_module()
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    trainer = fit(star("abc"), [names["MajorityVote"](step=0.5)], module=module, max_epochs=1)
    states = trainer.world.states
    for name, merged in states["world"].part("backbone", trainer.world.partition).items():
        votes = sum((states[leaf].parameters[name] - before[name]).sign() for leaf in "abc")
        assert torch.equal(merged, before[name] + 0.5 * votes.sign()), name
        assert votes.any(), name
    for name in states["world"].part("keys", trainer.world.partition):
        assert torch.equal(states["world"].parameters[name], before[name])
        assert not torch.equal(states["a"].parameters[name], states["b"].parameters[name])


class Counter(FederationCallback):
    """Counts the aggregations that it sees."""

    def __init__(self) -> None:
        self.count = 0

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        self.count += 1


def test_callbacks_that_the_module_brings_run_too(
    star: Callable[..., Topology], fit: Callable[..., Any], make_module: Callable[..., Any]
) -> None:
    module, replaced, brought = make_module(), Counter(), Counter()
    module.configure_callbacks = lambda: [brought, Averaging(["backbone"])]
    trainer = fit(star("ab"), [replaced], module=module, max_epochs=2)
    assert brought.count == 2
    assert replaced.count == 0  # Lightning replaces a callback of the same type
    assert trainer.method.parts == {"backbone"}


def test_callbacks_that_the_module_brings_are_checked(
    star: Callable[..., Topology], fit: Callable[..., Any], make_module: Callable[..., Any]
) -> None:
    class Twin(FederationCallback):
        parts = frozenset({"backbone"})

    module = make_module()
    module.configure_callbacks = lambda: [Twin()]
    with pytest.raises(ValueError, match="Averaging and Twin both merge backbone"):
        fit(star("ab"), [Averaging(["backbone"])], module=module)
