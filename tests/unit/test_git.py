"""Which commit a folder's files are of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from worldlm.files.git import commit_of


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, and a hook that would leave a trace."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "it.txt").write_text("one")
    who = ["-c", "user.name=x", "-c", "user.email=x@y"]
    for command in (["init", "-q"], ["add", "it.txt"], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    hook = tmp_path / ".git" / "watch"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    hook.chmod(0o755)
    subprocess.run(["git", "config", "core.fsmonitor", str(hook)], cwd=tmp_path, check=True)
    return tmp_path


def test_the_commit_and_whether_files_changed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, check=True, capture_output=True, text=True)
    commit = done.stdout.strip()
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as within a hook of another repository
    below = checkout / "below"
    below.mkdir()
    assert commit_of(checkout) == commit_of(below) == commit
    (checkout / "new.txt").write_text("nobody tracks it")
    assert commit_of(checkout) == commit
    index = (checkout / ".git" / "index").read_bytes()
    (checkout / "it.txt").write_text("two")
    assert commit_of(checkout) == f"{commit}-dirty"
    assert (checkout / ".git" / "index").read_bytes() == index
    assert not (checkout / "ran").exists()


def test_without_a_repository_or_git_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert commit_of(tmp_path) is None
    assert commit_of(tmp_path / "missing") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_of(Path(__file__).parent) is None


def test_it_is_not_waited_for_long(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldlm.files.git._SECONDS", 0.0)
    assert commit_of(checkout) is None
