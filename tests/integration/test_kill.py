"""A run that is killed anywhere, any number of times, and taken up again ends as one that nobody disturbed."""

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
from breaking import MOMENTS, break_off, carry_out, count_calls, kill, refuse_to_write

from worldlm.checkpoint.read import read_checkpoint

KILLED = -signal.SIGKILL
FIT = ("fit", "--recipe", "tiny.yaml", "--ckpt_path", "last")


def begin(log: Path, prepare: Callable[[], object] = dict, arguments: tuple[str, ...] = FIT) -> BaseProcess:
    """Start a command in a process forked from one that has imported everything, and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["breaking", "worldlm.cli.fit"])
    process = context.Process(target=carry_out, args=(arguments, log, prepare))
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for a process; return its exit status, negative if a signal ended it."""
    process.join(240)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


@pytest.fixture
def undisturbed(shore: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recipe with everything in it, in which `calm` holds what an undisturbed run came to."""
    recipe = yaml.safe_load(shore.read_text())
    recipe["data"]["cache_dir"] = "cache"
    recipe["data"]["tokenizer"] = {
        "class_path": "worldlm.data.TrainedBPE",
        "init_args": {"vocab_size": 257},
    }
    recipe["trainer"] |= {"max_epochs": 3, "paging": {"cache_gb": 0.0}}
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
    for name in ("tiny.yaml", "shore.yaml", "hills.txt", "hills_too.txt", "sea.txt", "sea_too.txt"):
        (calm / name).symlink_to(shore.parent / name)
    monkeypatch.chdir(calm)
    assert finish(begin(calm / "log.txt", partial(count_calls, calm / "calls.json"))) == 0, (
        calm / "log.txt"
    ).read_text()
    monkeypatch.chdir(shore.parent)
    return shore.parent


def came_to(folder: Path) -> dict[str, Any]:
    """All that a finished run holds, but for how long it took and how it was started the last time."""
    last = max(folder.glob("runs/tiny/version_*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    checkpoint = read_checkpoint(last)
    checkpoint = {name: value for name, value in checkpoint.items() if "seconds" not in name}
    record = json.loads((last.parents[1] / "results.json").read_text())
    del record["seconds"], record["last_start"]
    assert record["finished"]
    return {"checkpoint": checkpoint, "record": record}


def leftovers(folder: Path) -> list[str]:
    """What lies about in the cache and in the last run's folder that a finished run has no use for."""
    last = max(folder.glob("runs/tiny/version_*"), key=lambda path: int(path.name[8:]))
    found = [path for place in (last, folder / "cache") for path in place.rglob("*")]
    return [str(path) for path in found if ".partial" in path.name or path.suffix == ".new"]


def test_broken_off_at_every_kind_of_moment(undisturbed: Path, differences: Callable[..., list[str]]) -> None:
    """Killed, or told that the disk is full or read-only, at a call chosen by chance: each time where it was before."""
    log = undisturbed / "log.txt"
    calls = json.loads((undisturbed / "calm" / "calls.json").read_text())
    assert calls.keys() == MOMENTS.keys()
    told = f"seed {(seed := time.time_ns())}"
    chance = random.Random(seed)

    def breaks_off(moment: str, how: Callable[[], Any]) -> int:
        nonlocal told
        number, where = chance.randint(1, max(1, calls[moment] // 8)), chance.choice(["before", "after", "within"])
        told += f"; {moment}, call {number}, {where}"
        log.write_text("")
        return finish(begin(log, partial(break_off, moment, number, where, how)))

    for moment in ("tokenising", "fitting", "paging", "writing a checkpoint", "aggregating"):
        assert breaks_off(moment, kill) == KILLED, told + log.read_text()
    for moment in ("writing a checkpoint", "paging", "recording"):
        reason = chance.choice([errno.ENOSPC, errno.EROFS])
        assert breaks_off(moment, partial(refuse_to_write, reason)) == 2, told + log.read_text()
        said = log.read_text().splitlines()[-1]
        assert said.startswith("worldlm: "), told
        assert said.endswith("; once that is put right, go on with --ckpt_path last"), told + said
        assert os.strerror(reason) in said, told + said
        assert "Traceback" not in log.read_text(), told
    assert finish(begin(log)) == 0, told + log.read_text()
    assert differences(came_to(undisturbed), came_to(undisturbed / "calm")) == [], told
    assert leftovers(undisturbed) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_fifty_times(undisturbed: Path, differences: Callable[..., list[str]]) -> None:
    """Kills at any time of the clock, and at any call of any moment, in run after run, until there were fifty."""
    seed, log = time.time_ns(), undisturbed / "log.txt"
    chance, hit = random.Random(seed), Counter[str]()
    calls = json.loads((undisturbed / "calm" / "calls.json").read_text())
    started = time.monotonic()
    assert finish(begin(undisturbed / "warm.txt", arguments=(*FIT, "--runs", "timed"))) == 0
    seconds = time.monotonic() - started
    runs = 0
    while hit.total() < 50:
        for folder in ("cache", "runs"):
            shutil.rmtree(undisturbed / folder, ignore_errors=True)
        status, moment, in_this_run = KILLED, "", 0
        while status == KILLED:
            if in_this_run == 8 or chance.random() < 0.1:
                status = finish(begin(log))  # it is let go on to its end
            elif chance.random() < 0.5:
                process = begin(log)
                time.sleep(chance.uniform(0, seconds))
                process.kill()
                status, moment = finish(process), "at a time of the clock"
            else:
                moment = chance.choice([*MOMENTS])
                where = chance.choice(["before", "after", "within"])
                number = chance.randint(1, max(1, calls[moment] // 3))
                status = finish(begin(log, partial(break_off, moment, number, where)))
            in_this_run += 1
            hit[moment] += int(status == KILLED)
        assert status == 0, f"seed {seed}: {log.read_text()}"
        assert differences(came_to(undisturbed), came_to(undisturbed / "calm")) == [], f"seed {seed}"
        assert leftovers(undisturbed) == []
        runs += 1
    print(f"{hit.total()} kills in {runs} runs: {dict(hit)}")
