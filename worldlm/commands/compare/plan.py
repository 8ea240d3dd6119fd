"""Which runs a comparison is made of, where they lie, and what decides how they end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldlm.cli.safe_mode import OPTION
from worldlm.topology import find_file
from worldlm.topology.errors import UserError
from worldlm.topology.reader import read_plain, read_text

SETTINGS = "settings.json"
"""Beside a run's versions: what it was started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One method with one seed."""

    method: str
    """The stem of the method's recipe; of several, joined by `+`."""
    seed: int
    """The seed of all that is drawn in it."""
    folder: Path
    """RUNS/NAME/METHOD-SEED; Lightning puts its version_N below it."""
    command: tuple[str, ...]
    """What stands after `python -m worldlm`."""
    settings: dict[str, Any]
    """What decides how it ends: digests of its recipes and its topology, and what the command line adds."""

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.method}, seed {self.seed}"

    @property
    def settings_file(self) -> Path:
        """Where `settings` are kept."""
        return self.folder / SETTINGS


def plan_runs(
    recipes: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    name: str,
    runs: str,
    overrides: Sequence[str] = (),
    safe: bool = False,
) -> list[PlannedRun]:
    """Lay out a run for every method and seed, the methods of one seed beside one another.

    Args:
        recipes: Names or paths of the recipes that all runs share.
        methods: Names or paths of the recipes that are laid over them, one for each method; `A+B` lays B over A.
        seeds: The seeds.
        name: The comparison's folder.
        runs: The folder of all runs.
        overrides: What is handed on to every run, such as `--trainer.max_epochs`, `3`.
        safe: Whether all runs refuse the classes that `worldlm.cli.safe_mode` does not allow.

    Raises:
        UserError: If two methods have one name, or a seed is given twice.
        FileNotFoundError: If there is no such recipe.
    """
    base = [find_file("recipes", recipe) for recipe in recipes]
    own = [[find_file("recipes", one) for one in method.split("+")] for method in methods]
    names = ["+".join(path.stem for path in paths) for paths in own]
    for what, values in (("methods", names), ("seeds", [str(seed) for seed in seeds])):
        if doubled := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError([f"--{what} names {', '.join(doubled)} twice"])
    return [
        _planned([*base, *paths], method, seed, name, runs, overrides, safe)
        for seed in seeds
        for method, paths in zip(names, own, strict=True)
    ]


def _planned(
    recipes: Sequence[Path], method: str, seed: int, name: str, runs: str, overrides: Sequence[str], safe: bool
) -> PlannedRun:
    inner = f"{name}/{method}-{seed}"
    command = ["fit"]
    for path in recipes:
        command += ["--recipe", str(path)]
    command += ["--seed_everything", str(seed), "--name", inner, "--runs", runs, "--ckpt_path", "last", *overrides]
    command += [OPTION] if safe else []
    topology = _topology(recipes, overrides)
    settings = {
        "recipes": {Path(*path.parts[-2:]).as_posix(): _digest(path) for path in recipes},
        "topology": {topology.name: _digest(topology)} if topology else {},
        "seed": seed,
        "overrides": list(overrides),
    }
    return PlannedRun(method=method, seed=seed, folder=Path(runs) / inner, command=tuple(command), settings=settings)


def changes(run: PlannedRun) -> str:
    """Say what is not as it was when the run in this folder was begun; "" if all is, or none was."""
    try:
        before = json.loads(run.settings_file.read_text("utf-8"))
    except FileNotFoundError:
        return ""
    except ValueError:
        return SETTINGS
    changed = []
    for what in ("recipes", "topology"):
        old, new = before.get(what, {}), run.settings[what]
        differing = [file for file in dict.fromkeys([*old, *new]) if old.get(file) != new.get(file)]
        changed += differing or ([f"order of {what}"] if list(old) != list(new) else [])
    old, new = before.get("overrides", []), run.settings["overrides"]
    if old != new:
        changed.append(f"command line (then {' '.join(old) or 'nothing'}, now {' '.join(new) or 'nothing'})")
    return ", ".join(changed)


def _topology(recipes: Sequence[Path], overrides: Sequence[str]) -> Path | None:
    """Find the topology's file, if it is told where one looks; what is wrong with it, the run will say."""
    found = None
    for path in recipes:
        try:
            federation = read_plain(path).get("federation") or {}
            found = federation.get("topology", found)
        except (UserError, AttributeError):
            continue
    for i, one in enumerate(overrides):
        key, _, value = one.partition("=")
        if key == "--federation.topology":
            found = value or (overrides[i + 1] if i + 1 < len(overrides) else found)
    try:
        return find_file("topologies", found) if isinstance(found, str) else None
    except FileNotFoundError:
        return None


def _digest(path: Path) -> str:
    return hashlib.blake2b(read_text(path).encode(), digest_size=8).hexdigest()
