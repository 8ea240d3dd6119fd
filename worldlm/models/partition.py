"""The partition of parameters into backbone, key layers and value layers (B, K, V of arXiv 2405.14446)."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from worldlm.federation.parameters import PARTS, Part
from worldlm.models.blocks import patterns_of_last_blocks
from worldlm.topology.errors import join_names, suggest

_LAST_BLOCKS = 2
"""How many blocks are keys and values, if nothing else is set."""


@dataclass(frozen=True, kw_only=True)  # without slots, since jsonargparse reads `vars` of a default
class Split:
    r"""Ordered patterns over parameter names: the backbone first, then keys, then values; the rest is the backbone.

    A pattern is a regular expression found anywhere in a name (`re.search`), such as `blocks\.2\.attn\.`. In place of
    patterns, `last_blocks` chooses whole blocks. By default, it is 2.

    Raises:
        ValueError: If a part is not a list of patterns, keys and values are both empty, a pattern is not a regular
            expression, or there are both patterns and `last_blocks`.
    """

    keys: tuple[str, ...] = ()
    """Patterns of the key layers. Keys or values may be empty, but not both."""

    values: tuple[str, ...] = ()
    """Patterns of the value layers, matched against the names that `keys` leaves."""

    backbone: tuple[str, ...] = ()
    """Patterns of parameters that stay in the backbone, whatever patterns of keys and values match them."""

    last_blocks: int | None = None
    """Number of last blocks, at least 1: their attention, with the norm before it, is keys; the rest of them, and the
    norm after the last block, is values."""

    def __post_init__(self) -> None:
        mistakes: list[str] = []
        if not (self.keys or self.values or self.backbone) and self.last_blocks is None:
            return  # nothing is set
        if self.last_blocks is not None:
            if self.keys or self.values or self.backbone:
                mistakes.append("split has both last_blocks and patterns: leave one of them out")
            if self.last_blocks < 1:
                mistakes.append(f"split.last_blocks is {self.last_blocks}: it must be at least 1")
            if mistakes:
                raise ValueError("\n".join(mistakes))
            return
        if not (self.keys or self.values):
            mistakes.append("split.keys and split.values are empty: at least one of them needs a pattern")
        for part, patterns in (("backbone", self.backbone), ("keys", self.keys), ("values", self.values)):
            if isinstance(patterns, str):
                mistakes.append(f"split.{part} is {patterns!r}: write a list of patterns")
            else:
                mistakes += [text for pattern in patterns if (text := _syntax(part, pattern))]
        if mistakes:
            raise ValueError("\n".join(mistakes))

    def resolved(self, model: nn.Module, prefix: str) -> Split:
        """Return the split with patterns in place of `last_blocks`.

        Args:
            model: Has the blocks.
            prefix: Precedes the names of the model's parameters.

        Raises:
            ValueError: If the blocks of the model, or their attention, are not found.
        """
        if self.keys or self.values:
            return self
        keys, values = patterns_of_last_blocks(model, self.last_blocks or _LAST_BLOCKS, prefix)
        return Split(keys=tuple(keys), values=tuple(values))


def partition(names: Sequence[str], split: Split) -> dict[str, str]:
    """Assign every parameter to a part.

    Args:
        names: Unique parameter names (a tied parameter under one of its names).
        split: The patterns of the parts.

    Returns:
        `'backbone'`, `'keys'` or `'values'` for each name, in the order of `names`.

    Raises:
        ValueError: If a name is repeated, a pattern matches no parameter, or the backbone is empty; the message has one
            line per mistake.
    """
    duplicates = [name for name, count in Counter(names).items() if count > 1]
    mistakes = [f"parameter {name!r} is given twice" for name in duplicates]
    parts: dict[str, str] = dict.fromkeys(names, "backbone")
    kept = {name for pattern in split.backbone for name in names if re.search(pattern, name)}
    mistakes += [
        f"split.backbone pattern {pattern!r} {_why_unused(pattern, [], names)}"
        for pattern in split.backbone
        if not any(re.search(pattern, name) for name in names)
    ]
    for part, patterns in (("keys", split.keys), ("values", split.values)):
        for pattern in patterns:
            matches = [name for name in names if re.search(pattern, name)]
            taken = [name for name in matches if parts[name] == "backbone" and name not in kept]
            parts.update(dict.fromkeys(taken, part))
            if not taken and not (matches and kept.issuperset(matches)):
                mistakes.append(f"split.{part} pattern {pattern!r} {_why_unused(pattern, matches, names)}")
    if "backbone" not in parts.values():
        mistakes.append("the backbone is empty: the patterns of split.keys and split.values match all parameters")
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return parts


def parts_of(module: nn.Module) -> dict[str, Part]:
    """Return the part of each of a module's parameters.

    Args:
        module: Any module. Its method `partition()`, if it has one, returns the part of each of its
            `named_parameters()`; without it, all of them are the backbone.

    Raises:
        ValueError: If `partition()` names a part that does not exist, or does not name the module's parameters.
    """
    names, kind = [name for name, _ in module.named_parameters()], type(module).__name__
    method = getattr(module, "partition", None)
    if method is None:
        return dict.fromkeys(names, "backbone")
    parts: dict[str, Part] = method()
    if missing := [name for name in names if name not in parts]:
        raise ValueError(f"{kind}.partition() lacks the parameters {join_names(missing)}")
    if unknown := [name for name in parts if name not in names]:
        raise ValueError(
            f"{kind}.partition() has {join_names(unknown)}, but no such parameter{suggest(unknown[0], names)}"
        )
    if wrong := next((part for part in parts.values() if part not in PARTS), None):
        raise ValueError(
            f"{kind}.partition() has the part {wrong!r}; parts are {', '.join(PARTS)}{suggest(str(wrong), PARTS)}"
        )
    return parts


def _syntax(part: str, pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"split.{part} pattern {pattern!r} is not a regular expression: {error}"
    return None


def _why_unused(pattern: str, matches: Sequence[str], names: Sequence[str]) -> str:
    if matches:
        return f"has no effect: earlier patterns already match the same parameters, such as {matches[0]!r}"
    nearest = difflib.get_close_matches(pattern.replace("\\", ""), names, n=1, cutoff=0.0)
    return f"matches no parameter; the nearest is {nearest[0]!r}" if nearest else "matches no parameter"
