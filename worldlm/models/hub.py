"""Models of the Hugging Face Hub: their configuration, and their weights as safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

from worldlm.files.hub import NAME, NoSuchFile, fetch
from worldlm.models.hugging_face import CONFIG, INDEX, WEIGHTS, shard_names


def is_hub_name(name: str) -> bool:
    """Return whether a text is `owner/name@revision`. Without a revision it could be a folder that does not exist."""
    return "@" in name and NAME.fullmatch(name) is not None


def is_folder_or_hub_name(name: str) -> bool:
    """Return whether a text is a folder that exists, or `owner/name@revision`."""
    return os.path.isdir(os.path.expanduser(name)) or is_hub_name(name)


def fetch_model(name: str, *, weights: bool) -> Path:
    """Fetch a model from the Hub, or find it in the cache, and return its folder.

    Args:
        name: `owner/name@revision`.
        weights: Whether to fetch the weights too, and not only the configuration.

    Raises:
        ValueError: If the repository has no such revision or file, or the Hub cannot be reached; in one line.
    """
    folder = fetch(name, CONFIG).parent
    if weights:
        try:
            fetch(name, WEIGHTS)
        except NoSuchFile:
            for file in _shards(name):
                fetch(name, file)
    return folder


def _shards(name: str) -> list[str]:
    try:
        path = fetch(name, INDEX)
    except NoSuchFile as error:
        raise NoSuchFile(f"the repository has no safetensors, neither {WEIGHTS} nor {INDEX}") from error
    try:
        index = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError:
        index = None
    return shard_names(index, f"its {INDEX}", "the repository")
