"""The file of a noise key: its mode, and what is rejected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worldlm.federation.noise_key import NoiseKey
from worldlm.runs.folder import key_name
from worldlm.storage.noise_key_file import find_key, read_key, write_key


def test_a_key_is_written_and_read_with_mode_600(tmp_path: Path) -> None:
    key, path = NoiseKey(), tmp_path / "a.key"
    before = os.umask(0)  # the mode must not depend on it
    try:
        write_key(key, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path).reveal() == key.reveal()


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.key"
    path.write_text("mine")
    with pytest.raises(ValueError, match=r"cannot be written to .*a\.key: File exists"):
        write_key(NoiseKey(), path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o777])
def test_a_key_that_others_can_use_is_rejected(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.key"
    write_key(NoiseKey(), path)
    path.chmod(mode)
    with pytest.raises(
        ValueError, match=rf"other users can read the noise key .*a\.key, whose mode is {mode:04o}.*chmod 600"
    ):
        read_key(path)


@pytest.mark.parametrize("text", ["", "worldlm noise key, secret: ", "ab" * 31, "zz" * 32, "ab" * 33, "\0" * 500])
def test_another_file_is_not_a_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ValueError, match=r"a\.key is not a noise key"):
        read_key(path)


@pytest.mark.timeout(10)
def test_special_files_and_missing_ones_are_rejected_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(ValueError, match="fifo is not a regular file"):
        read_key(tmp_path / "fifo")
    with pytest.raises(ValueError, match=r"missing\.key cannot be read: No such file"):
        read_key(tmp_path / "missing.key")
    with pytest.raises(ValueError, match="is not a regular file|cannot be read"):
        read_key(tmp_path)


def test_the_first_folder_with_the_key_is_taken(tmp_path: Path) -> None:
    key = NoiseKey()
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    assert find_key(key.fingerprint, folders) is None
    for folder in folders[1:]:
        write_key(key, folder / key_name(key.fingerprint))
    assert find_key(key.fingerprint, folders) == folders[1] / key_name(key.fingerprint)
