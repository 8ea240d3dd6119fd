"""Invalid uploads are rejected and the others are merged; robust means limit the effect of poisoned uploads."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tested_family import FAMILY, own_model_only

from worldlm.callbacks import Averaging, NodeMetrics, Record, RobustAveraging, Summary, TokenRows
from worldlm.federation.parameters import PARTS, clone
from worldlm.rounds.executor import TooFewParticipants
from worldlm.topology import TopologyError, parse_topology
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]


class Spoil(FederationCallback):
    """Makes the uploads of some nodes invalid in some rounds."""

    def __init__(self, change: Callable[[Any], Any], names: str, rounds: tuple[int, ...] = (0, 1)) -> None:
        self.change, self.names, self.rounds = change, names, rounds

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        return self.change(upload) if upload.node in self.names and context.round in self.rounds else upload


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    def spoil(upload: Any) -> Any:
        parts = {part: {name: change(tensor) for name, tensor in own.items()} for part, own in upload.parts.items()}
        return replace(upload, parts=parts)

    return spoil


def fedavg() -> Averaging:
    return Averaging(PARTS)


BAD = {
    "nan": each(lambda tensor: tensor * torch.nan),
    "huge": each(lambda tensor: tensor + 1e9),
    "shape": each(lambda tensor: tensor.reshape(1, *tensor.shape)),
    "stale": lambda upload: replace(upload, round=upload.round - 1),
    "missing": lambda upload: replace(upload, parts={**upload.parts, "keys": {}}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_upload_does_not_change_the_average_of_the_others(
    kind: str, star: Make, fit: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer = fit(star("abc"), [fedavg(), Spoil(BAD[kind], "b", (0,))], max_epochs=1)
    uploads = {name: trainer.world.states[name].parameters for name in "ac"}
    expected = fit(star("ac"), [fedavg()], max_epochs=1).world.states
    for name, tensor in trainer.world.states["world"].parameters.items():
        assert torch.equal(tensor, expected["world"].parameters[name])
        assert torch.equal(uploads["a"][name], expected["a"].parameters[name])
    assert trainer.world.states["world"].refused == {"b": 1}
    assert any(record.getMessage().startswith("round 1: world rejected the upload of b: ") for record in caplog.records)


def test_a_rejected_node_takes_part_again_and_rejections_are_reported(
    star: Make, fit: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = Spoil(BAD["nan"], "b", (0,))
    trainer = fit(star("ab"), [fedavg(), spoilt, NodeMetrics(), record := Record(), Summary()], max_epochs=2)
    assert trainer.world.states["world"].refused == {"b": 1}
    assert [entry["nodes"]["b"]["refused"] for entry in record.rounds] == [1, 1]
    assert "refused" not in record.rounds[1]["nodes"]["a"]
    assert "refused: uploads of the node that were rejected before merging" in capsys.readouterr().out
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.world.states["world"].parameters.values())


def test_an_update_above_max_update_norm_is_rejected(star: Make, fit: Make) -> None:
    trainer = fit(star("ab", "max_update_norm: 1.0e-3"), [fedavg()], max_epochs=1)
    assert trainer.world.states["world"].refused == {"a": 1, "b": 1}
    initial = trainer.world.states["a"].download
    assert initial is None  # the exchange is complete, although the upload was rejected


def test_a_federation_with_data_rejects_its_own_diverged_fit(fit: Make) -> None:
    text = "name: t\nsettings: {num_local_steps: 1, batch_size: 2}\n"
    tree = parse_topology(text + "root: {name: w, corpus: w, children: [{name: a, corpus: a}]}\n", "t.yaml")

    class Diverge(FederationCallback):
        def on_local_fit_end(self, context: Any) -> None:
            if context.node.name == "w":
                next(iter(context.state.parameters.values())).fill_(torch.nan)

    trainer = fit(tree, [fedavg(), Diverge()], max_epochs=2)
    assert trainer.world.states["w"].refused == {"w": 2}
    assert all(bool(tensor.isfinite().all()) for tensor in trainer.world.states["w"].parameters.values())


def test_the_run_ends_below_min_participants(star: Make, fit: Make) -> None:
    fit(star("abc", "min_participants: 2"), [fedavg(), Spoil(BAD["nan"], "b")])
    with pytest.raises(TooFewParticipants, match=r"round 2: 1 participants of world are left \(a\), but its min_part"):
        fit(star("abc", "min_participants: 2"), [fedavg(), Spoil(BAD["nan"], "b"), Spoil(BAD["nan"], "c", (1,))])


def test_min_participants_cannot_exceed_the_number_of_participants() -> None:
    text = "name: t\nsettings: {num_local_steps: 1}\nroot:\n  name: w\n  settings: {min_participants: 3}\n"
    text += "  children: [{name: a, corpus: a}, {name: b, corpus: b}, "
    text += "{name: l, corpus: a, settings: {num_local_steps: 0}}]\n"
    with pytest.raises(TopologyError, match=r"t.yaml:4: min_participants is 3 at node 'w', which has 2 participants"):
        parse_topology(text, "t.yaml")


@pytest.mark.parametrize("bad", ["b", "bd"])
@pytest.mark.parametrize("rule", [{"rule": "median"}, {"rule": "trimmed_mean", "trim": 0.4}, {"rule": "norm_bound"}])
def test_robust_rules_with_one_or_two_poisoned_uploads_of_five(
    bad: str, rule: dict[str, Any], star: Make, fit: Make
) -> None:
    """The root's weights stay near the honest uploads, although the poisoned ones are finite and have valid shapes."""
    poison = Spoil(each(lambda tensor: tensor + 100.0), bad)

    class Honest(FederationCallback):
        def __init__(self) -> None:
            self.sent: dict[str, dict[str, torch.Tensor]] = {}

        def on_upload(self, context: Any, upload: Any) -> Any:
            tensors = {name: tensor for own in upload.parts.values() for name, tensor in own.items()}
            self.sent[upload.node] = clone(tensors)
            return upload

    honest = Honest()
    robust = fit(star("abcde"), [RobustAveraging(**rule, parts=PARTS), honest, poison], max_epochs=1)
    sent = [upload for name, upload in honest.sent.items() if name not in bad]
    for name, tensor in robust.world.states["world"].parameters.items():
        low, high = torch.stack([upload[name] for upload in sent]).aminmax(dim=0)
        assert bool((tensor >= low - 0.05).all())
        assert bool((tensor <= high + 0.05).all())
        if rule["rule"] != "norm_bound":
            assert bool(((tensor >= low - 1e-6) & (tensor <= high + 1e-6)).all())  # start - (start - mean) rounds
    plain = fit(star("abcde"), [fedavg(), poison], max_epochs=1).world.states["world"].parameters
    assert all(float(tensor.mean()) > 15 for tensor in plain.values())


def test_a_norm_bound_that_no_update_reaches_equals_averaging(star: Make, fit: Make) -> None:
    bounded = fit(star("abc"), [RobustAveraging("norm_bound", max_norm=1e6, parts=PARTS)]).world.states["world"]
    plain = fit(star("abc"), [fedavg()]).world.states["world"]
    for name, tensor in plain.parameters.items():
        assert torch.allclose(tensor, bounded.parameters[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "mode"}, "rule must be one of median, trimmed_mean, norm_bound, got 'mode'"),
        ({"trim": 0.1}, "trim has no effect with the rule median"),
        ({"max_norm": 1.0}, "max_norm has no effect with the rule median"),
        ({"rule": "trimmed_mean", "trim": 0.5}, r"trim must be in \[0, 0.5\), got 0.5"),
        ({"rule": "norm_bound", "max_norm": 0.0}, "max_norm above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_rejected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustAveraging(**arguments)


@own_model_only("its embedding is a value layer")
def test_robust_averaging_rejects_token_rows(star: Make, fit: Make) -> None:
    with pytest.raises(ValueError, match="RobustAveraging does not support TokenRows"):
        fit(star("ab"), [RobustAveraging(parts=["values"]), TokenRows()])


def test_robust_averaging_of_other_parts_suits_token_rows(star: Make, fit: Make) -> None:
    callbacks = [RobustAveraging(parts=["keys"]), Averaging(["backbone", "values"]), TokenRows()]
    trainer = fit(star("ab"), callbacks, max_epochs=1)
    trainer.method.check(trainer.topology)  # as a second fit does


def test_robust_averaging_rejects_rows_of_its_part(star: Make, fit: Make) -> None:
    rows = TokenRows("2.self_attn.q_proj.weight" if FAMILY else "blocks.1.norm_1.weight")  # belongs to the keys
    with pytest.raises(ValueError, match="RobustAveraging does not support TokenRows"):
        fit(star("ab"), [RobustAveraging(parts=["keys"]), rows])
