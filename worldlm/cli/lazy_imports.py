"""Imports Lightning without the parts of torchmetrics that no command uses, which saves more than a second of CPU.

Lightning uses two classes of torchmetrics, but `torchmetrics/__init__.py` imports every metric, and with them scipy
and transformers. Neither library has a setting that avoids it. So the few modules that define these classes are
imported before that `__init__` has run. It runs as soon as anything else imports torchmetrics, in the same module
object. A class in a recipe then finds the whole package, including the classes that Lightning uses. If a version of
torchmetrics or Lightning needs more than this, torchmetrics is imported as usual.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from copy import copy
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_NAME = "torchmetrics"
_USED = {"utilities": None, "metric": "Metric", "collections": "MetricCollection"}
"""Classes that Lightning uses, by the module that defines them. `utilities` comes first: it and `metric` import each
other, and this is the order that works."""


def import_lightning() -> None:
    """Import `lightning.pytorch.cli`, with no more of torchmetrics than it uses."""
    spec = None if {_NAME, "lightning"} & set(sys.modules) else find_spec(_NAME)
    if spec is None or spec.loader is None:
        return
    package = _Package(spec)
    try:
        package.import_used()
        importlib.import_module("lightning.pytorch.cli")
    finally:
        package.leave()


class _Package(Loader, MetaPathFinder):
    """A package whose `__init__` runs late: when it is imported after `leave`, or asked for a name it does not have."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec, self.module = spec, module_from_spec(spec)

    def import_used(self) -> None:
        """Import the modules that Lightning uses; none, if one of them needs more of the package."""
        sys.modules[_NAME] = self.module
        vars(self.module)["_logger"] = logging.getLogger(_NAME)  # which `__init__` sets too, before it imports modules
        try:
            for module, name in _USED.items():
                found = importlib.import_module(f"{_NAME}.{module}")
                if name:
                    vars(self.module)[name] = getattr(found, name)
        except (ImportError, AttributeError):
            for name in [module for module in sys.modules if module.partition(".")[0] == _NAME]:
                del sys.modules[name]
            return
        vars(self.module)["__getattr__"] = self._missing
        sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Let the next import of the package run its `__init__`."""
        if self in sys.meta_path:
            sys.modules.pop(_NAME, None)

    def _missing(self, name: str) -> Any:
        """Run `__init__` for a name that is not there yet: PEP 562."""
        if name.startswith("__"):  # looked for by the import system and by Lightning, which do without
            raise AttributeError(name)
        sys.modules.pop(_NAME, None)
        importlib.import_module(_NAME)
        return getattr(self.module, name)

    # ------------------------------------------------------------------ what the import system calls

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return a spec that fills the module there is."""
        if name != _NAME:
            return None
        spec = copy(self.spec)
        spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module there is."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Run the package's own `__init__`, once."""
        sys.meta_path.remove(self)
        del vars(module)["__getattr__"]
        assert module.__spec__ is not None and self.spec.loader is not None
        module.__spec__.loader = self.spec.loader
        self.spec.loader.exec_module(module)
