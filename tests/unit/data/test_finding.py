"""Paths and patterns become files, each once."""

from __future__ import annotations

import os
import unicodedata
import warnings
from pathlib import Path

import pytest

from worldlm.data.finding import find_files


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def _names(files: list[Path], folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in files]


def test_patterns_find_sorted_files_each_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b.txt", "a.txt", "deep/er/c.txt", "d.md", ".hidden/e.txt", "deep/.f.txt")
    assert _names(find_files(["b.txt", "**/*.txt"], tmp_path), tmp_path) == ["b.txt", "a.txt", "deep/er/c.txt"]
    assert _names(find_files(f"{tmp_path}/**/c.txt"), tmp_path) == ["deep/er/c.txt"]
    assert _names(find_files("**/er/**", tmp_path), tmp_path) == ["deep/er/c.txt"]
    assert _names(find_files("./de*/**/*.txt", tmp_path), tmp_path) == ["deep/er/c.txt"]
    assert len(find_files("**", tmp_path)) == 4


@pytest.mark.parametrize(
    "patterns", ["nowhere/*.txt", ["nowhere/*.txt"], [], "x" * 5000, "a\0b", "~nobody-of-that-name/x"]
)
def test_a_pattern_without_files_is_a_mistake(patterns: str | list[str]) -> None:
    with pytest.raises(ValueError, match=r"no such file: (nowhere/\*\.txt|xx|a\\x00b|~nob)|empty list") as caught:
        find_files(patterns)
    assert len(str(caught.value).splitlines()) == 1


def test_a_windows_path_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file: text\\a.txt \(searched from /.*\); separate folders by /"):
        find_files("text\\a.txt", tmp_path)


def test_a_file_of_the_name_is_meant_before_a_pattern(tmp_path: Path) -> None:
    root = tmp_path / "data [v2]"
    _touch(root, "a[1].jsonl", "a1.jsonl", "what?.txt", 'it\'s "b"\n.txt')
    assert _names(find_files("a[1].jsonl", root), root) == ["a[1].jsonl"]
    assert _names(find_files("a[12].jsonl", root), root) == ["a1.jsonl"]
    assert _names(find_files(["*.txt"], root), root) == ['it\'s "b"\n.txt', "what?.txt"]
    assert _names(find_files("**/*1*", root), root) == ["a1.jsonl", "a[1].jsonl"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_with_accents_have_two_forms(tmp_path: Path, form: str) -> None:
    _touch(tmp_path, unicodedata.normalize(form, "Ärzte/café.txt"))  # type: ignore[arg-type]
    for other in ("NFC", "NFD"):
        assert len(find_files(unicodedata.normalize(other, "Ärzte/café.txt"), tmp_path)) == 1  # type: ignore[arg-type]
        assert len(find_files(unicodedata.normalize(other, "Ärz*/café.*"), tmp_path)) == 1  # type: ignore[arg-type]


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _touch(tmp_path, "a.txt")
    assert find_files("~/*.txt", "elsewhere") == [tmp_path / "a.txt"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    _touch(tmp_path, "sub/a.txt", "sub/deep/b.txt")
    for name in ("sub/up", "sub/deep/top", "sub/deep/up"):
        (tmp_path / name).symlink_to("../.." if name.startswith("sub/deep") else "..")
    with pytest.warns(UserWarning, match=r"read once, because of links: .*sub/deep/top is .*, and 2 more"):
        files = find_files("**/*.txt", tmp_path)
    assert _names(files, tmp_path) == ["sub/a.txt", "sub/deep/b.txt"]


def test_a_linked_folder_is_read(tmp_path: Path) -> None:
    _touch(tmp_path, "disk/a.txt")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to("../disk")
    assert _names(find_files("data/**/*.txt", tmp_path), tmp_path) == ["data/shards/a.txt"]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_with_two_names_is_read_once(tmp_path: Path, link: object) -> None:
    _touch(tmp_path, "a.txt", "c.txt")
    link(tmp_path / "a.txt", tmp_path / "b.txt")  # type: ignore[operator]
    with pytest.warns(UserWarning, match=r"read once, because of links: .*b.txt is .*a.txt$"):
        assert _names(find_files("*.txt", tmp_path), tmp_path) == ["a.txt", "c.txt"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _names(find_files("b.txt", tmp_path), tmp_path) == ["b.txt"]


def test_a_link_to_nowhere_is_a_mistake(tmp_path: Path) -> None:
    _touch(tmp_path, "a.txt")
    (tmp_path / "b.txt").symlink_to("gone")
    with pytest.raises(ValueError, match=r"b.txt: is a link to gone, which does not exist"):
        find_files("*.txt", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("pattern", ["**/*.txt", "closed/*.txt", "closed/b.txt"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, pattern: str) -> None:
    _touch(tmp_path, "a.txt", "closed/b.txt")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(ValueError, match=r"closed: cannot be read \([Pp]ermission denied\)"):
        find_files(pattern, tmp_path)
    (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [(["a.txt.gz"], "text/*.txt.gz"), (["b/c.JSONL", "README"], "text/**/*.jsonl"), ([], "text/*.txt")],
)
@pytest.mark.parametrize("given", ["text", "te*"])
def test_the_pattern_for_a_folder_is_named(tmp_path: Path, names: list[str], pattern: str, given: str) -> None:
    (tmp_path / "text").mkdir()
    _touch(tmp_path / "text", *names)
    with pytest.raises(ValueError, match="text is a folder; name the files in it, for example ") as caught:
        find_files(given, tmp_path)
    assert str(caught.value).endswith(f"'{tmp_path / pattern}'")
