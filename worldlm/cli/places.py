"""Where the value of each setting was given: in a line of a recipe, or by an option of the command line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import yaml

from worldlm.topology.compose import line_of, pairs
from worldlm.topology.errors import UserError
from worldlm.topology.reader import Reader

_RECIPE = "--recipe="
_MERGED = "federation.settings"
"""The setting whose value is merged key by key; all others are replaced."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value that a recipe or the command line gives."""

    key: str
    """The dotted name of the setting, or of a part of its value."""
    place: str
    """`file:line`, or `--option`."""
    text: str | None
    """The value as it was written; None for a list or a mapping."""


class Places:
    """All values that were given, in the order in which they are laid over one another.

    Args:
        readers: The recipes.
        known: Dotted names of all settings.
        words: The command line: `--recipe=PATH` for each recipe, and the settings; by default only the recipes.
    """

    def __init__(self, readers: Collection[Reader], known: Collection[str], words: Sequence[str] = ()) -> None:
        self._known = known
        by_source = {reader.source: reader for reader in readers}
        self._in_force: list[Given] = []
        """The values that count, the last source first."""
        self._replaced: list[Given] = []
        """Those that a later source replaced."""
        remaining = iter([*words] or [f"{_RECIPE}{source}" for source in by_source])
        for word in remaining:
            option, equals, value = word.partition("=")
            if word.startswith(_RECIPE):
                reader = by_source.get(value)
                self._lay_over([] if reader is None else list(_of_recipe(reader.root, "", reader.source)))
            elif word.startswith("--"):
                self._lay_over(list(_of_option(option, value if equals else next(remaining, ""))))

    def _lay_over(self, values: list[Given]) -> None:
        names = {given.key for given in values}
        removed = {name for name in names if name in self._known and name != _MERGED}
        kept, replaced = list[Given](), list[Given]()
        for given in self._in_force:
            parts = given.key.split(".")
            above = {".".join(parts[:length]) for length in range(1, len(parts))}
            (replaced if given.key in names or above & removed else kept).append(given)
        self._in_force = [*(_without_plus(given) for given in values), *kept]
        self._replaced = [*replaced, *self._replaced]

    def find(self, message: str, scope: str = "", value: str = "") -> Given | None:
        """Return the value that a message about one mistake is about; None if there is none, or it may be several.

        Args:
            message: The message. It names the setting first, or the setting and its value anywhere.
            scope: The setting that contains the value, if it is known.
            value: The value, if the message does not contain it.
        """
        text = value or message
        words = {word.rstrip(".") for word in re.findall(r"[\w.]+", message)}
        first = re.match(r"[\w.]+", message)
        start = {first.group().rstrip(".")} if first else set[str]()
        corpora = tuple(f"data.corpora.{name}." for name in re.findall(r"corpus '([\w-]+)'", message))
        quoted = set(re.findall(r"'([^']+)'", message))

        def named(given: Given) -> bool:
            return given.key.startswith(scope) and _is_named(given.key, words) and _mentions(text, given.text)

        def begins(given: Given) -> bool:
            return given.key.startswith(scope) and _is_named(given.key, start)

        def of_corpus(given: Given) -> bool:
            return given.key.startswith(corpora) and not _is_number(given.text) and _mentions(text, given.text)

        def is_quoted(given: Given) -> bool:
            return given.text in quoted

        ways: list[tuple[Callable[[Given], bool], list[Given]]] = [
            (named, self._in_force),
            (named, self._replaced),
            (begins, self._in_force),
            (of_corpus, self._in_force),
            (is_quoted, self._in_force),
        ]
        return next(filter(None, (_the_one(filter(matches, values)) for matches, values in ways)), None)


def _the_one(found: Iterator[Given]) -> Given | None:
    """Return the first of several values; None if another setting of the same name is among them."""
    first = next(found, None)
    if first is None:
        return None
    name = first.key.rpartition(".")[2]
    same = {given.key for given in found if given.key.rpartition(".")[2] == name} | {first.key}
    return first if len(same) == 1 else None


def _of_recipe(node: yaml.Node, prefix: str, source: str) -> Iterator[Given]:
    """Yield the keys of a recipe and the items of its lists, in the order of their lines."""
    if isinstance(node, yaml.MappingNode):
        for key, entry in pairs(node):
            path = f"{prefix}.{key.value}".removeprefix(".")
            text = entry.node.value if isinstance(entry.node, yaml.ScalarNode) else None
            yield Given(path, f"{source}:{entry.line}", text)
            yield from _of_recipe(entry.node, path, source)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            if isinstance(item, yaml.ScalarNode):
                yield Given(prefix, f"{source}:{line_of(item)}", item.value)
            yield from _of_recipe(item, f"{prefix}.{i}", source)


def _of_option(option: str, value: str) -> Iterator[Given]:
    """Yield the setting that an option names, and the keys and items of a value in YAML."""
    key = option.removeprefix("--")
    yield Given(key, option, value)
    try:
        parts = list(_of_recipe(Reader(value, option).root, key, option))
    except UserError:
        return
    yield from (Given(part.key, option, part.text) for part in parts)


def _without_plus(given: Given) -> Given:
    """Return a value that is added to a list under the list's own name."""
    return Given(given.key.replace("+", ""), given.place, given.text) if "+" in given.key else given


def _is_named(key: str, words: Collection[str]) -> bool:
    return any(key == word or key.endswith(f".{word}") for word in words)


def _mentions(message: str, text: str | None) -> bool:
    """Return whether a message contains a value: the same text, or an equal number."""
    if not text:
        return False
    if re.search(rf"(?<![\w.-]){re.escape(text)}(?!\.?\w)", message):
        return True
    numbers = re.findall(r"-?\d[\w.+-]*", message)
    return _is_number(text) and any(_is_number(number) and float(number) == float(text) for number in numbers)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True
