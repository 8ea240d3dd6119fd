"""Texts on which models are evaluated: corpora of the run, corpora of other recipes, or files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler

from worldlm.cli.recipe_scalars import quote_texts
from worldlm.commands.inference.saved_run import SavedRun, data_module
from worldlm.data import ConversationRows, Corpus, Mixture, Request, SplitName, TextFiles, prepare
from worldlm.data.corpora import naming
from worldlm.data.cutting import AnyBlocks, join, packed_of
from worldlm.data.digests import digest
from worldlm.data.finding import find_files
from worldlm.data.samplers import spread
from worldlm.models import architecture_of
from worldlm.topology import find_file
from worldlm.topology.errors import UserError, suggest
from worldlm.topology.reader import parse_plain, read_text


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text on which models are evaluated."""

    name: str
    """The name of the corpus or the file."""
    blocks: AnyBlocks
    """The whole text, in blocks or rows of the model's length."""
    batch_size: int
    """Blocks in a batch."""
    num_batches: int | None
    """Batches that are evaluated; None for all."""
    is_other: bool = False
    """Whether it differs from the text that the run held out under this name."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole text that a model can predict."""
        if isinstance(self.blocks, ConversationRows):
            return self.blocks.num_targets
        return len(self.blocks) * self.blocks.seq_len

    def batches(self) -> Iterator[Any]:
        """Yield the batches in the order of a run's own evaluation."""
        sampler = BatchSampler(spread(self.blocks.sizes), self.batch_size, drop_last=False)
        return (self.blocks.__getitems__(indices) for indices in islice(sampler, self.num_batches))


@dataclass(frozen=True, kw_only=True)
class WholeFiles(Corpus):
    """Files that are evaluated as a whole; no model trains on them."""

    files: TextFiles
    """The files."""

    def documents(self, split: SplitName) -> Iterator[str]:
        """Read all documents for validation. The training split is not used, and has only the first one."""
        documents = (text for part in ("train", "validation") for text in self.files.documents(part))
        return islice(documents, 1 if split == "train" else None)

    def fingerprint(self) -> str:
        """Return a digest of the files' paths, sizes and times."""
        return digest("whole", self.files.fingerprint())


def find_texts(
    run: SavedRun,
    wanted: Sequence[str] | None,
    *,
    split: SplitName = "validation",
    limit: int | None = None,
    recipes: Sequence[str] = (),
    changes: Mapping[str, str] | None = None,
) -> list[Text]:
    """Read texts and pack them as the run packs its own.

    Args:
        run: The run. Its tokenizer and block length are used.
        wanted: Names of corpora, or paths of files; by default the corpora of the run's own nodes.
        split: The split of a corpus; a file is read as a whole.
        limit: Batches of each text. By default, as many as the run itself evaluates of its nodes' corpora, and all of
            other texts.
        recipes: Recipes whose corpora may also be named. They take precedence over the run's.
        changes: New values of settings in `data`: `root`, `cache_dir`.

    Raises:
        ValueError: If there is no such text, or it cannot be read.
    """
    corpora, cache_dir = _known(run, recipes, changes or {})
    own = list(dict.fromkeys(node["corpus"] for node in _nodes(run) if node["corpus"] is not None))
    names = list(dict.fromkeys(wanted or own))
    if not names:
        raise UserError([f"{run.folder}: no corpus of its nodes is known: choose some with --corpus"])
    found = {name: corpora[name] if name in corpora else _files(name, corpora) for name in names}
    members = {
        name: corpus.members(corpora) if isinstance(corpus, Mixture) else [name] for name, corpus in found.items()
    }
    needed = {part: found.get(part) or corpora[part] for parts in members.values() for part in parts}
    requests = [Request(_title(name), corpus, f"corpus {name!r}") for name, corpus in needed.items()]
    packed = prepare(requests, run.tokenizer, cache_dir)
    length, texts = architecture_of(run.world.hyper_parameters).max_seq_len, []
    for name, parts in members.items():
        which: SplitName = "validation" if isinstance(found[name], WholeFiles) else split
        with naming(f"corpus {name!r} ({which})"):
            blocks = join({part: packed[_title(part)][which] for part in parts}, length)
        texts.append(_text(run, name, blocks, limit, is_held_out=which == "validation"))
    return texts


def _title(name: str) -> str:
    """Return the name of a corpus, or a file's name without its folder."""
    return Path(name).name or name


def _known(run: SavedRun, recipes: Sequence[str], changes: Mapping[str, str]) -> tuple[dict[str, Corpus], str]:
    own = run.config.get("data")
    if own is None:
        raise UserError([f"{run.folder} has no config.yaml with the corpora of its text"])
    cache_dir, corpora = changes.get("cache_dir", own.get("cache_dir", "~/.cache/worldlm")), dict[str, Corpus]()
    for source, settings in (
        (str(run.folder), {**own, **changes}),
        *((recipe, _data_of(recipe)) for recipe in recipes),
    ):
        with naming(source):
            module = data_module({**settings, "cache_dir": cache_dir}, run.trusted)
            corpora |= {**module.corpora, **module.mixtures}
    return corpora, cache_dir


def _data_of(recipe: str) -> dict[str, Any]:
    path = find_file("recipes", recipe)
    declared = {"data.corpora": dict[str, Corpus], "data.local": dict[str, str], "data.root": str}
    content = parse_plain(quote_texts(read_text(path), declared), str(path))
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict) or "corpora" not in data:
        raise UserError([f"{path}: has no data.corpora"])
    return {key: data[key] for key in ("corpora", "root", "local") if key in data}


def _files(name: str, corpora: Mapping[str, Corpus]) -> WholeFiles:
    try:
        find_files(name)
    except ValueError as error:
        known = f"there are {', '.join(corpora)}{suggest(name, corpora)}"
        raise UserError([f"{name!r} is neither a corpus nor a file; {known}"]) from error
    return WholeFiles(files=TextFiles(train=name))


def _nodes(run: SavedRun) -> list[dict[str, Any]]:
    """Return the recorded nodes whose weights were saved: an organisation has only its own."""
    return [node for node in run.record.nodes if node["name"] in run.world.children] if run.record is not None else []


def _text(run: SavedRun, name: str, blocks: AnyBlocks, limit: int | None, *, is_held_out: bool) -> Text:
    """Choose batches as large and as many as in the run's own evaluation."""
    facts = run.record.content["data_nodes"] if run.record is not None else {}
    users = [facts.get(node["name"], {}) for node in _nodes(run) if node["corpus"] == name]
    size = next(
        (user["batch_size"] for user in users if user.get("batch_size")), run.config["data"].get("batch_size", 16)
    )
    num_blocks = [user["held_out_blocks"] for user in users if user.get("held_out_blocks")]
    packed = [part.path.parent.name for part in packed_of(blocks) if part is not None]
    recorded = [user.get("held_out_text") for user in users]
    if limit is None and num_blocks:
        limit = math.ceil(max(num_blocks) / size)
    is_other = is_held_out and any(names is not None and names != packed for names in recorded)
    return Text(name=_title(name), blocks=blocks, batch_size=size, num_batches=limit, is_other=is_other)
