"""A trained tokenizer is lossless, the same on every machine, and trained once."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worldlm.data.corpora import Corpus, SplitName
from worldlm.data.digests import digest
from worldlm.data.tokenizers import FileTokenizer
from worldlm.data.trained_tokenizer import TrainedBPE

_TEXT = (
    "Le patient a été admis à l'hôpital le 12 mars 2019, dossier 48151623. "
    "Пацієнта прийняли до лікарні вранці. रोगी को अस्पताल में भर्ती किया गया।\n"
    "\tdef admit(patient): return patient.ward == 'A12'  # <|endoftext|> is plain text here\n"
)


class _Lines(Corpus):
    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.num_read = 0

    def documents(self, split: SplitName) -> Iterator[str]:
        assert split == "train"
        for text in self.texts:
            self.num_read += 1
            yield text

    def fingerprint(self) -> str:
        return digest(*self.texts)


def _tokens(tokenizer: FileTokenizer, text: str) -> list[int]:
    return np.asarray(tokenizer.encode_batch([text])[0]).tolist()


def _pieces(tokenizer: FileTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in _tokens(tokenizer, text)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> FileTokenizer:
    folder = tmp_path_factory.mktemp("cache")
    return TrainedBPE(vocab_size=400).load({"notes": _Lines(_TEXT * 9)}, folder)


@settings(max_examples=40)
@given(text=st.text(max_size=60))
@example(text="<|endoftext|></s> a\r\n \t\x00 b  ")
@example(text=_TEXT)
def test_any_text_round_trips(trained: FileTokenizer, text: str) -> None:
    tokens = _tokens(trained, text)
    assert trained.decode([*tokens, trained.end_of_text]) == text
    assert trained.end_of_text not in tokens
    assert max(tokens, default=0) < trained.vocab_size == 400


def test_words_of_several_languages_are_tokens_and_long_numbers_are_not(tmp_path: Path) -> None:
    tokenizer = TrainedBPE(vocab_size=2000).load({"notes": _Lines(_TEXT * 9)}, tmp_path)
    words = [" l'", "hôpital", " dossier", " ", "481", "516", "23", " лікарні", " अस्पताल", " में"]
    assert _pieces(tokenizer, "".join(words)) == words


def test_no_run_of_letters_becomes_one_token(tmp_path: Path) -> None:
    tokenizer = TrainedBPE(vocab_size=2000).load({"dna": _Lines("acgt" * 500, "acgt" * 500)}, tmp_path)
    assert max(map(len, _pieces(tokenizer, "acgt" * 100))) <= 64


_SCRIPT = """
import sys, types, worldlm
from hashlib import md5
package = sys.modules["worldlm.data"] = types.ModuleType("worldlm.data")
package.__path__ = [f"{worldlm.__path__[0]}/data"]  # without all of its modules: torch takes seconds
from worldlm.data.corpora import Corpus
from worldlm.data.trained_tokenizer import TrainedBPE

class Words(Corpus):
    def __init__(self, start):
        self.start = start
    def documents(self, split):
        for i in range(200):
            yield " ".join(f"слово{self.start} " + md5(bytes([i, j])).hexdigest() for j in range(20))
    def fingerprint(self):
        return str(self.start)

folder, *names = sys.argv[1:]
TrainedBPE(vocab_size=700, megabytes=0.1).load({name: Words(ord(name)) for name in names}, folder)
"""


def test_threads_hash_seeds_and_order_of_corpora_do_not_change_the_file(tmp_path: Path) -> None:
    processes = []
    for threads, names in (("1", "abc"), ("2", "cba")):
        changed = {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads, "TOKENIZERS_PARALLELISM": "true"}
        command = [sys.executable, "-c", _SCRIPT, str(tmp_path / threads), *names]
        processes.append(subprocess.Popen(command, env=os.environ | changed, stderr=subprocess.PIPE, text=True))
    for printed in [process.communicate()[1] for process in processes]:
        assert "Trained a BPE of 700 tokens on 0.3 MB of 3 corpora" in printed
    first, second = (sorted((tmp_path / threads / "tokenizers").glob("*.json")) for threads in "12")
    assert len(first) == len(second) == 1
    assert (first[0].name, first[0].read_bytes()) == (second[0].name, second[0].read_bytes())


def test_it_is_trained_once_and_again_after_any_change(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, news = _Lines(_TEXT), _Lines("news " * 40)
    first = TrainedBPE(vocab_size=300).load({"notes": notes, "news": news}, tmp_path)
    (path,) = (tmp_path / "tokenizers").glob("*.json")
    expected = rf"Trained a BPE of 300 tokens on 0\.0 MB of 2 corpora in \d+\.\d s: {path}\n"
    assert re.fullmatch(expected, capfd.readouterr().err)
    again = TrainedBPE(vocab_size=300).load({"news": news, "notes": notes}, tmp_path)
    assert again.fingerprint() == first.fingerprint()
    assert (notes.num_read, news.num_read, capfd.readouterr().err) == (1, 1, "")
    for settings_, corpora in [
        ({"vocab_size": 299}, {"notes": notes, "news": news}),
        ({"vocab_size": 300, "megabytes": 0.0001}, {"notes": notes, "news": news}),
        ({"vocab_size": 300, "min_frequency": 1}, {"notes": notes, "news": news}),
        ({"vocab_size": 300}, {"notes": notes}),
        ({"vocab_size": 300}, {"notes": news, "news": notes}),
        ({"vocab_size": 300}, {"notes": notes, "news": _Lines("news " * 41)}),
    ]:
        before = len(list((tmp_path / "tokenizers").glob("*.json")))
        TrainedBPE(**settings_).load(corpora, tmp_path)
        assert len(list((tmp_path / "tokenizers").glob("*.json"))) == before + 1
    monkeypatch.setattr("tokenizers.__version__", "0")
    TrainedBPE(vocab_size=300).load({"news": news, "notes": notes}, tmp_path)
    assert len(list((tmp_path / "tokenizers").glob("*.json"))) == before + 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda it: b"",
        lambda it: it[:1000],
        lambda it: it.replace(b'"t"', b'"T"'),
        lambda it: it.replace(b"true", b"null"),
    ],
    ids=["empty", "cut short", "another letter", "no JSON of a tokenizer"],
)
def test_a_damaged_file_is_replaced(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    corpora = {"notes": _Lines(_TEXT)}
    TrainedBPE(vocab_size=300).load(corpora, tmp_path)
    (path,) = (tmp_path / "tokenizers").glob("*.json")
    content = path.read_bytes()
    assert damage(content) != content
    path.write_bytes(damage(content))
    TrainedBPE(vocab_size=300).load(corpora, tmp_path)
    assert path.read_bytes() == content


def test_a_second_process_waits_for_the_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reading, waiting = Event(), Event()

    class Slow(_Lines):
        def documents(self, split: SplitName) -> Iterator[str]:
            reading.set()
            assert waiting.wait(60)
            yield from super().documents(split)

    corpora = {"notes": Slow(_TEXT)}
    tokenizers: list[FileTokenizer] = []
    threads = [
        Thread(target=lambda: tokenizers.append(TrainedBPE(vocab_size=300).load(corpora, tmp_path))) for _ in "ab"
    ]
    threads[0].start()
    assert reading.wait(60)
    threads[1].start()
    while "another process is training the tokenizer; waiting" not in capfd.readouterr().err:
        assert threads[1].is_alive()
    waiting.set()
    for thread in threads:
        thread.join()
    assert corpora["notes"].num_read == 1
    assert tokenizers[0].fingerprint() == tokenizers[1].fingerprint()


def test_a_failed_training_leaves_no_file(tmp_path: Path) -> None:
    class Broken(_Lines):
        def documents(self, split: SplitName) -> Iterator[str]:
            yield from super().documents(split)
            raise ValueError("notes.txt: cannot be read")

    with pytest.raises(ValueError, match=r"^corpus 'notes': notes\.txt: cannot be read$"):
        TrainedBPE(vocab_size=300).load({"notes": Broken(_TEXT)}, tmp_path)
    assert not list((tmp_path / "tokenizers").glob("*.json"))
    assert TrainedBPE(vocab_size=290).load({"notes": _Lines(_TEXT)}, tmp_path).vocab_size == 290


@pytest.mark.parametrize("late", ["zebra " * 99, "a" * 1000 + "zebra " * 99], ids=["document", "end of a document"])
def test_the_same_amount_is_read_of_large_and_small_corpora(tmp_path: Path, late: str) -> None:
    large = _Lines("a" * 600, late, *["zebra " * 99] * 99)
    small = _Lines("kiwi " * 100)
    tokenizer = TrainedBPE(vocab_size=300, megabytes=0.0006).load({"large": large, "small": small}, tmp_path)
    assert large.num_read == 1
    assert _pieces(tokenizer, " kiwi zebra") == [" kiwi", *" zebra"]


def test_a_document_may_be_truncated_within_a_character(tmp_path: Path) -> None:
    corpora = {"notes": _Lines("é" * 999 + " zebra" * 99)}
    tokenizer = TrainedBPE(vocab_size=300, megabytes=0.000101).load(corpora, tmp_path)
    assert _pieces(tokenizer, "éé zebra") == ["éé", *" zebra"]


def test_a_lone_surrogate_in_a_document_is_accepted(tmp_path: Path) -> None:
    tokenizer = TrainedBPE(vocab_size=300).load({"notes": _Lines("zebra \ud800" * 9)}, tmp_path)
    assert _pieces(tokenizer, "zebra ?") == ["zebra", " ?"]


def test_too_little_text_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "worldlm.data")
    TrainedBPE(vocab_size=260).load({"notes": _Lines(_TEXT)}, tmp_path)
    assert not caplog.messages
    for _ in range(2):  # also where the cache has it
        TrainedBPE(vocab_size=5000).load({"notes": _Lines("zebra zebra")}, tmp_path)
        (message,) = caplog.messages
        assert re.match(r"the text gave a tokenizer of 26\d tokens, not 5000: raise megabytes, or lower", message)
        caplog.clear()


def test_corpora_without_text_are_named(tmp_path: Path) -> None:
    corpora = {"full": _Lines(_TEXT), "empty": _Lines(), "blank": _Lines("", "")}
    with pytest.raises(ValueError, match=r"^there is no text to train a tokenizer on in 'blank', 'empty'$"):
        TrainedBPE().load(corpora, tmp_path)
    with pytest.raises(ValueError, match=r"^there is no corpus to train a tokenizer on$"):
        TrainedBPE().load({}, tmp_path)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"vocab_size": 256}, "vocab_size is 256; it must be at least 257: 256 bytes and the end of text"),
        ({"megabytes": 0.0}, "megabytes is 0.0; it must be a number above 0"),
        ({"megabytes": float("nan")}, "megabytes is nan; it must be a number above 0"),
        ({"megabytes": float("inf")}, "megabytes is inf; it must be a number above 0"),
        ({"min_frequency": 0}, "min_frequency is 0; it must be at least 1"),
    ],
)
def test_settings_out_of_range_are_rejected(settings_: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainedBPE(**settings_)
