"""Finding files by paths and patterns, each file once."""

from __future__ import annotations

import glob
import os
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from lightning.fabric.utilities.rank_zero import rank_zero_only

from worldlm.data.readers import ending_of, find_reader
from worldlm.data.streams import COMPRESSIONS, unreadable
from worldlm.files.regular import check_regular
from worldlm.topology.errors import printable


def find_files(patterns: str | list[str], root: str | Path = ".") -> list[Path]:
    """Expand paths and glob patterns.

    Args:
        patterns: One pattern or several; `~` is the home folder and `**` any number of folders. If there is a file of
            exactly this name, it is meant, even if its name contains `*`, `?` or `[`.
        root: The folder in which relative patterns start; its name is never a pattern.

    Returns:
        The files in the order of the patterns, sorted by name within a pattern. A file that links give several names
        comes once, and a warning says so.

    Raises:
        ValueError: If a pattern matches no file, or matches a pipe, a device or a link to nowhere.
    """
    found: dict[object, Path] = {}
    repeated: dict[Path, Path] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for file in _files(pattern, str(root), repeated):
            first = found.setdefault(_identity(file), file)
            if first != file:
                repeated[file] = first
    if not found:
        raise ValueError("an empty list of files; name at least one path or pattern")
    for link, first in repeated.items():
        others = f", and {len(repeated) - 1} more" if len(repeated) > 1 else ""
        message = f"read once, because of links: {_show(link)} is {_show(first)}{others}"
        rank_zero_only(warnings.warn)(message, stacklevel=3)
        break
    return list(found.values())


def _files(pattern: str, root: str, repeated: dict[Path, Path]) -> list[Path]:
    """Return the files that a pattern matches, sorted; add folders that are left out to `repeated`."""
    path = os.path.join(root, os.path.expanduser(pattern))
    names = [path]
    if not os.path.lexists(path):  # the names on disk may have another form of letters with accents
        forms = dict.fromkeys([pattern, *(unicodedata.normalize(form, pattern) for form in ("NFC", "NFD"))])
        starts = [os.path.join(glob.escape(root), os.path.expanduser(form)) for form in forms]
        names = [name for start in starts for name in _expand(start, repeated)]
    paths = sorted({check_regular(Path(name)) for name in names})
    files = [path for path in paths if path.is_file()]
    if not files and paths:
        raise ValueError(f"{_show(paths[0])} is a folder; name the files in it, for example {_pattern_for(paths[0])!r}")
    if not files:
        for folder in Path(path).parents:
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise ValueError(f"{_show(folder)}: cannot be read (permission denied)")
        hint = "; separate folders by /" if "\\" in pattern else ""
        raise ValueError(f"no such file: {printable(pattern)} (searched from {_show(Path(root).absolute())}){hint}")
    return files


def _expand(pattern: str, repeated: dict[Path, Path]) -> list[str]:
    """Return the names that a pattern matches, like `glob`, but enter each folder once, so that loops of links end."""
    parts = Path(pattern).parts
    if "**" not in parts:
        return glob.glob(pattern)
    at = parts.index("**")
    rest = os.path.join(*parts[at + 1 :] or "*")
    starts = [folder for name in glob.glob(os.path.join(os.curdir, *parts[:at])) for folder in _folders(name, repeated)]
    return [name for start in starts for name in _expand(os.path.join(glob.escape(start), rest), repeated)]


def _folders(start: str, repeated: dict[Path, Path]) -> Iterator[str]:
    """Yield a folder and all folders in it that are not hidden. Links are followed."""
    seen: dict[str, str] = {}

    def stop(error: OSError) -> NoReturn:
        raise unreadable(Path(error.filename), error)

    for folder, names, _ in os.walk(start, onerror=stop, followlinks=True):
        first = seen.setdefault(os.path.realpath(folder), folder)
        names[:] = sorted(name for name in names if not name.startswith(".") and first == folder)
        if first == folder:
            yield folder
        else:
            repeated[Path(folder)] = Path(first)


def _identity(file: Path) -> object:
    """Return what is the same for all names of a file. Some file systems number only files with several names."""
    status = file.stat()
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(file)


def _pattern_for(folder: Path) -> str:
    """Return a pattern for the first files in a folder that can be read."""
    for path, _, names in os.walk(folder):
        for name in sorted(names):
            try:
                find_reader(Path(name))
            except ValueError:
                continue
            compression = Path(name).suffix if Path(name).suffix.lower() in COMPRESSIONS else ""
            ending = ending_of(Path(name)) + compression
            return str(folder / ("" if path == str(folder) else "**") / f"*{ending}")
    return str(folder / "*.txt")


def _show(path: Path) -> str:
    return printable(str(path))
