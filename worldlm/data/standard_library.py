"""A corpus from Python's standard library: its manual, docstrings and source code.

With it, the quickstart runs without a network. Two areas are English prose and two are code, so that the federations
of a tree differ.
"""

from __future__ import annotations

import ast
import sys
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from worldlm.data.corpora import Corpus, SplitName
from worldlm.data.digests import digest
from worldlm.topology.errors import check_choice

Area = Literal["topics", "docstrings", "network", "tools"]

_NETWORK = "asyncio email http urllib xmlrpc wsgiref socketserver ssl smtplib imaplib ftplib poplib"
_TOOLS = (
    "argparse ast bdb cProfile cmd code codeop compileall difflib dis doctest inspect linecache "
    "logging modulefinder optparse pdb pickletools profile pstats pyclbr pydoc symtable timeit "
    "tokenize trace traceback tracemalloc unittest warnings"
)
_LEFT_OUT = {"test", "tests", "idle_test", "__pycache__"}
# Modules that some installations lack, tables, and jokes.
_NO_DOCSTRINGS = "antigravity distutils encodings ensurepip idlelib lib2to3 pydoc_data this tkinter turtle turtledemo"
_HELD_OUT_EVERY = 10
_SHORTEST_REPEAT = 80
_SHORTEST_DOCUMENT = 200
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StandardLibrary(Corpus):
    """Text that is part of every CPython since 3.11, in containers and distributions too.

    The areas and their sizes in CPython 3.11 to 3.13:

    - `topics`: topics of the language manual (`pydoc`), prose, 0.4 MB
    - `docstrings`: the docstrings of modules, terse prose, 0.7 MB
    - `network`: source files (asyncio, email, http, ...), code, 1.6 MB
    - `tools`: source files (argparse, inspect, pdb, unittest, ...), code, 1.6 MB

    `docstrings` excludes the modules of `network` and `tools`. Every tenth document is held out. A repeated paragraph
    of 80 characters or more is dropped from its area, so that no such paragraph is in both splits.
    """

    area: Area
    """The part of the library to read."""

    def __post_init__(self) -> None:
        """Check the settings."""
        check_choice("area", self.area, get_args(Area))

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read the documents of a split; see `Corpus.documents`."""
        for index, text in enumerate(_documents(self.area)):
            held_out = index % _HELD_OUT_EVERY == _HELD_OUT_EVERY // 2
            if held_out == (split == "validation"):
                yield text

    def fingerprint(self) -> str:
        """Return a digest of the area and the version of Python."""
        return digest(_VERSION, self.area, sys.version)


@cache
def _documents(area: Area) -> tuple[str, ...]:
    if area == "topics":
        from pydoc_data.topics import topics

        documents = (topics[name] for name in sorted(topics))
    elif area == "docstrings":
        skipped = {*_NETWORK.split(), *_TOOLS.split(), *_NO_DOCSTRINGS.split()}
        files = _source_files(sys.stdlib_module_names - skipped)
        documents = (_docstrings(_source(file)) for file in files)
    else:
        names = _NETWORK if area == "network" else _TOOLS
        documents = (_source(file) for file in _source_files(names.split()))
    return tuple(_without_repeats(documents))


def _source_files(modules: frozenset[str] | list[str]) -> Iterator[Path]:
    """Find the source files of modules and packages, sorted, without their tests."""
    library = Path(sysconfig.get_path("stdlib"))
    for name in sorted(modules):
        yield from filter(Path.is_file, [library / f"{name}.py"])
        files = sorted((library / name).rglob("*.py"))
        yield from (f for f in files if _LEFT_OUT.isdisjoint(f.relative_to(library).parts))


def _source(file: Path) -> str:
    with tokenize.open(file) as stream:
        return stream.read()


def _docstrings(source: str) -> str:
    """Join the docstrings of a module, its classes and its functions, in source order."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(filter(None, map(ast.get_docstring, nodes)))


def _without_repeats(documents: Iterable[str]) -> Iterator[str]:
    """Drop repeated long paragraphs, and documents that become too short."""
    seen: set[str] = set()
    for document in documents:
        paragraphs = []
        for paragraph in document.split("\n\n"):
            words = " ".join(paragraph.split())
            if len(words) < _SHORTEST_REPEAT or words not in seen:
                paragraphs.append(paragraph)
                seen.add(words)
        text = "\n\n".join(paragraphs).strip()
        if len(text) >= _SHORTEST_DOCUMENT:
            yield text
