"""The settings in a run's config.yaml, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

_OWN = ("seed_everything", "name", "runs", "ckpt_path", "trainer.logger", "trainer.default_root_dir")
"""Settings that identify a run and do not change its results."""


def flat_settings(text: str) -> dict[str, str] | None:
    """Return the settings of a config.yaml by their dotted names; None if it cannot be read."""
    try:
        settings = dict(_flat(yaml.safe_load(text), ""))
    except (yaml.YAMLError, RecursionError, ValueError):
        return None
    return {
        key.removeprefix("trainer.callbacks."): value for key, value in settings.items() if not key.startswith(_OWN)
    }


def _flat(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield names and values. An object in a list is named by its class."""
    if isinstance(value, dict) and value:
        for key, entry in value.items():
            yield from _flat(entry, f"{prefix}.{key}".removeprefix("."))
    elif isinstance(value, list) and value and all(isinstance(item, dict) and "class_path" in item for item in value):
        for item in value:
            name = str(item["class_path"]).rpartition(".")[2]
            yield f"{prefix}.{name}", "yes"
            yield from _flat(item.get("init_args") or {}, f"{prefix}.{name}")
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None or value == {} else str(value)
