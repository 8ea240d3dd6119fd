"""Hostile YAML: a file changed by byte, by line, by token or by value, and files that are bombs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random

_TOKEN = re.compile(rb"[^\s:,\[\]{}]+")

TOKENS = [
    *(
        "9" * 400,
        "-9223372036854775809",
        "1e999",
        "-1e999",
        "1e-999",
        ".inf",
        "-.inf",
        ".nan",
        "NaN",
        "inf",
        "0x1F",
        "0o17",
    ),
    *(
        "017",
        "0b11",
        "1_000",
        "1__0",
        "12:30",
        "190:20:30.15",
        "2001-12-14t21:59:43.10-05:00",
        "2002-12-14",
        "1.",
        ".5",
        "+1",
    ),
    *(
        "1e3",
        "6e-4",
        "-0",
        "-0.0",
        "0",
        "-1",
        "1e308",
        "5e-324",
        "١٢",
        "½",
        "on",
        "off",
        "no",
        "yes",
        "y",
        "n",
        "True",
        "FALSE",
    ),
    *(
        "null",
        "~",
        "Null",
        "''",
        '""',
        "=",
        "<<",
        "?",
        "!",
        "*",
        "&",
        "%",
        "@",
        "`",
        "|",
        ">",
        "- -",
        "? ?",
        "---",
        "...",
        "#",
    ),
    *(
        "!!python/object/apply:os.system [touch ran]",
        "!!python/name:os.system",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
    ),
    *(
        "!!int '3'",
        "!!float x",
        "!!str 3",
        "!!null x",
        "!!bool maybe",
        "!!timestamp x",
        "!x y",
        "!<tag:yaml.org,2002:int> 3",
    ),
    *(
        "%YAML 9.9",
        "%TAG ! tag:x,2000:",
        "&a",
        "*a",
        "*b",
        "&a *a",
        "{<<: *a}",
        "<<: [*a, *a]",
        "<<: 3",
        "[*a, *a]",
        "&a [*a]",
    ),
    *(
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "/",
        "~",
        "~nobody-of-that-name/x",
        "a/b",
        "a\\b",
        "C:\\x",
        "a\\0b",
        '"a\\0b"',
    ),
    *(
        '"\\ud800"',
        '"\\uD83D\\uDE00"',
        '"\\x00"',
        '"\\U0010FFFF"',
        '"\\U00110000"',
        "\x85",
        "\u2028",
        "\ufeff",
        "\u202e",
        "🦙",
    ),
    *(
        "name",
        "root",
        "children",
        "settings",
        "corpus",
        "copies",
        "weight",
        "class_path",
        "init_args",
        "trainer",
        "recipe",
    ),
    *(
        "copies: 1000001",
        "copies: 1e9",
        "copies: 0",
        "copies: -1",
        "num_local_steps: 0",
        "num_local_steps: 1e18",
        "weight: 1e-320",
    ),
    *(
        "class_path: .",
        "class_path: .a.B",
        "class_path: a..B",
        "class_path: os.system",
        "class_path: worldlm.callbacks.",
    ),
    *(
        "class_path: worldlm.callbacks",
        "class_path: worldlm..Averaging",
        "class_path: worldlm.callbacks.Averaging.x",
        "class_path: {}",
    ),
    *(
        "class_path: 3",
        "class_path: null",
        "class_path: ' '",
        'class_path: "a\\0.b"',
        "class_path: worldlm.no.B",
        "class_path: é.B",
    ),
    *(
        "init_args: []",
        "init_args: 3",
        "init_args: {class_path: x}",
        "init_args: {self: 1}",
        "init_args: {'': 1}",
        "dict_kwargs: {a: 1}",
    ),
]
"""Tokens that can replace any other token."""


def _at(rng: Random, data: bytes) -> int:
    return rng.randint(0, len(data))


def _span(rng: Random, data: bytes) -> tuple[int, int]:
    start = _at(rng, data)
    return start, min(len(data), start + rng.choice([1, 2, 5, 20, 100]))


# ---------------------------------------------------------------------- by byte


def flip(rng: Random, data: bytes) -> bytes:
    """Change one bit."""
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def truncate(rng: Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: _at(rng, data)]


def cut_out(rng: Random, data: bytes) -> bytes:
    """Leave some bytes out."""
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def duplicate(rng: Random, data: bytes) -> bytes:
    """Write some bytes again, here or elsewhere."""
    (start, end), at = _span(rng, data), _at(rng, data)
    return data[:at] + data[start:end] * rng.choice([1, 1, 2, 9]) + data[at:]


def put_in(rng: Random, data: bytes) -> bytes:
    """Insert one or two bytes that have a meaning for some reader."""
    at = _at(rng, data)
    new = rng.choice(
        [b"\0", b"\r", b"\t", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b":", b"{", b"[", b"'", b'"', b"- ", b"? "]
    )
    return data[:at] + new + data[at:]


# ---------------------------------------------------------------------- by line


def change_lines(rng: Random, data: bytes) -> bytes:
    """Write a line again, leave it out, move it, or move it to another column."""
    lines = data.split(b"\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.choice(["again", "out", "swap", "in", "back", "tab", "join", "block"])
    if kind == "again":
        lines.insert(to, lines[at])
    elif kind == "out":
        del lines[at]
    elif kind == "swap":
        lines[at], lines[to] = lines[to], lines[at]
    elif kind == "in":
        lines[at] = b" " * rng.choice([1, 2, 4]) + lines[at]
    elif kind == "back":
        lines[at] = lines[at][rng.choice([1, 2, 4]) :]
    elif kind == "tab":
        lines[at] = b"\t" + lines[at]
    elif kind == "join":
        lines[at : at + 2] = [b" ".join(lines[at : at + 2])]
    else:
        lines[to:to] = lines[at : at + rng.choice([2, 5])]
    return b"\n".join(lines)


# ---------------------------------------------------------------------- by token


def change_token(rng: Random, data: bytes) -> bytes:
    """Put something else in the place of a word."""
    matches = list(_TOKEN.finditer(data))
    if not matches:
        return data
    old = rng.choice(matches)
    words = [rng.choice(matches).group(), rng.choice(TOKENS).encode("utf-8", "surrogatepass")]
    return data[: old.start()] + rng.choice(words) + data[old.end() :]


def put_in_token(rng: Random, data: bytes) -> bytes:
    """Begin or end a line with something else."""
    lines = data.split(b"\n")
    at, token = rng.randrange(len(lines)), rng.choice(TOKENS).encode("utf-8", "surrogatepass")
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    kind = rng.choice(["before", "after", "own"])
    if kind == "own":
        lines.insert(at, indent + token)
    else:
        lines[at] = indent + token + b" " + lines[at].lstrip() if kind == "before" else lines[at] + b" " + token
    return b"\n".join(lines)


def change_key(rng: Random, data: bytes) -> bytes:
    """Misspell a key, or give it to another value."""
    keys = list(re.finditer(rb"([\w.]+):", data))
    if not keys:
        return data
    old, new = rng.choice(keys), rng.choice(keys).group(1)
    return data[: old.start(1)] + rng.choice([new, old.group(1)[1:], old.group(1) + b"s"]) + data[old.end(1) :]


# ---------------------------------------------------------------------- all of it


def recode(rng: Random, data: bytes) -> bytes:
    """Write the whole file in another encoding, or with other ends of lines."""
    text = data.decode("utf-8", "replace")
    codes = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "utf-7"]
    ends = {"\r\n": "\r\n", "\r": "\r", "\x85": "\x85", "\u2028": "\u2028", "": ""}
    if rng.random() < 0.5:
        return text.encode(rng.choice(codes), "replace")
    return text.replace("\n", rng.choice(list(ends))).encode("utf-8", "replace")


def nest(rng: Random, data: bytes) -> bytes:
    """Put a value at the bottom of many others."""
    depth = rng.choice([30, 60, 64, 65, 70, 500, 5000])
    deep = rng.choice(
        [b"[" * depth, b"[" * depth + b"]" * depth, b"{a: " * depth + b"}" * depth, b"- " * depth, b"? " * depth]
    )
    at = data.find(b":", _at(rng, data)) + 1
    return data[:at] + b" " + deep + b"\n" + data[at:] if at else deep


def bomb(rng: Random, data: bytes) -> bytes:
    """Put aliases of aliases before it, in lists or as merges, and use them."""
    wide, high = rng.choice([2, 9, 10, 30]), rng.choice([2, 4, 5, 8, 20])
    below = ", ".join(["*a{}"] * wide)
    nested = rng.choice(["[" + below + "]", "{{<<: [" + below + "]}}", "{{x{}: " + "*a{}" + ", <<: [" + below + "]}}"])
    lines = ["x0: &a0 {k1: 1, k2: 2}"]
    lines += [
        f"x{i}: &a{i} " + re.sub(r"\{\}", str(i - 1), nested).replace("{{", "{").replace("}}", "}")
        for i in range(1, high)
    ]
    used = rng.choice([f"settings: *a{high - 1}", f"<<: *a{high - 1}", f"trainer: *a{high - 1}", f"root: *a{high - 1}"])
    return "\n".join([*lines, used, ""]).encode() + data


def quote(rng: Random, data: bytes) -> bytes:
    """Set the value of a key to a string that is YAML itself, which some readers parse."""
    inner = rng.choice([nest, bomb, put_in_token, change_token])(rng, rng.choice([b"a: 1", b"[x]", b"{class_path: x}"]))
    text = json.dumps(inner.decode("utf-8", "replace")).encode()
    keys = list(re.finditer(rb": [^\n{\[|>&]*$", data, re.MULTILINE))
    if not keys:
        return b"a: " + text
    old = rng.choice(keys)
    return data[: old.start() + 2] + text + data[old.end() :]


def swell(rng: Random, data: bytes) -> bytes:
    """Make something very long: a word, a line, a key, a comment, or a list of many keys."""
    size = rng.choice([1_000, 10_000, 50_000])
    new = rng.choice(
        [
            b"a" * size,
            b"#" * size,
            b'"' + b"\\u0041" * (size // 6) + b'"',
            b"a" * size + b": 1",
            b"".join(b"k%d: 1\n" % i for i in range(size // 50)),
            b"name: a\n" * (size // 50),
            b"[" + b"1, " * (size // 20) + b"]",
            b"1" + b"0" * size,
            b"1" + b"_0" * size,
            b"\n" * size,
            b" " * size,
            b"- " * min(size, 5_000),
        ]
    )
    at = rng.choice([0, data.find(b"\n", _at(rng, data)) + 1, data.find(b": ", _at(rng, data)) + 2])
    return data[:at] + new + b"\n" + data[at:]


OFTEN: list[Callable[[Random, bytes], bytes]] = [
    *(flip, truncate, cut_out, duplicate, put_in),
    *(change_lines, change_lines, change_lines, change_token, change_token, change_token, put_in_token, put_in_token),
    *(change_key, change_key),
]
SELDOM: list[Callable[[Random, bytes], bytes]] = [recode, nest, bomb, swell, quote]


def mutate(rng: Random, seeds: Sequence[bytes], seldom: float = 0.03) -> bytes:
    """Change one of some files in one to four ways.

    Args:
        rng: Where all draws come from.
        seeds: The files.
        seldom: How often a change is one of those that make large files.
    """
    data = rng.choice(seeds)
    if rng.random() < 0.05:  # spliced
        other = rng.choice(seeds)
        data = data[: _at(rng, data)] + other[_at(rng, other) :]
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(SELDOM if rng.random() < seldom else OFTEN)(rng, data)
    return data
