"""The callback in docs/how-to/write_a_callback.md works as described."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from worldlm.topology import Topology


def test_a_federation_takes_a_vote(
    star: Callable[..., Topology], fit: Callable[..., Any], make_module: Callable[..., Any]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "write_a_callback.md").read_text()
    shown = re.search(r"```python\n(# vote\.py\n.*?)```", page, re.DOTALL)
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
