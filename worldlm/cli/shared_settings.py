"""What all processes of a run must have been started with."""

from __future__ import annotations

from jsonargparse import Namespace

from worldlm import __version__
from worldlm.monitoring.run_facts import code

_OF_A_MACHINE = (
    "data.cache_dir",
    "name",
    "recipe",
    "runs",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.logger",
    "trainer.paging.folder",
)
"""May differ: folders, and what is found out on the spot."""


def shared_settings(config: Namespace) -> dict[str, str]:
    """Return the settings of a fit that must be the same in all of its processes, and which WorldLM they are for.

    Args:
        config: Of a fit; `ckpt_path` must have been found.
    """
    commit = code().get("worldlm")
    settings = {name: repr(value) for name, value in config.items() if not _is_of_a_machine(name)}
    return {"worldlm": f"{__version__} {commit}" if commit else __version__, **settings}


def _is_of_a_machine(name: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in _OF_A_MACHINE)
