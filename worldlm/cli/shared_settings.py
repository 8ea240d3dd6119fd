"""The settings that must be the same in all processes of a run."""

from __future__ import annotations

from jsonargparse import Namespace

from worldlm import __version__
from worldlm.monitoring.run_facts import code

_PER_PROCESS = (
    "data.cache_dir",
    "name",
    "recipe",
    "runs",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.logger",
    "trainer.paging.folder",
)
"""Settings that may differ: folders, and what each process finds out itself."""


def shared_settings(config: Namespace) -> dict[str, str]:
    """Return the settings of a fit that must be the same in all of its processes, and the version of WorldLM.

    Args:
        config: The settings of a fit, with the path of the checkpoint that was found.
    """
    commit = code().get("worldlm")
    settings = {name: repr(value) for name, value in config.items() if not _may_differ(name)}
    return {"worldlm": f"{__version__} {commit}" if commit else __version__, **settings}


def _may_differ(name: str) -> bool:
    return any(name == setting or name.startswith(f"{setting}.") for setting in _PER_PROCESS)
