"""The number of threads of a process."""

import os
import sys
from pathlib import Path

import pytest
import torch

from worldlm.distributed import threads as threads_module
from worldlm.distributed.threads import choose_num_threads


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in threads_module._BY_USER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("cores", "quota", "processes", "threads"),
    [(8, sys.maxsize, 1, 8), (8, sys.maxsize, 3, 2), (8, 5, 1, 5), (8, 5, 2, 2), (2, sys.maxsize, 4, 1), (2, 1, 1, 1)],
)
def test_threads_share_the_cores(
    cores: int, quota: int, processes: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "_cores", lambda: cores)
    monkeypatch.setattr(threads_module, "_quota", lambda: quota)
    assert choose_num_threads(processes) == threads


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_choice_of_the_user_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "_cores", lambda: torch.get_num_threads() + 3)
    monkeypatch.setenv(name, "1")  # torch reads it only when it is imported
    assert choose_num_threads(2) == torch.get_num_threads()


def test_two_hyper_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 5}, raising=False)
    assert threads_module._cores(tmp_path) == 4  # the system does not report siblings
    for number, siblings in {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4", 5: "1,5"}.items():
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings + "\n")
    assert threads_module._cores(tmp_path) == 2


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, sys.maxsize),
        ({"cpu.max": "max 100000\n"}, sys.maxsize),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, sys.maxsize),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu.max": "unheard of\n"}, sys.maxsize),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], cores: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads_module._quota(tmp_path) == cores
