"""A run that is killed at any time, any number of times, and resumed ends like a run that was never stopped."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from breaking import MOMENTS, break_off, carry_out, count_calls, fail_to_write, kill

from worldlm.checkpoint.read import read_checkpoint
from worldlm.federation.noise_key import NoiseKey
from worldlm.storage.noise_key_file import write_key

KILLED = -signal.SIGKILL
FIT = ("fit", "--recipe", "tiny.yaml", "--ckpt_path", "last", "--trainer.noise_key", "noise.key")


def begin(log: Path, prepare: Callable[[], object] = dict, arguments: tuple[str, ...] = FIT) -> BaseProcess:
    """Start a command in a process that is forked from a server without threads, which has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["breaking", "worldlm.cli.fit"])
    process = context.Process(target=carry_out, args=(arguments, log, prepare))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for a process; return its exit status, negative if a signal ended it."""
    process.join(240)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode


@pytest.fixture
def undisturbed(shore: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe that uses many features. Its subfolder `calm` has the results of an undisturbed run."""
    recipe = yaml.safe_load(shore.read_text())
    recipe["data"]["cache_dir"] = "cache"
    recipe["data"]["tokenizer"] = {
        "class_path": "worldlm.data.TrainedBPE",
        "init_args": {"vocab_size": 257},
    }
    recipe["trainer"] |= {"max_epochs": 2, "paging": {"cache_gb": 0.0}}
    recipe["trainer"]["callbacks"][0]["init_args"] |= {"optimizer": "SGD", "arguments": {"lr": 0.7, "momentum": 0.9}}
    recipe["trainer"]["callbacks"] += [
        {"class_path": "worldlm.callbacks.Compression"},
        {"class_path": "worldlm.callbacks.LastCheckpoint", "init_args": {"every_n_minutes": 1e-6}},
    ]
    shore.write_text(yaml.safe_dump(recipe))
    topology = yaml.safe_load(Path("shore.yaml").read_text())
    topology["settings"] |= {"num_local_steps": 2, "num_subrounds": 1}
    topology["root"]["children"][0]["settings"] |= {"num_subrounds": 2}
    topology["root"]["children"][1]["settings"] = {"dropout": 0.3}
    Path("shore.yaml").write_text(yaml.safe_dump(topology))
    calm = shore.parent / "calm"
    calm.mkdir()
    write_key(NoiseKey(), shore.parent / "noise.key")
    for name in ("tiny.yaml", "shore.yaml", "hills.txt", "hills_too.txt", "sea.txt", "sea_too.txt", "noise.key"):
        (calm / name).symlink_to(shore.parent / name)
    monkeypatch.chdir(calm)
    assert finish(begin(calm / "log.txt", partial(count_calls, calm / "calls.json"))) == 0, (
        calm / "log.txt"
    ).read_text()
    monkeypatch.chdir(shore.parent)
    return shore.parent


def results_of(folder: Path) -> dict[str, Any]:
    """Return the checkpoint and the record of a finished run, without its duration and its last start."""
    last = max(folder.glob("runs/tiny/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    checkpoint = read_checkpoint(last)
    checkpoint = {name: value for name, value in checkpoint.items() if "seconds" not in name}
    record = json.loads((last.parents[1] / "results.json").read_text())
    del record["seconds"], record["last_start"]
    assert record["finished"]
    return {"checkpoint": checkpoint, "record": record}


def leftovers(folder: Path) -> list[str]:
    """Return the partial files in the cache and in the last run's folder."""
    last = max(folder.glob("runs/tiny/version_*"), key=lambda path: int(path.name[8:]))
    paths = [path for parent in (last, folder / "cache") for path in parent.rglob("*")]
    return [str(path) for path in paths if ".partial" in path.name or path.suffix == ".new"]


KILLS = ("tokenising", "fitting", "paging", "writing a checkpoint", "aggregating")
FAILURES = ("writing a checkpoint", "paging", "recording")


@pytest.mark.parametrize(
    ("kills", "failures"),
    [(KILLS[3:], FAILURES[1:2]), pytest.param(KILLS, FAILURES, marks=pytest.mark.slow)],
    ids=["few", "all"],
)
def test_interrupted_at_random_calls(
    kills: tuple[str, ...], failures: tuple[str, ...], undisturbed: Path, differences: Callable[..., list[str]]
) -> None:
    """Each start is killed, or its disk is full or read-only, at a random call; the next start resumes."""
    log = undisturbed / "log.txt"
    calls = json.loads((undisturbed / "calm" / "calls.json").read_text())
    assert calls.keys() == MOMENTS.keys()
    history = f"seed {(seed := time.time_ns())}"
    rng = random.Random(seed)

    def interrupted(moment: str, how: Callable[[], Any]) -> int:
        nonlocal history
        number, where = rng.randint(1, max(1, calls[moment] // 8)), rng.choice(["before", "after", "within"])
        history += f"; {moment}, call {number}, {where}"
        log.write_text("")
        return finish(begin(log, partial(break_off, moment, number, where, how)))

    for moment in kills:
        assert interrupted(moment, kill) == KILLED, history + log.read_text()
    for moment in failures:
        reason = rng.choice([errno.ENOSPC, errno.EROFS])
        assert interrupted(moment, partial(fail_to_write, reason)) == 2, history + log.read_text()
        line = log.read_text().splitlines()[-1]
        assert line.startswith("worldlm: "), history
        assert line.endswith("; once that is fixed, resume with --ckpt_path last"), history + line
        assert os.strerror(reason) in line, history + line
        assert "Traceback" not in log.read_text(), history
    assert finish(begin(log)) == 0, history + log.read_text()
    assert differences(results_of(undisturbed), results_of(undisturbed / "calm")) == [], history
    assert leftovers(undisturbed) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_fifty_times(undisturbed: Path, differences: Callable[..., list[str]]) -> None:
    """Kill runs at random times, and at random calls of every moment, until there were fifty kills."""
    seed, log = time.time_ns(), undisturbed / "log.txt"
    rng, kills = random.Random(seed), Counter[str]()
    calls = json.loads((undisturbed / "calm" / "calls.json").read_text())
    started = time.monotonic()
    assert finish(begin(undisturbed / "warm.txt", arguments=(*FIT, "--runs", "timed"))) == 0
    seconds = time.monotonic() - started
    runs = 0
    while kills.total() < 50:
        for folder in ("cache", "runs"):
            shutil.rmtree(undisturbed / folder, ignore_errors=True)
        status, moment, in_this_run = KILLED, "", 0
        while status == KILLED:
            if in_this_run == 8 or rng.random() < 0.1:
                status = finish(begin(log))  # runs to its end
            elif rng.random() < 0.5:
                process = begin(log)
                time.sleep(rng.uniform(0, seconds))
                process.kill()
                status, moment = finish(process), "at a random time"
            else:
                moment = rng.choice([*MOMENTS])
                where = rng.choice(["before", "after", "within"])
                number = rng.randint(1, max(1, calls[moment] // 3))
                status = finish(begin(log, partial(break_off, moment, number, where)))
            in_this_run += 1
            kills[moment] += int(status == KILLED)
        assert status == 0, f"seed {seed}: {log.read_text()}"
        assert differences(results_of(undisturbed), results_of(undisturbed / "calm")) == [], f"seed {seed}"
        assert leftovers(undisturbed) == []
        runs += 1
    print(f"{kills.total()} kills in {runs} runs: {dict(kills)}")
