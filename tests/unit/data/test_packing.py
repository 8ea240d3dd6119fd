"""Packing writes the right tokens once, whole, and notices damage."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worldlm.data import ByteTokenizer, Corpus, PackedCorpus, SplitName, pack
from worldlm.data import packing as packing_module


class Listed(Corpus):
    """Documents from a list; counts how often it is read."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.num_reads = 0

    def documents(self, split: SplitName) -> Iterator[str]:
        self.num_reads += 1
        return iter(self.texts)

    def fingerprint(self) -> str:
        return repr(self.texts)


class WideTokenizer(ByteTokenizer):
    """Bytes, in a vocabulary that needs more than 16 bits."""

    vocab_size = 2**16 + 1

    def fingerprint(self) -> str:
        return "wide"


def _pack(corpus: Corpus, folder: Path) -> PackedCorpus:
    return pack(corpus, "train", ByteTokenizer(), folder, "some/name")


def test_documents_are_followed_by_the_end_of_text(tmp_path: Path) -> None:
    packed = _pack(Listed("ab", "é"), tmp_path)
    assert packed.tokens.tolist() == [97, 98, 256, 195, 169, 256]
    assert packed.tokens.dtype == np.uint16
    assert (packed.num_tokens, packed.num_bytes, packed.num_documents) == (6, 4, 2)
    assert packed.bytes_per_token == pytest.approx(4 / 6)


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    packed = pack(Listed("ab"), "train", WideTokenizer(), tmp_path, "a")
    assert packed.tokens.dtype == np.uint32
    assert packed.tokens.tolist() == [97, 98, 256]


def test_batches_do_not_change_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Listed(*(f"document {i}" for i in range(50)))
    whole = _pack(corpus, tmp_path / "a")
    monkeypatch.setattr(packing_module, "_BATCH_CHARACTERS", 25)
    assert np.array_equal(_pack(corpus, tmp_path / "b").tokens, whole.tokens)


def test_text_is_packed_once_for_each_content(tmp_path: Path) -> None:
    corpus = Listed("ab")
    first = _pack(corpus, tmp_path)
    assert _pack(corpus, tmp_path).path == first.path
    assert corpus.num_reads == 1
    assert _pack(Listed("abc"), tmp_path).path != first.path
    assert pack(corpus, "validation", ByteTokenizer(), tmp_path, "some/name").path != first.path
    assert pack(corpus, "train", WideTokenizer(), tmp_path, "some/name").path != first.path
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize("suffix", [".bin", ".json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "short", "odd"])
def test_damage_is_noticed_and_repaired(tmp_path: Path, suffix: str, damage: str) -> None:
    corpus = Listed("abcdef")
    path = _pack(corpus, tmp_path).path
    file = path.with_suffix(suffix)
    content = file.read_bytes()
    broken = {"missing": b"", "empty": b"", "short": content[:-2], "odd": content[:-1]}
    file.unlink()
    if damage != "missing":
        file.write_bytes(broken[damage])
    with pytest.raises(ValueError, match=path.name):
        PackedCorpus.open(path)
    assert bytes(_pack(corpus, tmp_path).tokens[:-1].astype(np.uint8)) == b"abcdef"
    assert corpus.num_reads == 2


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    class Failing(Listed):
        def documents(self, split: SplitName) -> Iterator[str]:
            yield "x" * 2**21
            raise ValueError("file.jsonl:7: broken")

    with pytest.raises(ValueError, match="file.jsonl:7"):
        _pack(Failing(), tmp_path)
    with pytest.raises(ValueError, match="no train documents"):
        _pack(Listed(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_half_a_surrogate_pair_does_not_stop_the_packing(tmp_path: Path) -> None:
    assert _pack(Listed("a\ud800b"), tmp_path).tokens.tolist() == [97, 63, 98, 256]


def test_one_line_tells_what_was_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _pack(Listed("abc", "d"), tmp_path)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert "Packed some/name (train): 2 documents" in told.err


def test_a_terminal_sees_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert _pack(Listed("abc"), tmp_path).num_tokens == 4
    assert "Packing some/name (train)" in capsys.readouterr().err


def test_a_packed_corpus_travels_as_its_path(tmp_path: Path) -> None:
    packed = _pack(Listed("x" * 100_000), tmp_path)
    pickled = pickle.dumps(packed)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).tokens, packed.tokens)
