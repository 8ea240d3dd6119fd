"""The query of a federation's attention: its own keys, or the mean of its participants' keys."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation
from worldlm.federation.messages import Upload


def _upload(node: str, keys: list[float]) -> Upload:
    parts = {"keys": {"k": torch.tensor(keys)}, "values": {"v": torch.tensor(keys[:1])}}
    return Upload(node=node, round=0, parts=parts, num_tokens=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("query", "weight"), [("own", math.e**2 / (math.e**2 + 1)), ("mean", 0.5)])
def test_the_query_is_the_federations_own_keys_or_the_mean(query: Any, weight: float) -> None:
    parameters = {"k": torch.tensor([3.0, 0.0]), "v": torch.zeros(1)}  # similar to a, after an earlier round
    state = SimpleNamespace(parameters=parameters, inbox=[], attention={})
    world = SimpleNamespace(reference={"k": torch.zeros(2), "v": torch.zeros(1)})
    context: Any = SimpleNamespace(world=world, state=state, round=0, node=SimpleNamespace(name="q"))
    context.part = lambda part: {"k": parameters["k"]}
    context.log = lambda scalars: None
    callback = AttentionAggregation(temperature=0.5, query=query)
    callback.on_aggregate(context, [_upload("a", [2.0, 0.0]), _upload("b", [0.0, 2.0])])
    assert state.attention == pytest.approx({"a": weight, "b": 1 - weight})
    assert parameters["k"].tolist() == pytest.approx([2 * weight, 2 * (1 - weight)])
    assert parameters["v"].tolist() == pytest.approx([2 * weight])
