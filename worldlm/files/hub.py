"""Fetches files from repositories of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from worldlm.topology.errors import first_line

NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
"""The name of a repository: `owner/name` or `owner/name@revision`."""

_SECONDS = 5.0


class NoSuchFile(ValueError):
    """A repository exists, and lacks a file."""


def fetch(name: str, file: str, cache_dir: str | Path | None = None) -> Path:
    """Fetch a file from the Hub, or take it from the cache if the Hub does not respond.

    A single request checks the connection first, because `hf_hub_download` alone would retry six times, for half a
    minute.

    Args:
        name: As `NAME`.
        file: Its path in the repository.
        cache_dir: Folder for the file; by default that of `huggingface_hub`.

    Raises:
        NoSuchFile: If the repository has no such file.
        ValueError: If the file cannot be fetched; the message says why in one line.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    location: dict[str, Any] = {"revision": revision or None, "cache_dir": cache_dir}
    seconds = float(os.environ.get("HF_HUB_ETAG_TIMEOUT", _SECONDS))
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision or None), timeout=seconds)
        return Path(hf_hub_download(repository, file, **location))
    except Exception as error:  # the HTTP library and its exceptions depend on the release of huggingface_hub
        try:
            return Path(hf_hub_download(repository, file, **location, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError):
            raise _explained(error, file, revision) from error


def _explained(error: Exception, file: str, revision: str) -> ValueError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return ValueError("access to the repository is restricted: request access on its page, and set HF_TOKEN")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError("no file, folder or repository on the Hub has that name (if it is private, set HF_TOKEN)")
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"the repository has no revision {revision!r}")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return NoSuchFile(f"the repository has no {file}")
    if isinstance(error, errors.HFValidationError):
        return ValueError(f"this is not a valid name on the Hub: {first_line(error)}")
    return ValueError(
        f"{file} cannot be fetched from the Hugging Face Hub ({first_line(error)}) and is not in its cache; without a "
        "network, give a path"
    )
