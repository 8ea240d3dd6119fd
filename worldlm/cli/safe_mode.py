"""The classes that `--safe` allows in a recipe."""

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
"""Modules and classes that are allowed, with everything in them. A recipe needs no other class of these packages."""

REFUSED = {
    "lightning.pytorch.callbacks.LambdaCallback": "it calls functions that a recipe names",
    "lightning.pytorch.callbacks.lambda_function": "it calls functions that a recipe names",
    "lightning.pytorch.callbacks.ThroughputMonitor": "it calls functions that a recipe names",
    "lightning.pytorch.callbacks.throughput_monitor": "it calls functions that a recipe names",
    "lightning.pytorch.profilers.XLAProfiler": "it opens a port",
    "lightning.pytorch.profilers.xla": "it opens a port",
    "lightning.fabric.plugins.io": "it may read pickles",
    "lightning.pytorch.plugins.io": "it may read pickles",
}
"""Exceptions that are not allowed, with the reason."""


def refusal(path: str) -> str:
    """Return the reason why `--safe` does not allow a dotted path; "" if it does."""
    entry = next((prefix for prefix in _prefixes(path) if prefix in REFUSED or prefix in ALLOWED), None)
    if entry in ALLOWED:
        return ""
    default = "only classes of worldlm, torch and lightning are, if they run no others"
    return f"class {path!r} is not trusted: {REFUSED.get(entry or '', default)}"


def refusal_of_class(found: type) -> str:
    """Return the reason why `--safe` does not allow a class, given the module that defines it; "" if it does."""
    return refusal(f"{found.__module__}.{found.__qualname__}")


def denied(message: str) -> str:
    """Return the dotted path in jsonargparse's error about an import that is not allowed; "" for other errors."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", message)
    return found.group(1) if found else ""


def _prefixes(path: str) -> Iterator[str]:
    """Yield a path and the paths of the modules that contain it, the longest first."""
    parts = path.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


@contextmanager
def restricted_imports(safe: bool = True) -> Iterator[None]:
    """Keep jsonargparse from importing classes that are not allowed, and from downloading files.

    It also builds no class where a setting takes any value, and imports no module of the current folder.

    Args:
        safe: Whether to restrict imports; if not, this does nothing.

    Raises:
        UserError: If this version of jsonargparse cannot restrict imports.
    """
    if not safe:
        yield
        return
    settings, mode = _parsing_settings()
    before, paths = dict(settings), list(sys.path)
    sys.path[:] = [path for path in paths if path not in ("", os.getcwd())]
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
    """Let Python find the user's own classes in the current folder, after all installed packages."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def _set(**settings: Any) -> None:
    from jsonargparse import set_parsing_settings

    set_parsing_settings(**settings)


def _parsing_settings() -> tuple[dict[str, Any], str]:
    """Return jsonargparse's own settings, which it has no function to restore, and its mode of reading files."""
    from jsonargparse import _common, _optionals

    settings: dict[str, Any] = getattr(_common, "parsing_settings", {})
    if not {"import_path_verdicts", "instantiate_subclass_spec_in_any"} <= settings.keys():
        raise UserError([f"{OPTION} needs jsonargparse 4.53 or newer: pip install --upgrade jsonargparse"])
    return settings, str(_optionals._get_config_read_mode())
