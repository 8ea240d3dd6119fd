"""The parser of recipes and settings."""

from __future__ import annotations

import inspect
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from worldlm.cli.loggers import set_default_save_dir
from worldlm.cli.recipe_scalars import quote_texts


class UsageError(ValueError):
    """The user gave settings that cannot be used."""


class RecipeParser(LightningArgumentParser):
    """Raises errors instead of printing a page of usage, and never takes a value for the name of a file to read."""

    def add_class_arguments(self, theclass: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the arguments of a class, except that `worldlm join` and `serve` set `organisation` themselves."""
        skip = {*kwargs.get("skip", ()), *({"organisation"} & inspect.signature(theclass).parameters.keys())}
        added = super().add_class_arguments(theclass, *args, **{**kwargs, "sub_configs": False, "skip": skip})
        set_default_save_dir(theclass, self._actions)
        return added

    @property
    def declared(self) -> dict[str, Any]:
        """Dotted names of all settings, and their types."""
        settings = (action for action in self._actions if not action.dest.endswith(".help"))
        return {action.dest: getattr(action, "_typehint", action.type) for action in settings}

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse the content of a recipe, with quotes around texts that YAML would take for something else."""
        return super().parse_string(quote_texts(content.removeprefix("\ufeff"), self.declared), *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message) from ex
