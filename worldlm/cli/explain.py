"""Explains errors of values: one line per mistake, with the place of the value in a recipe or on the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from worldlm.cli.places import Places
from worldlm.cli.safe_mode import denied, refusal
from worldlm.topology.checks import shorten
from worldlm.topology.errors import suggest
from worldlm.topology.reader import MAX_CHARACTERS, Reader


def explain(message: str, readers: Collection[Reader], known: Collection[str], words: Sequence[str] = ()) -> str:
    """Shorten an error to one line per mistake, with the file and line of a recipe or the option that has the mistake.

    Args:
        message: The message of jsonargparse, or of a class that it built.
        readers: The recipes.
        known: Dotted names of all settings.
        words: The command line, whose options and recipes are laid over one another in their order.

    Returns:
        One line per mistake.
    """
    text = _explain(message, Places(readers, known, words), known)
    return "\n".join(shorten(line, MAX_CHARACTERS) for line in text.splitlines())


def out_of_memory(error: Exception) -> str:
    """Return a message for an error that says that memory ran out; "" for all other errors."""
    text = " ".join(str(error).split())
    found = re.search(r"tried to allocate [\d.]+ \w+|out of memory", text, re.IGNORECASE)
    if not found and not isinstance(error, MemoryError):
        return ""
    detail = f" ({found.group()})" if found else ""
    remedy = "a smaller model or batch_size" + (", or --trainer.nodes_on host" if "CUDA" in text else "")
    return f"not enough memory{detail}: use {remedy}; see worldlm topology estimate"


def _explain(message: str, places: Places, known: Collection[str]) -> str:
    if unknown := re.match(r"unrecognized arguments: --([\w.-]+)", message, re.IGNORECASE):
        return f"no setting --{unknown.group(1)}{suggest(unknown.group(1), known)}"
    if path := denied(message):
        return _with_place(refusal(path), places)
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    if not keys and "Union subtypes" not in message:
        return "\n".join(_with_place(line, places) for line in message.splitlines())
    text, value = _innermost(message.rsplit('Parser key "', 1)[-1].split('":', 1)[-1])
    return _with_place(f"{keys[-1]}: {text}" if keys else text, places, keys[0] if keys else "", value)


def _innermost(text: str) -> tuple[str, str]:
    """Pick the useful part of jsonargparse's message, which lists every type that it tried, and the value."""
    text = text.replace("typing.", "").strip()
    if not text.startswith("Does not validate"):
        text = text.split("\n", 1)[0]
    text = re.sub(r"(Problem with given class_path '[^']*':)\n\s+", r"\1 ", text)
    found = re.search(r"(?:Given value|Got value): (.*)", text)
    value = found.group(1) if found else ""
    but_is = f", but is {value}" if value else ""
    if options := re.findall(r"Expected a Literal\[(.*?)\](?:\.|$)", text, re.MULTILINE):
        return f"must be one of {', '.join(dict.fromkeys(options))}{but_is}", value
    bullets = [bullet.strip() for bullet in re.findall(r"^\s+- (.*)$", text, re.MULTILINE)]
    useful = [bullet for bullet in bullets if not re.match(r"(Expected a <class|Not a valid subclass|an? )", bullet)]
    if useful:
        return "; ".join(dict.fromkeys(useful)), value
    types = re.findall(r"<class '(?:\w+\.)*(\w+)'>", " ".join(bullets) if bullets else text)
    if not types:
        return " ".join(text.split()), value
    allowed = " or ".join("nothing" if name == "NoneType" else name for name in dict.fromkeys(types))
    return f"must be {allowed}{but_is}", value


def _with_place(message: str, places: Places, scope: str = "", value: str = "") -> str:
    """Put the place of the value that a message is about before it, unless it begins with a place."""
    if re.match(r"(?:[^':]|:(?! ))*:\d+: ", message):
        return message
    given = places.find(message, scope, value)
    if given is None:
        return message
    option = given.place.removeprefix("--").removesuffix("+")
    name = re.split(r"[^\w.]", message, maxsplit=1)[0]
    if given.key == option and f".{option}".endswith(f".{name}"):
        return f"{given.place}{message.removeprefix(name)}"
    return f"{given.place}: {message.removeprefix(f'{option}: ')}"
