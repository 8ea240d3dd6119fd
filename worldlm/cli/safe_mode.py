"""What a recipe of a stranger may name: the classes that `--safe` allows."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from worldlm.topology.errors import UserError

OPTION = "--safe"

ALLOWED = (
    "worldlm.callbacks",
    "worldlm.data",
    "worldlm.models",
    "worldlm.monitoring",
    "worldlm.storage",
    "worldlm.trainer",
    "torch.nn",
    "torch.optim",
    "lightning.fabric.plugins",
    "lightning.pytorch.accelerators",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.csv_logs",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.loggers.tensorboard",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
)
"""Whatever lies in these; the other rooms of these packages have no class that a recipe has a place for."""

REFUSED = {
    "lightning.pytorch.callbacks.LambdaCallback": "it calls what a recipe names",
    "lightning.pytorch.callbacks.lambda_function": "it calls what a recipe names",
    "lightning.fabric.plugins.io": "it may read pickles",
    "lightning.pytorch.plugins.io": "it may read pickles",
}
"""What is left out of them, and why."""


def refusal(path: str) -> str:
    """Say why `--safe` does not allow a dotted path, or return an empty string."""
    entry = next((one for one in _above(path) if one in REFUSED or one in ALLOWED), None)
    if entry in ALLOWED:
        return ""
    why = REFUSED.get(entry or "", "trusted are worldlm's classes, and those of torch and lightning that run no others")
    return f"class {path!r} is not trusted: {why}"


def refusal_of_class(found: type) -> str:
    """Say why `--safe` does not allow a class, by where it is defined, or return an empty string."""
    return refusal(f"{found.__module__}.{found.__qualname__}")


def denied(message: str) -> str:
    """Return the dotted path that jsonargparse says it may not import, or an empty string."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", message)
    return found.group(1) if found else ""


def _above(path: str) -> Iterator[str]:
    """Yield a path and all it lies in, the nearest first."""
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


@contextmanager
def restricted_imports(safe: bool = True) -> Iterator[None]:
    """Let jsonargparse import nothing that `refusal` refuses, build nothing where any value may stand, fetch nothing.

    The current folder is no place to import from meanwhile.

    Args:
        safe: Whether to; else nothing happens.

    Raises:
        UserError: If this jsonargparse cannot.
    """
    if not safe:
        yield
        return
    settings, mode = _parsing_settings()
    before, paths = dict(settings), list(sys.path)
    sys.path[:] = [one for one in paths if one not in ("", os.getcwd())]
    try:
        _set(import_path_denylist=["*", *REFUSED], import_path_allowlist=list(ALLOWED))
        _set(instantiate_subclass_spec_in_any=False, config_read_mode_fsspec_enabled=False)
        yield
    finally:
        sys.path[:] = paths
        settings.clear()
        settings.update(before)
        if "s" in mode:
            _set(config_read_mode_fsspec_enabled=True)


def add_current_folder() -> None:
    """Let Python find a user's own classes in the current folder, behind all that is installed."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _set(**settings: Any) -> None:
    from jsonargparse import set_parsing_settings

    set_parsing_settings(**settings)


def _parsing_settings() -> tuple[dict[str, Any], str]:
    """Return jsonargparse's own settings, which it can set and not put back, and how it may read files."""
    from jsonargparse import _common, _optionals

    settings: dict[str, Any] = getattr(_common, "parsing_settings", {})
    if not {"import_path_verdicts", "instantiate_subclass_spec_in_any"} <= settings.keys():
        raise UserError([f"{OPTION} needs jsonargparse 4.53 or newer: pip install --upgrade jsonargparse"])
    return settings, str(_optionals._get_config_read_mode())
