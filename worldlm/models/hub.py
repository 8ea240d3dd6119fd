"""Models of the Hugging Face Hub: their configuration, and their weights as safetensors."""

from __future__ import annotations

import json
from pathlib import Path

from worldlm.files.hub import NAME, NoSuchFile, fetch
from worldlm.models.hugging_face import CONFIG, INDEX, WEIGHTS


def is_hub_name(name: str) -> bool:
    """Return whether a text is `owner/name@revision`. Without a revision it could be a folder that does not exist."""
    return "@" in name and NAME.fullmatch(name) is not None


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
        index = json.loads(fetch(name, INDEX).read_text("utf-8"))
        files = sorted({str(file) for file in index["weight_map"].values()})
    except NoSuchFile as error:
        raise NoSuchFile(f"the repository has no safetensors, neither {WEIGHTS} nor {INDEX}") from error
    except (LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"its {INDEX} does not say which files have the weights") from error
    if foreign := [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]:
        raise ValueError(f"its {INDEX} names {foreign[0]!r}, which is no safetensors file of the repository")
    return files
