"""A pipe or a device in the place of a file is refused with one line, and nothing waits for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from worldlm.checkpoint.read import open_world, read_checkpoint
from worldlm.commands.compare.execute import start_process
from worldlm.commands.compare.plan import PlannedRun, changes
from worldlm.commands.list_runs import read_run
from worldlm.commands.report.load_runs import load_runs
from worldlm.data.finding import find_files
from worldlm.data.packed import PackedCorpus, open_folder
from worldlm.data.packing import Packing
from worldlm.data.readers import read_records
from worldlm.data.tokenizers import FileTokenizer, load_tokenizer
from worldlm.data.trained_tokenizer import _open
from worldlm.files.regular import check_regular
from worldlm.models.architecture import Architecture
from worldlm.models.hugging_face import check_config
from worldlm.runs.folder import find_checkpoint
from worldlm.runs.lock import at_work
from worldlm.runs.results import read_results
from worldlm.topology import load_topology
from worldlm.topology.errors import UserError
from worldlm.topology.reader import read_plain, read_text

NOT_REGULAR = "is not a regular file but a pipe or a device"


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """Raise from a call that waits."""

    def ring(*_: object) -> NoReturn:
        raise AssertionError("waits for a pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


READERS: dict[str, Callable[[Path], object]] = {
    "results.json": read_results,
    "last.ckpt": read_checkpoint,
    "world.ckpt": open_world,
    "another.ckpt": lambda path: find_checkpoint(str(path), path.parent),
    "config.yaml": read_plain,
    "recipe.yaml": read_text,
    "topology.yaml": load_topology,
    "tokenizer.json": FileTokenizer,
    "a/tokenizer.json": lambda path: load_tokenizer(path.parent),
    "b.json": load_tokenizer,
    "config.json": lambda path: check_config(path.parent, architecture()),
    "a.txt": lambda path: list(read_records(path)),
    "a.jsonl.gz": lambda path: list(read_records(path)),
    "a.parquet": lambda path: list(read_records(path)),
    "c.txt": lambda path: find_files(str(path.with_name("c.*"))),
}


def architecture() -> Architecture:
    return Architecture(num_blocks=1, d_model=8, num_heads=1, max_seq_len=8, vocab_size=8)


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_not_read(tmp_path: Path, name: str) -> None:
    path = pipe(tmp_path / name)
    with pytest.raises(ValueError, match=f"{path}.*{NOT_REGULAR}"):
        READERS[name](path)


@pytest.mark.parametrize("name", [name for name in READERS if name not in ("c.txt",)])
def test_a_link_to_a_device_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=NOT_REGULAR):
        READERS[name](path)


def packed(target: Path) -> Packing:
    packing = Packing(target, "uint16")
    packing.append("train", np.array([1], "uint16"), 1, np.array([len([1])]), np.zeros(1, np.uint64))
    packing.append("validation", np.array([1], "uint16"), 1, np.array([len([1])]), np.zeros(1, np.uint64))
    return packing


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "counts.json"])
def test_packed_text_is_damaged(tmp_path: Path, name: str) -> None:
    packing = packed(tmp_path / "a")
    packing.save()
    packing.close()
    pipe(packing.folder / name)
    if name == "counts.json":  # it is written anew
        again = packed(tmp_path / "a")
        assert again.counts["train"].num_tokens == 1
        again.close()
    else:
        with pytest.raises(UserError, match=f"{name}: {NOT_REGULAR}"):
            Packing(tmp_path / "a", "uint16")
    packed(tmp_path / "b").finish()
    (tmp_path / "b").rename(tmp_path / "a")
    pipe(tmp_path / "a" / name)
    with pytest.raises(ValueError, match=f"is not a packed corpus: .*{NOT_REGULAR}"):
        open_folder(tmp_path / "a")
    with pytest.raises(ValueError, match=f"is not a packed corpus: .*{NOT_REGULAR}"):
        PackedCorpus.open(tmp_path / "a" / f"{'train' if name == 'counts.json' else Path(name).stem}.bin")


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "hparams.yaml", ".lock", "checkpoints/last.ckpt", "pages/0.safetensors"]
)
def test_a_run_writes_over_no_pipe(tmp_path: Path, name: str) -> None:
    pipe(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: {NOT_REGULAR}"), at_work(tmp_path):
        raise AssertionError("began")


def test_a_run_is_listed_as_unreadable(tmp_path: Path) -> None:
    pipe(tmp_path / "version_0" / "results.json")
    run = read_run(tmp_path / "version_0", tmp_path)
    assert (run.state, run.problem) == ("unreadable", f"{tmp_path}/version_0/results.json: {NOT_REGULAR}")


def test_a_report_names_the_pipe(tmp_path: Path) -> None:
    pipe(tmp_path / "version_0" / "results.json")
    with pytest.raises(UserError, match=NOT_REGULAR):
        load_runs([tmp_path])


@pytest.mark.parametrize("name", ["settings.json", "stdout.txt", "stderr.txt"])
def test_a_comparison_names_the_pipe(tmp_path: Path, name: str) -> None:
    settings: Any = {"recipes": {}, "topology": {}, "overrides": []}
    run = PlannedRun(method="a", seed=1, folder=tmp_path, command=("--version",), settings=settings)
    pipe(tmp_path / name)
    if name == "settings.json":
        assert changes(run) == "settings.json"
    else:
        with pytest.raises(UserError, match=f"{name}: {NOT_REGULAR}"):
            start_process(run, 1)


def test_a_trained_tokenizer_is_trained_again(tmp_path: Path) -> None:
    pipe(tmp_path / "a-0123.json")
    assert _open(tmp_path / "a") is None


def test_other_paths_pass(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link", "missing", "."):
        assert check_regular(tmp_path / name) == tmp_path / name
    with suppress(OSError), pytest.raises(UserError, match=NOT_REGULAR):
        check_regular(Path(os.devnull))
