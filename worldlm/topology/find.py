"""Shipped and local YAML files, found by path or by name."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Literal

from worldlm.topology.checks import shorten
from worldlm.topology.errors import suggest

_SUFFIXES = (".yaml", ".yml")


def find_file(kind: Literal["topologies", "recipes"], name_or_path: str | Path) -> Path:
    """Find a topology or a recipe.

    A path that exists wins; then `<name>.yaml` is looked for in `./<kind>/`, in the checkout beside
    the package, and among the installed data files. A name may begin with a folder, as `methods/fedavg`.

    Raises:
        FileNotFoundError: if there is none, naming those there are and the nearest.
    """
    path = Path(os.path.expanduser(name_or_path))  # as it is, where there is no such user
    if os.path.isfile(path):
        return path
    known = _known(kind)
    name = (path.with_suffix("") if path.suffix in _SUFFIXES else path).as_posix()
    if name in known:
        return known[name]
    if os.path.exists(path):
        return path
    told = f"no file {shorten(repr(str(name_or_path)), 200)}, nor any of that name in {kind}"
    near = suggest(name, known) or suggest(path.name, known)
    raise FileNotFoundError(f"{told}; known: {', '.join(sorted(known))}{near}")


def _known(kind: str) -> dict[str, Path]:
    """Name -> path of all there are, the nearest place first."""
    found: dict[str, Path] = {}
    for name, path in [*_local(Path(kind)), *_checkout(kind), *_installed(kind)]:
        found.setdefault(name, path)
    return found


def _local(folder: Path) -> list[tuple[str, Path]]:
    paths = sorted(path for suffix in _SUFFIXES for depth in ("", "*/") for path in folder.glob(f"{depth}*{suffix}"))
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def _checkout(kind: str) -> list[tuple[str, Path]]:
    top = Path(__file__).resolve().parents[2]
    return [] if top.name in ("site-packages", "dist-packages") else _local(top / kind)


def _installed(kind: str) -> list[tuple[str, Path]]:
    try:
        shipped = files("worldlm") or []
    except PackageNotFoundError:
        return []
    ours = [file for file in shipped if file.suffix in _SUFFIXES]
    here = [(file.stem, file) for file in ours if file.parent.name == kind]
    below = [(f"{file.parent.name}/{file.stem}", file) for file in ours if file.parent.parent.name == kind]
    found = [(name, Path(str(file.locate()))) for name, file in [*here, *below]]
    return [(name, path) for name, path in found if path.is_file()]
