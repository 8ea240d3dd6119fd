"""Whether a run can go on from what a checkpoint holds."""

import pytest
import torch

from worldlm.federation.state import NodeState
from worldlm.loop.saved_world import check_weights

MODEL = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.mark.parametrize(
    ("saved", "reference", "told"),
    [
        ({"a": torch.ones(2, 3)}, {}, r"weights b of leaf are missing in the checkpoint, and float32 \[4\] in this"),
        ({**MODEL, "c": torch.ones(1)}, {}, r"weights c of leaf are float32 \[1\] in the checkpoint, and missing in"),
        ({**MODEL, "b": torch.ones(5)}, {}, r"b of leaf are float32 \[5\] in the checkpoint, and float32 \[4\]"),
        ({**MODEL, "b": torch.ones(4, dtype=torch.bfloat16)}, {}, r"b of leaf are bfloat16 \[4\] in the checkpoint"),
        (MODEL, {"b": torch.ones(1)}, r"weights b that all started from are float32 \[1\] in the checkpoint"),
        (MODEL, {"c": torch.ones(1)}, r"weights c that all started from are float32 \[1\] in the checkpoint, and miss"),
    ],
)
def test_weights_of_another_model_are_named(
    saved: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], told: str
) -> None:
    check_weights({"leaf": NodeState(parameters=MODEL)}, {"b": torch.ones(4)}, MODEL)
    with pytest.raises(ValueError, match=told):
        check_weights({"leaf": NodeState(parameters=saved)}, reference, MODEL)
