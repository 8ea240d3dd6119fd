"""A run that is killed anywhere, any number of times, and taken up again ends as one that nobody disturbed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from worldlm.cli import main
from worldlm.federation.saved import read_checkpoint

MOMENTS = {
    "tokenising": "worldlm.data.packing:Packing.append",
    "packed": "worldlm.data.packing:Packing.finish",
    "fitting": "worldlm.models:LanguageModule.training_step",
    "aggregating": "worldlm.loop.steps:Steps._aggregate",
    "talking": "worldlm.loop.steps:Steps._upload",
    "paging": "worldlm.federation.pages:save_file",
    "writing a checkpoint": "worldlm.loop.checkpoint_io:_Forgetful.write",
    "renaming a file": "pathlib:Path.replace",
    "recording": "worldlm.callbacks.record:Record._write",
}
"""Where a run may be killed: what is called at those moments."""
KILLED = -signal.SIGKILL
FIT = ("fit", "--recipe", "tiny.yaml", "--ckpt_path", "last")


def _find(moment: str) -> tuple[Any, str]:
    """Return what owns the function that is called at a moment, and the function's name."""
    module, _, path = MOMENTS[moment].partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    return owner, name


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse_to_write(number: int) -> None:
    raise OSError(number, os.strerror(number))


def _break(moment: str, number: int, where: str, how: Callable[[], None] = _kill) -> None:
    """Break this process off at its so-manieth call of a moment's function: before, after or within it."""
    owner, name = _find(moment)
    original, calls = getattr(owner, name), 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < number:
            return original(*args, **kwargs)
        if where == "after":
            original(*args, **kwargs)
        if where == "within" and moment == "paging":
            original(*args, **kwargs)
            os.truncate(args[1], Path(args[1]).stat().st_size // 2)
        if where == "within" and moment == "writing a checkpoint":
            original(args[0], memoryview(args[1]).cast("B")[: memoryview(args[1]).nbytes // 2])
            args[0].flush()
        return how()

    setattr(owner, name, wrapped)


def _count_calls(path: Path) -> None:
    """Let this process write down how often it comes to every moment."""
    counts: Counter[str] = Counter()

    def wrap(moment: str) -> None:
        owner, name = _find(moment)
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts[moment] += 1
            found = original(*args, **kwargs)
            if moment == "recording":
                path.write_text(json.dumps(counts))
            return found

        setattr(owner, name, wrapped)

    for moment in MOMENTS:
        wrap(moment)


def _carry_out(arguments: tuple[str, ...], log: Path, prepare: Callable[[], None]) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(one, "w", buffering=1, closefd=False) for one in (1, 2))
    prepare()
    status = main(arguments)
    sys.stdout.flush()
    os._exit(status)


def begin(log: Path, prepare: Callable[[], None] = lambda: None, arguments: tuple[str, ...] = FIT) -> BaseProcess:
    """Start a command in a process forked from this one, which has imported everything already."""
    process = multiprocessing.get_context("fork").Process(target=_carry_out, args=(arguments, log, prepare))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking, which is safe with one thread
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
    assert finish(begin(calm / "log.txt", partial(_count_calls, calm / "calls.json"))) == 0, (
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
    """What lies about in a run's folder and in the cache that a finished run has no use for."""
    return [str(path) for path in folder.rglob("*") if ".partial" in path.name or path.suffix == ".new"]


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
        return finish(begin(log, partial(_break, moment, number, where, how)))

    for moment in ("tokenising", "fitting", "paging", "writing a checkpoint", "aggregating"):
        assert breaks_off(moment, _kill) == KILLED, told + log.read_text()
    for moment in ("writing a checkpoint", "paging", "recording"):
        reason = chance.choice([errno.ENOSPC, errno.EROFS])
        assert breaks_off(moment, partial(_refuse_to_write, reason)) == 2, told + log.read_text()
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
                status = finish(begin(log, partial(_break, moment, number, where)))
            in_this_run += 1
            hit[moment] += int(status == KILLED)
        assert status == 0, f"seed {seed}: {log.read_text()}"
        assert differences(came_to(undisturbed), came_to(undisturbed / "calm")) == [], f"seed {seed}"
        assert leftovers(undisturbed) == []
        runs += 1
    print(f"{hit.total()} kills in {runs} runs: {dict(hit)}")
