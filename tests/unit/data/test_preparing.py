"""Preparing packs every document once, for any order of corpora, number of processes and interruptions."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldlm.data import ByteTokenizer, Corpus, Limits, PackedCorpus, Request, SplitName, TextFiles, TrainedBPE, prepare
from worldlm.data import gathering as gathering_module
from worldlm.data import preparing as preparing_module
from worldlm.data.encoders import TextEncoder
from worldlm.data.encoding import encode
from worldlm.data.files import FileSource
from worldlm.data.packing import Packing

Packed = dict[SplitName, PackedCorpus]


class Listed(Corpus):
    """Documents from lists; counts how often it is read."""

    def __init__(self, train: Sequence[str], validation: Sequence[str] = ("held out",), **limits: int) -> None:
        self.texts = {"train": list(train), "validation": list(validation)}
        self.given = limits
        self.num_reads = 0

    def documents(self, split: SplitName) -> Iterator[str]:
        self.num_reads += 1
        return iter(self.texts[split])

    def fingerprint(self) -> str:
        return repr((self.texts, self.given))

    def limits(self) -> Limits:
        return Limits(**self.given)


class WideTokenizer(ByteTokenizer):
    """Bytes, in a vocabulary that needs more than 16 bits."""

    vocab_size = 2**16 + 1

    def fingerprint(self) -> str:
        return "wide"


def _prepare(corpora: dict[str, Corpus], folder: Path) -> dict[str, Packed]:
    requests = [Request(name, corpus, f"corpus {name!r}") for name, corpus in corpora.items()]
    return prepare(requests, ByteTokenizer(), folder)


def _one(corpus: Corpus, folder: Path) -> Packed:
    return _prepare({"some/name": corpus}, folder)["some/name"]


def _texts(packed: PackedCorpus) -> list[str]:
    documents = np.split(packed.tokens, np.flatnonzero(packed.tokens == 256) + 1)
    return [bytes(document[:-1].astype(np.uint8)).decode() for document in documents[:-1]]


def _write_pile(file: Path, num_documents: int = 300) -> Path:
    """Write documents of three kinds, in the schema of The Pile."""
    names = ["Pile-CC", "Wikipedia (en)", "Pile-CC", "Github"]
    with file.open("w") as stream:
        for i in range(num_documents):
            record = {"text": f"document {i} " + "x" * (i % 40), "meta": {"pile_set_name": names[i % 4]}}
            stream.write(json.dumps(record) + "\n")
    return file


def _pile_corpora(file: Path, **settings: Any) -> dict[str, Corpus]:
    kinds = {"cc": "Pile-CC", "wk": "Wikipedia (en)", "code": "Github"}
    wheres = {name: {"meta.pile_set_name": kind} for name, kind in kinds.items()}
    return {name: TextFiles(train=str(file), where=where, **settings) for name, where in wheres.items()}  # type: ignore[arg-type]


def _content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.*"))}


# ---------------------------------------------------------------------- packed content


def test_documents_are_followed_by_the_end_of_text(tmp_path: Path) -> None:
    packed = _one(Listed(["ab", " ", "é"], ["c"]), tmp_path)
    train = packed["train"]
    assert train.tokens.tolist() == [97, 98, 256, 195, 169, 256]
    assert train.tokens.dtype == np.uint16
    assert (train.num_tokens, train.num_bytes, train.num_documents) == (6, 4, 2)
    assert packed["validation"].tokens.tolist() == [99, 256]


def test_large_vocabularies_take_32_bits(tmp_path: Path) -> None:
    (packed,) = prepare([Request("a", Listed(["ab"]), "")], WideTokenizer(), tmp_path).values()
    assert packed["train"].tokens.dtype == np.uint32
    assert packed["train"].tokens.tolist() == [97, 98, 256]


def test_a_lone_surrogate_does_not_stop_the_packing(tmp_path: Path) -> None:
    packed = _one(Listed(["a\ud800b"]), tmp_path)["train"]
    assert (packed.tokens.tolist(), packed.num_bytes) == ([97, 63, 98, 256], 3)


def test_files_are_packed_as_they_are_read(tmp_path: Path) -> None:
    corpora = _pile_corpora(_write_pile(tmp_path / "pile.jsonl"), validation_fraction=0.2)
    for name, packed in _prepare(corpora, tmp_path / "cache").items():
        for split in packed:
            assert _texts(packed[split]) == list(corpora[name].documents(split)), (name, split)


@pytest.mark.parametrize("limit", [{"max_documents": 7}, {"max_tokens": 200}, {"max_validation_documents": 2}])
def test_limits_hold_for_any_size_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: dict[str, int]
) -> None:
    file = _write_pile(tmp_path / "pile.jsonl")
    endless = _prepare(_pile_corpora(file, validation_fraction=0.5), tmp_path / "endless")
    corpora = _pile_corpora(file, validation_fraction=0.5, **limit)
    large = _prepare(corpora, tmp_path / "a")
    monkeypatch.setattr(gathering_module, "_BATCH_CHARACTERS", 60)
    small = _prepare(corpora, tmp_path / "b")
    for name, packed in large.items():
        texts = {split: _texts(part) for split, part in packed.items()}
        for split, part in packed.items():
            assert texts[split] == _texts(endless[name][split])[: len(texts[split])]
            assert np.array_equal(small[name][split].tokens, part.tokens)
        lengths = [len(text) + 1 for text in texts["train"]]
        last = {split: int(documents[-1].split()[1]) for split, documents in texts.items()}  # documents are numbered
        if "max_validation_documents" in limit:
            assert len(texts["validation"]) == 2
            assert len(lengths) == endless[name]["train"].num_documents
        else:
            assert last["validation"] < last["train"]
            assert len(lengths) == 7 if "max_documents" in limit else sum(lengths[:-1]) < 200 <= sum(lengths)


def test_a_user_defined_corpus_keeps_its_limits(tmp_path: Path) -> None:
    packed = _one(Listed(["aa", "bb", "cc"], ["x", "y"], max_tokens=4, max_validation_documents=1), tmp_path)
    assert _texts(packed["train"]) == ["aa", "bb"]
    assert _texts(packed["validation"]) == ["x"]


def test_batches_keep_their_order_and_are_read_on_demand() -> None:
    drawn: list[int] = []
    encoder = TextEncoder(ByteTokenizer())

    def batches() -> Iterator[tuple[int, list[str]]]:
        for number in range(20):
            drawn.append(number)
            yield number, ["x" * number, "é"]

    for number, (tag, encoded) in enumerate(encode(batches(), lambda _, texts: encoder.encode(texts))):
        assert tag == number
        assert encoded.tokens.tolist() == [*[120] * number, 256, 195, 169, 256]
        assert (encoded.num_tokens.tolist(), encoded.num_bytes.tolist()) == ([number + 1, 3], [number, 2])
        assert len(drawn) <= number + 4


def test_packed_tokens_equal_those_of_the_tokenizer(tmp_path: Path) -> None:
    corpora = _pile_corpora(_write_pile(tmp_path / "pile.jsonl"), validation_fraction=0.2)
    tokenizer = TrainedBPE(vocab_size=300).load(corpora, tmp_path)
    requests = [Request(name, corpus, name) for name, corpus in corpora.items()]
    for name, packed in prepare(requests, tokenizer, tmp_path / "cache").items():
        expected = tokenizer.encode_batch(list(corpora[name].documents("train")))
        assert packed["train"].tokens.tolist() == [token for ids in expected for token in (*ids, tokenizer.end_of_text)]


# ---------------------------------------------------------------------- number of readings


def test_equal_corpora_are_packed_once(tmp_path: Path) -> None:
    corpus = Listed(["ab"])
    first = _one(corpus, tmp_path)["train"].path
    assert _one(corpus, tmp_path)["train"].path == first
    assert corpus.num_reads == 2  # a split each
    assert _one(Listed(["abc"]), tmp_path)["train"].path != first
    (wide,) = prepare([Request("some/name", corpus, "")], WideTokenizer(), tmp_path).values()
    assert wide["train"].path != first
    assert len(list(tmp_path.glob("some_name-*"))) == 3


def test_corpora_of_one_source_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[FileSource] = []
    records = FileSource.records
    monkeypatch.setattr(FileSource, "records", lambda self: (opened.append(self), records(self))[1])
    corpora = _pile_corpora(_write_pile(tmp_path / "pile.jsonl"))
    held_out = tmp_path / "held-out.jsonl"
    _write_pile(held_out, 20)
    again = TextFiles(train=f"{tmp_path}/pile.jsonl", validation=str(held_out), where={"meta.pile_set_name": "Github"})
    _prepare(corpora | {"again": again}, tmp_path / "cache")
    names = [source.files[0].name for source in opened]
    # the held-out text, once more for its hashes, which are computed while all four read the rest
    assert names == ["held-out.jsonl", "pile.jsonl", "held-out.jsonl"]


def test_a_source_is_read_only_as_far_as_needed(tmp_path: Path) -> None:
    file = _write_pile(tmp_path / "pile.jsonl")
    with file.open("a") as stream:
        stream.write("not json\n")
    corpora = _pile_corpora(file, max_documents=20, validation_fraction=0.3)
    assert {packed["train"].num_documents for packed in _prepare(corpora, tmp_path / "a").values()} == {20}
    with pytest.raises(ValueError, match="corpus 'cc'; corpus 'wk'; corpus 'code': .*pile.jsonl:301: not a JSON"):
        _prepare(_pile_corpora(file), tmp_path / "b")


def test_damage_is_repaired(tmp_path: Path) -> None:
    corpus = Listed(["abcdef"])
    path = _one(corpus, tmp_path)["train"].path
    path.write_bytes(b"x" * path.stat().st_size)
    assert _texts(_one(corpus, tmp_path)["train"]) == ["abcdef"]
    assert corpus.num_reads == 4


def test_tokens_beyond_the_vocabulary_are_packed_again(tmp_path: Path) -> None:
    corpus = Listed(["abcdef"])
    forged = Packing(_one(corpus, tmp_path)["train"].path.parent, "uint16")  # with the right checksum
    for split in ("train", "validation"):
        forged.append(split, np.array([300, 256], np.uint16), 1, np.array([len([300, 256])]), np.zeros(1, np.uint64))
    forged.finish()
    assert _texts(_one(corpus, tmp_path)["train"]) == ["abcdef"]
    assert corpus.num_reads == 4


# ---------------------------------------------------------------------- errors


def test_empty_corpora_are_rejected_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"corpus 'some/name' \(train\): there are no train documents"):
        _one(Listed([" "]), tmp_path)
    with pytest.raises(ValueError, match=r"corpus 'some/name' \(validation\): there are no validation documents"):
        _one(Listed(["a"], []), tmp_path)
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"there are no validation documents; none of 1 documents is held out; ra"):
        _one(TextFiles(train=f"{tmp_path}/few.jsonl", validation_fraction=1e-9), tmp_path / "few")

    assert not [path for path in (*tmp_path.glob("some*"), *tmp_path.glob(".*")) if path.suffix != ".lock"]


def test_a_filter_without_matches_reports_the_values_of_its_fields(tmp_path: Path) -> None:
    file = _write_pile(tmp_path / "pile.jsonl")
    corpus = TextFiles(train=str(file), where={"meta.pile_set_name": "pile-cc"})
    with pytest.raises(ValueError, match=r"no train documents; where requires .* is 'Github', 'Pile-CC', 'Wikipedia"):
        _one(corpus, tmp_path / "cache")


def test_a_mistake_discards_only_its_own_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering_module, "_BATCH_CHARACTERS", 100)
    file = _write_pile(tmp_path / "pile.jsonl")
    with file.open("a") as stream:
        stream.write('{"text": 5, "meta": {"pile_set_name": "Github"}}\n')
    with pytest.raises(ValueError, match="^corpus 'code': .*pile.jsonl:301: field 'text' is int, not text; to leave"):
        _prepare(_pile_corpora(file), tmp_path / "cache")
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "cache").glob(".*.partial"))
    assert left == [".cc", ".wk"]


def test_text_that_changes_while_it_is_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _write_pile(tmp_path / "pile.jsonl")
    records = FileSource.records

    def change(source: FileSource) -> Iterator[Any]:
        yield from records(source)
        with file.open("a") as stream:
            stream.write("\n")

    monkeypatch.setattr(FileSource, "records", change)
    with pytest.raises(ValueError, match=r"^corpus 'some/name': the text was changed while it was read; run again$"):
        _one(TextFiles(train=str(file)), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    monkeypatch.undo()
    _one(TextFiles(train=str(file)), tmp_path / "cache")


def test_a_file_that_vanishes_is_named(tmp_path: Path) -> None:
    source = FileSource((tmp_path / "a.jsonl",), ("text",))
    with pytest.raises(ValueError, match=r"a.jsonl: cannot be read \(No such file or directory\)"):
        list(source.records())


def test_an_unknown_file_is_reported_before_any_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("broken")
    (tmp_path / "b.docx").touch()
    with pytest.raises(ValueError, match=r"b.docx: unknown kind of file"):
        _one(TextFiles(train=f"{tmp_path}/*.*"), tmp_path / "cache")


def test_records_without_a_document_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _write_pile(tmp_path / "pile.jsonl", 20)
    with file.open("a") as stream:
        stream.writelines(['{"text": null}\n', '{"text": ""}\n', '{"text": " \\n"}\n', '{"text": 5}\n', "{}\n"])
    (tmp_path / "held.jsonl").write_text('{"text": ""}\n{"text": "document 0 "}\n')
    corpus = TextFiles(train=str(file), validation=f"{tmp_path}/held.jsonl", skip_invalid=True)
    packed = _one(corpus, tmp_path / "cache")
    assert (packed["train"].num_documents, packed["validation"].num_documents) == (19, 1)
    assert "; left out: 1 also held out, 1 null, 3 empty, 1 not text, 1 without the field (" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"there are no train documents; left out: 25 without the field$"):
        _one(TextFiles(train=str(file), field="body", skip_invalid=True), tmp_path / "cache")


# ---------------------------------------------------------------------- kills and concurrent processes


def _in_child(action: Callable[[], object]) -> int:
    """Run a function in a new process; return its exit code."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    return os.waitpid(child, 0)[1]


class Killer(ByteTokenizer):
    """A byte tokenizer that kills its process at a batch."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def encode_batch(self, texts: list[str]) -> Any:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("batches", [[1], [2, 3, 4], [7, 9, 2, 5], [1] * 5])
@pytest.mark.parametrize("seconds_between_saves", [0, 100])
def test_a_killed_preparation_gives_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: list[int], seconds_between_saves: int
) -> None:
    monkeypatch.setattr(gathering_module, "_BATCH_CHARACTERS", 300)
    monkeypatch.setattr(preparing_module, "_SECONDS_BETWEEN_SAVES", seconds_between_saves)
    corpora = _pile_corpora(_write_pile(tmp_path / "pile.jsonl"), max_tokens=1800, validation_fraction=0.3)
    corpora["listed"] = Listed(["one", "two", "", "three"] * 100)
    requests = [Request(name, corpus, name) for name, corpus in corpora.items()]
    for batch in batches:
        ended = _in_child(lambda batch=batch: prepare(requests, Killer(batch), tmp_path / "killed"))  # type: ignore[misc]
        assert ended == signal.SIGKILL
    _prepare(corpora, tmp_path / "killed")
    _prepare(corpora, tmp_path / "undisturbed")
    assert _content(tmp_path / "killed") == _content(tmp_path / "undisturbed")
    assert len(_content(tmp_path / "killed")) == 20
    assert not list((tmp_path / "killed").glob(".*.partial"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_kill_before_the_folder_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Listed(["ab"])

    def killed() -> None:
        monkeypatch.setattr(
            Path,
            "replace",
            lambda self, to: os.kill(os.getpid(), signal.SIGKILL) if self.is_dir() else os.replace(self, to),
        )
        _one(corpus, tmp_path)

    assert _in_child(killed) == signal.SIGKILL
    assert list(tmp_path.glob(".*.partial"))
    assert _texts(_one(corpus, tmp_path)["train"]) == ["ab"]
    assert corpus.num_reads == 0  # in this process


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_second_process_waits_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = tmp_path / "begun"

    class Slow(Listed):
        def documents(self, split: SplitName) -> Iterator[str]:
            with begun.open("a") as stream:
                stream.write("x")
            yield from super().documents(split)
            while split == "train" and not (tmp_path / "go on").exists():
                pass

    corpus = Slow(["ab"])
    child = os.fork()
    if child == 0:
        _one(corpus, tmp_path / "cache")
        os._exit(0)
    while not begun.exists() or len(begun.read_text()) < 2:
        pass
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text, **_: (printed.append(text), (tmp_path / "go on").touch()))
    packed = _one(corpus, tmp_path / "cache")
    assert os.waitpid(child, 0)[1] == 0
    assert printed == ["worldlm: another process is packing some/name; waiting for it"]
    assert _texts(packed["train"]) == ["ab"]
    assert begun.read_text() == "xx"


# ---------------------------------------------------------------------- progress


def test_a_line_reports_the_packed_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _one(Listed(["abc", "d"]), tmp_path)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert "Packed some/name: train 2 documents, 0.00 MB, 0.00 M tokens; validation 1 documents" in output.err


def test_a_terminal_shows_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    _one(Listed(["abc"]), tmp_path)
    assert "Packing some/name" in capsys.readouterr().err


def test_a_log_gets_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering_module, "_BATCH_CHARACTERS", 300)
    monkeypatch.setattr("worldlm.data.display._SECONDS_BETWEEN_LINES", 0.0)
    _one(_pile_corpora(_write_pile(tmp_path / "pile.jsonl"))["cc"], tmp_path / "cache")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5
    assert lines[1].startswith("Packing some/name: 0.0 M tokens, ")
    assert lines[1].endswith("%")
