import errno
from pathlib import Path

import pytest

from worldlm.files.atomic_write import atomic_write, write_text


def test_it_is_the_old_file_until_it_is_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old")
    with atomic_write(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*path.parent.iterdir()] == [path]


def test_what_fails_leaves_the_old_file_alone_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    write_text(path, "old")
    with (
        pytest.raises(OSError, match=r"\[Errno 28\] No space left on device: '.*b\.txt'"),
        atomic_write(path) as partial,
    ):
        partial.write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")  # as write(2) gives it, without a name
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_an_error_about_another_file_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"), atomic_write(tmp_path / "b.txt"):
        (tmp_path / "nothing.txt").read_text()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_text(tmp_path / "file" / "b.txt", "text")
