"""Find shipped and local YAML files by path or by name."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Literal

from worldlm.topology.checks import shorten
from worldlm.topology.errors import suggest

_SUFFIXES = (".yaml", ".yml")


def find_file(kind: Literal["topologies", "recipes"], name_or_path: str | Path) -> Path:
    """Find a topology or a recipe.

    An existing path comes first. Then `<name>.yaml` is searched in `./<kind>/`, in the checkout beside the package,
    and among the installed data files. A name may begin with a folder, as in `methods/fedavg`.

    Raises:
        FileNotFoundError: if there is none; the message lists the known names and the nearest.
        ValueError: if it is neither a text nor a path.
    """
    if not isinstance(name_or_path, str | Path):
        raise ValueError(
            f"{type(name_or_path).__name__} is not one of {kind}: give the name or path of a file, a dict with the "
            "content of a file, or for topologies a worldlm.topology.Topology"
        )
    path = Path(os.path.expanduser(name_or_path))  # unchanged if the user does not exist
    if os.path.isfile(path):
        return path
    known = _known(kind)
    name = (path.with_suffix("") if path.suffix in _SUFFIXES else path).as_posix()
    if name in known:
        return known[name]
    if os.path.exists(path):
        return path
    missing = f"no file {shorten(repr(str(name_or_path)), 200)}, and no file of that name in {kind}"
    near = suggest(name, known) or suggest(path.name, known)
    raise FileNotFoundError(f"{missing}; known: {', '.join(sorted(known))}{near}")


def as_yaml(content: Mapping[str, Any]) -> str:
    """Return a dict with the content of a file as YAML, in one line.

    Raises:
        ValueError: If it holds anything but plain values.
    """
    try:
        return json.dumps(dict(content))  # which is YAML too
    except TypeError as error:
        raise ValueError(f"a dict in place of a file may hold plain values only: {error}") from error


def _known(kind: str) -> dict[str, Path]:
    """Return name -> path of all files; local files hide those of the checkout, and these the installed ones."""
    paths: dict[str, Path] = {}
    for name, path in [*_local(Path(kind)), *_checkout(kind), *_installed(kind)]:
        paths.setdefault(name, path)
    return paths


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
    yaml_files = [file for file in shipped if file.suffix in _SUFFIXES]
    top_level = [(file.stem, file) for file in yaml_files if file.parent.name == kind]
    nested = [(f"{file.parent.name}/{file.stem}", file) for file in yaml_files if file.parent.parent.name == kind]
    paths = [(name, Path(str(file.locate()))) for name, file in [*top_level, *nested]]
    return [(name, path) for name, path in paths if path.is_file()]
