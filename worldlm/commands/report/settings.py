"""The settings of a run as its config.yaml tells them, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

_OWN = ("seed_everything", "name", "runs", "ckpt_path", "trainer.logger", "trainer.default_root_dir")
"""Settings that say which run it is, not what it does."""


def flat_settings(text: str) -> dict[str, str] | None:
    """Return a config.yaml's settings by their dotted names; None if it cannot be read."""
    try:
        told = dict(_flat(yaml.safe_load(text), ""))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return {key.removeprefix("trainer.callbacks."): one for key, one in told.items() if not key.startswith(_OWN)}


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield names and values; an item of a list that has a class_path is named by its class."""
    if isinstance(value, dict) and value:
        for key, one in value.items():
            yield from _flat(one, f"{prefix}.{key}".removeprefix("."))
    elif isinstance(value, list) and value and all(isinstance(one, dict) and "class_path" in one for one in value):
        for one in value:
            name = str(one["class_path"]).rpartition(".")[2]
            yield f"{prefix}.{name}", "yes"
            yield from _flat(one.get("init_args") or {}, f"{prefix}.{name}")
    else:
        yield prefix, _told(value)


def _told(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == {} else str(value)
