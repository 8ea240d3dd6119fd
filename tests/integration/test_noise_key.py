"""The noise key of a run: where it is, where it is not, and what happens without it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from worldlm.callbacks import (
    AttentionAggregation,
    Averaging,
    ExamplePrivacy,
    LastCheckpoint,
    ResidualExchange,
    UpdatePrivacy,
)
from worldlm.cli import main
from worldlm.federation import rounded_gaussian
from worldlm.federation.noise_key import NoiseKey, RandomStream
from worldlm.runs.folder import key_name
from worldlm.storage.noise_key_file import read_key, write_key
from worldlm.trainer import FederationCallback

Make = Callable[..., Any]
RUN = Path("runs/tiny/version_0")


def key_of(run: Path) -> Path:
    (path,) = run.glob("noise-*.key")
    return path


def fit(*more: str) -> int:
    return main(["fit", "--recipe", "tiny.yaml", *more])


def test_the_key_is_in_one_file_of_the_run_and_nowhere_else(shore: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    path = key_of(RUN)
    secret = read_key(path).reveal()
    assert path.stat().st_mode & 0o777 == 0o600
    assert main(["report", str(RUN)]) == 0
    assert main(["export", str(RUN), "--node", "hills", "--out", "model"]) == 0
    output = "".join(capfd.readouterr())
    assert f"wrote the noise key to {path}: keep it secret" in output
    assert secret not in output
    written = [file for file in shore.parent.rglob("*") if file.is_file() and file != path.absolute()]
    assert {"last.ckpt", "results.json", "config.yaml", "report.html", "README.md"} <= {file.name for file in written}
    for file in written:
        content = file.read_bytes()
        assert secret.encode() not in content, file
        assert bytes.fromhex(secret) not in content, file
        assert not set(file.parts) & {"noise.key"}
    assert json.loads((RUN / "results.json").read_text())["noise_keys"] == [
        {"round": 0, "fingerprint": read_key(path).fingerprint}
    ]


def test_a_lost_key_is_replaced_reported_and_recorded(shore: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs", "1") == 0
    lost = key_of(RUN)
    lost.unlink()
    capfd.readouterr()
    assert fit("--ckpt_path", "last") == 0
    found = key_of(RUN)
    assert f"the noise key {lost.name[6:-4]} of the checkpoint is lost" in capfd.readouterr().err
    assert json.loads((RUN / "results.json").read_text())["noise_keys"] == [
        {"round": 0, "fingerprint": lost.name[6:-4]},
        {"round": 1, "fingerprint": found.name[6:-4]},
    ]
    assert main(["fit", "--repeat", str(RUN)]) == 2
    assert "cannot be repeated: its noise key was lost or replaced" in capfd.readouterr().err


def test_a_key_that_others_can_read_stops_the_run(shore: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit("--trainer.max_epochs", "1") == 0
    path = key_of(RUN)
    path.chmod(0o644)
    capfd.readouterr()
    assert fit("--ckpt_path", "last") == 2
    output = capfd.readouterr().err
    assert f"other users can read the noise key {path}, whose mode is 0644" in output
    assert "Traceback" not in output
    path.chmod(0o600)
    assert fit("--ckpt_path", "last") == 0


def test_only_the_holder_of_the_key_can_repeat_a_run(shore: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fit() == 0
    path = key_of(RUN)
    safe = shutil.move(path, "safe.key")
    assert main(["fit", "--repeat", str(RUN)]) == 2
    assert f"has no {path.name}: without its noise key the noise cannot be the same" in capfd.readouterr().err
    assert main(["fit", "--repeat", str(RUN), "--trainer.noise_key", str(safe)]) == 0
    assert "done. matched" in capfd.readouterr().out
    write_key(NoiseKey(), Path("other.key"))
    assert main(["fit", "--repeat", str(RUN), "--trainer.noise_key", "other.key"]) == 1
    assert "and was not run: noise_keys was round 0, fingerprint" in capfd.readouterr().out


def test_a_run_without_privacy_has_no_key(shore: Path) -> None:
    topology = shore.parent / "shore.yaml"
    topology.write_text(topology.read_text().replace("{privacy: {clip_norm: 0.5, noise_multiplier: 1.0}}", "{}"))
    assert fit("--trainer.max_epochs", "1") == 0
    assert not list(RUN.glob("*.key"))
    assert "noise_keys" not in json.loads((RUN / "results.json").read_text())


# ---------------------------------------------------------------------- what depends on the key


class Sent(FederationCallback):
    """Records what nodes have, and what they send."""

    def __init__(self) -> None:
        self.own: dict[Any, dict[str, torch.Tensor]] = {}
        self.sent: dict[Any, dict[str, torch.Tensor]] = {}

    def on_sanitise(self, context: Any, upload: Any, download: Any) -> Any:
        at = (context.round, context.subround, context.node.name)
        self.own[at] = {name: tensor.clone() for name, tensor in context.state.parameters.items()}
        self.sent[at] = {name: tensor.clone() for part in upload.parts.values() for name, tensor in part.items()}
        return upload


def test_two_keys_change_the_noise_and_nothing_before_it(star: Make, run_fit: Make, tmp_path: Path) -> None:
    """In the first round, weights depend on the key at no node; uploads depend on it at private nodes only."""
    topology = star("abc", a="settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0}}")
    records = []
    for name in ("one.key", "two.key"):
        records.append(Sent())
        method = [Averaging(), AttentionAggregation(), UpdatePrivacy(), records[-1]]
        run_fit(topology, method, max_epochs=1, noise_key=tmp_path / name)
    first, second = records
    for at in first.own:
        assert all(torch.equal(first.own[at][name], second.own[at][name]) for name in first.own[at])
        same = [torch.equal(first.sent[at][name], second.sent[at][name]) for name in first.sent[at]]
        assert not any(same) if at[-1] == "a" else all(same), at


def test_without_noise_the_key_changes_nothing_at_all(
    star: Make, run_fit: Make, snapshot: Make, differences: Make, tmp_path: Path
) -> None:
    """Clipping alone: two keys, and a fit with the key of another run, give the same bits."""
    topology = star("ab", "privacy: {clip_norm: 0.5}")
    one, two = (
        snapshot(run_fit(topology, [Averaging(), UpdatePrivacy()], noise_key=tmp_path / name)) for name in ("1", "2")
    )
    del one["world"]["noise_key"], two["world"]["noise_key"]
    assert differences(one, two) == []


@pytest.mark.parametrize("kind", ["privacy", "example_privacy"])
def test_the_seed_does_not_decide_the_noise(kind: str, star: Make, run_fit: Make, tmp_path: Path) -> None:
    """One seed and two keys: every protected value differs."""
    topology = star("a", f"{kind}: {{clip_norm: 0.5, noise_multiplier: 1.0}}")
    records = []
    for name in ("one.key", "two.key"):
        records.append(Sent())
        run_fit(topology, [Averaging(), UpdatePrivacy(), ExamplePrivacy(), records[-1]], noise_key=tmp_path / name)
    one, two = (record.sent[max(record.sent)] for record in records)
    assert not any(torch.equal(one[name], two[name]) for name in one)


def test_a_changed_continuation_never_repeats_noise(star: Make, run_fit: Make, make_module: Make) -> None:
    """Two runs go on from one checkpoint with the same key, one of them with more steps: the noise is independent."""
    privacy = "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}"
    start = run_fit(star("a", privacy), [Averaging(), UpdatePrivacy(), LastCheckpoint()], max_epochs=1)
    last, noises = LastCheckpoint.path(start), []
    for own in ({}, {}, {"a": "settings: {num_local_steps: 3}"}):
        record = Sent()
        run_fit(
            star("a", privacy, **own),
            [Averaging(), UpdatePrivacy(), record],
            resume=last,
            max_epochs=2,
        )
        noises.append(torch.cat([tensor.flatten() for tensor in record.sent[1, 0, "a"].values()]))
    assert torch.equal(noises[0], noises[1])
    difference = (noises[0] - noises[2]).std()  # of noise 0.5: 0.71 if it is independent
    assert difference == pytest.approx(0.5 * 2**0.5, rel=0.1)


@pytest.fixture
def run_fit(request: pytest.FixtureRequest) -> Make:
    made: Make = request.getfixturevalue("fit")
    return made


@pytest.mark.slow
def test_a_new_version_keeps_a_copy_of_the_key(shore: Path) -> None:
    """A run that continues in another folder can be resumed without the first one's folder."""
    assert fit("--trainer.max_epochs", "1") == 0
    assert fit("--name", "other", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")) == 0
    copy = key_of(Path("runs/other/version_0"))
    assert copy.name == key_name(read_key(copy).fingerprint) == key_of(RUN).name
    assert copy.stat().st_mode & 0o777 == 0o600


@settings(max_examples=1, suppress_health_check=[*HealthCheck], phases=[Phase.generate], deadline=None)
@given(data=st.data())
def test_the_key_acts_through_noise_and_draws_alone(
    data: st.DataObject, worlds: Make, run_fit: Make, snapshot: Make, differences: Make, tmp_path: Path
) -> None:
    """In any world: with noise of 0 and fixed draws in place of secret ones, two keys give the same bits."""
    topology = data.draw(worlds(max_nodes=5, examples=True))
    states = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounded_gaussian, "_draw", lambda _, size: np.zeros(size, np.int64))
        patch.setattr(RandomStream, "bernoulli", lambda _, size, rate: np.arange(size) % 3 < 3 * rate)
        for name in ("one.key", "two.key"):
            method = [Averaging(), AttentionAggregation(), ResidualExchange(num_residuals=1)]
            trainer = run_fit(topology, [*method, UpdatePrivacy(), ExamplePrivacy()], noise_key=tmp_path / name)
            states.append(snapshot(trainer))
    fingerprints = [state["world"].pop("noise_key") for state in states]
    assert fingerprints[0] is None or fingerprints[0] != fingerprints[1]
    assert differences(*states) == []
