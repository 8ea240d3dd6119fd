"""The runs of a comparison: their folders, commands, and everything that decides their results."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldlm.cli.safe_mode import OPTION
from worldlm.files.regular import check_regular
from worldlm.topology import find_file
from worldlm.topology.errors import UserError
from worldlm.topology.reader import read_plain, read_text

SETTINGS = "settings.json"
"""File beside a run's versions, with the settings that it was started with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One method with one seed."""

    method: str
    """The stem of the method's recipe; stems of several recipes are joined by `+`."""
    seed: int
    """The seed of all random draws."""
    folder: Path
    """RUNS/NAME/METHOD-SEED. Lightning adds version_N."""
    command: tuple[str, ...]
    """The words after `python -m worldlm`."""
    settings: dict[str, Any]
    """Everything that decides the results: digests of recipes and topology, and the settings of the command line."""
    safe: bool = False
    """Whether `--safe` is in the command."""

    @property
    def title(self) -> str:
        """The run's name in messages."""
        return f"{self.method}, seed {self.seed}"

    @property
    def settings_file(self) -> Path:
        """The file that holds `settings`."""
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
    """Plan a run for every method and seed. The methods of one seed follow one another.

    Args:
        recipes: Names or paths of the recipes that all runs share.
        methods: Names or paths of the methods' recipes, which are laid over them; `A+B` lays B over A.
        seeds: The seeds.
        name: The comparison's folder.
        runs: The folder of all runs.
        overrides: Words that are passed to every run, such as `--trainer.max_epochs`, `3`.
        safe: Whether all runs reject the classes that `worldlm.cli.safe_mode` does not allow.

    Raises:
        UserError: If two methods have the same name, or a seed is given twice.
        FileNotFoundError: If there is no such recipe.
    """
    base = [find_file("recipes", recipe) for recipe in recipes]
    own = [[find_file("recipes", recipe) for recipe in method.split("+")] for method in methods]
    names = ["+".join(path.stem for path in paths) for paths in own]
    for option, values in (("--methods", names), ("--seeds", [str(seed) for seed in seeds])):
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise UserError([f"{option} names {', '.join(repeated)} twice"])
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
    folder = Path(runs) / inner
    return PlannedRun(method=method, seed=seed, folder=folder, command=tuple(command), settings=settings, safe=safe)


def changes(run: PlannedRun) -> str:
    """Return what changed since the run in this folder was started; "" if nothing changed, or no run was started."""
    try:
        before = json.loads(check_regular(run.settings_file).read_text("utf-8"))
    except FileNotFoundError:
        return ""
    except ValueError:
        return SETTINGS
    changed = []
    for kind in ("recipes", "topology"):
        old, new = before.get(kind, {}), run.settings[kind]
        differing = [file for file in dict.fromkeys([*old, *new]) if old.get(file) != new.get(file)]
        changed += differing or ([f"order of {kind}"] if list(old) != list(new) else [])
    old, new = before.get("overrides", []), run.settings["overrides"]
    if old != new:
        changed.append(f"command line (then {' '.join(old) or 'nothing'}, now {' '.join(new) or 'nothing'})")
    return ", ".join(changed)


def _topology(recipes: Sequence[Path], overrides: Sequence[str]) -> Path | None:
    """Return the topology's file; None where the settings do not name one. The run itself reports its mistakes."""
    found = None
    for path in recipes:
        try:
            federation = read_plain(path).get("federation") or {}
            found = federation.get("topology", found)
        except (UserError, AttributeError):
            continue
    for i, word in enumerate(overrides):
        key, _, value = word.partition("=")
        if key == "--federation.topology":
            found = value or (overrides[i + 1] if i + 1 < len(overrides) else found)
    try:
        return find_file("topologies", found) if isinstance(found, str) else None
    except FileNotFoundError:
        return None


def _digest(path: Path) -> str:
    return hashlib.blake2b(read_text(path).encode(), digest_size=8).hexdigest()
