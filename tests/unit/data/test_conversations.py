"""Conversations as a corpus: records, mistakes, packing and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chats import END, MARKED, PLAIN, START, chats, turns, write_jsonl, write_tokenizer

from worldlm.data import (
    ByteTokenizer,
    Conversations,
    PackedCorpus,
    Partition,
    Request,
    SplitName,
    TextFiles,
    load_tokenizer,
    prepare,
)
from worldlm.data.declared import find_wholes, split_corpora
from worldlm.data.digests import digest
from worldlm.data.packed import FORMAT, open_folder
from worldlm.data.preparing import folder_of
from worldlm.data.tokenizers import Tokenizer


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return load_tokenizer(str(write_tokenizer(tmp_path / "tokenizer")))


def _corpus(tmp_path: Path, records: list[Any], **settings: Any) -> Conversations:
    held_out = write_jsonl(tmp_path / "held_out.jsonl", [{"messages": turns("held", "out")}])
    train = write_jsonl(tmp_path / "train.jsonl", records)
    return Conversations(train=str(train), validation=str(held_out), **settings)


def _pack(corpus: Any, tokenizer: Tokenizer, tmp_path: Path) -> dict[SplitName, PackedCorpus]:
    (packed,) = prepare([Request("ours", corpus, "corpus 'ours'")], tokenizer, tmp_path / "cache").values()
    return packed


def _documents(packed: PackedCorpus) -> list[list[int]]:
    assert packed.documents is not None
    return [part.tolist() for part in np.split(packed.tokens, packed.documents["end"][:-1].astype(int))]


def _answers(packed: PackedCorpus) -> list[str]:
    """Return the predicted tokens of each conversation as text, `/` for the token that ends an answer."""
    assert packed.targets is not None
    masks = np.split(np.asarray(packed.targets), packed.documents["end"][:-1].astype(int))  # type: ignore[index]
    kept = [np.array(doc)[mask == 1] for doc, mask in zip(_documents(packed), masks, strict=True)]
    return ["".join("/" if token >= 256 else chr(token) for token in tokens) for tokens in kept]


def test_messages_and_prompts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [
        {"messages": turns("a", "b", "c", "d", system="s"), "prompt": "not used"},
        {"prompt": "p", "completion": "q"},
        {"messages": [{"role": "user", "content": "u", "id": 7}, {"role": "assistant", "content": "v"}]},
    ]
    packed = _pack(_corpus(tmp_path, records), tokenizer, tmp_path)["train"]
    assert _answers(packed) == ["b/d/", "q/", "v/"]
    assert _documents(packed)[1] == [START, *b"user\np", END, 10, START, *b"assistant\nq", END, 10]
    assert (packed.num_documents, packed.num_targets, packed.num_bytes) == (3, 8, 4)
    assert packed.bytes_per_token == 0.5


def test_other_names_of_fields_and_other_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.csv").write_text("instruction,output,lang\np,q,it\nr,t,fr\n")
    settings: dict[str, Any] = {"prompt": "instruction", "completion": "output", "where": {"lang": "it"}}
    corpus = Conversations(train=str(tmp_path / "a.csv"), validation=str(tmp_path / "a.csv"), **settings)
    assert list(corpus.documents("validation")) == ["p\nq"]
    nested = _corpus(tmp_path, [{"chat": {"turns": turns("a", "b")}}, {"chat": {}, "prompt": "c", "completion": "d"}])
    corpus = Conversations(train=nested.train, validation=nested.train, field="chat.turns")
    assert list(corpus.documents("validation")) == ["a\nb", "c\nd"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": turns("only a question")}, "the conversation has no answer of the assistant"),
        ({"messages": turns("a", " ")}, "the conversation has no answer of the assistant"),
        ({"prompt": "a", "completion": ""}, "the conversation has no answer of the assistant"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
            "message 1 calls a tool, which is not supported",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, "message 1 has the role 'bot', not system, user, assistant"),
        ({"messages": [*turns("a"), {"role": "assistant", "content": None}]}, "content of message 2 is null, not text"),
        (
            {"messages": [*turns("a"), {"role": "assistant", "content": ["x"]}]},
            "message 2 is list, not text",
        ),
        ({"messages": ["hello"]}, "message 1 has no role and content"),
        ({"messages": [{"role": "user"}]}, "message 1 has no role and content"),
        ({"messages": []}, "field 'messages' is empty, not a list of messages"),
        ({"messages": None}, "field 'messages' is null, not a list of messages"),
        ({"messages": "hello"}, "field 'messages' is str, not a list of messages"),
        ({"prompt": "a"}, "no field 'completion'; fields are 'prompt'; a conversation needs 'messages', or both"),
        ({"prompt": 3, "completion": "a"}, "field 'prompt' is int, not text"),
        (["a list"], "is list, not an object"),
        ({"messages": turns("<|im_end|>", "b")}, "message 1 contains the control token"),
    ],
)
def test_bad_records(record: Any, expected: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [*chats(2), record]
    with pytest.raises(ValueError, match=f"corpus 'ours': .*train.jsonl:3: .*{expected}.*skip_invalid") as error:
        _pack(_corpus(tmp_path, records), tokenizer, tmp_path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob(".*partial"))
    packed = _pack(_corpus(tmp_path, records, skip_invalid=True), tokenizer, tmp_path)
    assert packed["train"].num_documents == 2
    counts = json.loads((packed["train"].path.parent / "counts.json").read_text())["splits"]["train"]["left_out"]
    assert sum(counts.values()) == 1
    assert set(counts) <= {"not a conversation", "not rendered by the chat template"}


def test_a_template_whose_prefixes_do_not_match_names_the_record(tmp_path: Path) -> None:
    hides = "{% for m in messages %}{{ m.content if loop.last else '...' }}<|im_end|>{% endfor %}"
    tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / "tokenizer", hides)))
    with pytest.raises(ValueError, match=r"held_out\.jsonl:1: the chat template renders message 2 or") as error:
        _pack(_corpus(tmp_path, chats(1)), tokenizer, tmp_path)
    assert "\n" not in str(error.value)


def test_without_a_template_prompts_and_answers_are_joined(tmp_path: Path) -> None:
    records = [{"prompt": "ab", "completion": "cé"}, {"prompt": "", "completion": "d"}]
    packed = _pack(_corpus(tmp_path, records), ByteTokenizer(), tmp_path)["train"]
    assert _documents(packed) == [[*"abcé".encode(), 256], [*b"d", 256]]
    assert packed.targets is not None
    assert packed.targets.tolist() == [0, 0, 1, 1, 1, 1, 0, 1]
    assert packed.num_bytes == len("cé".encode()) + 1
    with pytest.raises(ValueError, match=r"train\.jsonl:1: the tokenizer has no chat template, so a conversation must"):
        _pack(_corpus(tmp_path, [{"messages": turns("a", "b", "c", "d")}]), ByteTokenizer(), tmp_path)


def test_a_lone_surrogate_does_not_stop_the_packing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [{"prompt": "a\ud800b", "completion": "c\udfffd"}]
    for each in (tokenizer, ByteTokenizer()):
        packed = _pack(_corpus(tmp_path, records), each, tmp_path)["train"]
        assert _answers(packed) == ["c?d/"]
        assert packed.num_bytes == 3


def test_a_changed_template_packs_again(tmp_path: Path) -> None:
    corpus = _corpus(tmp_path, chats(1))
    folders = []
    for number, template in enumerate((PLAIN, MARKED, PLAIN)):
        tokenizer = load_tokenizer(str(write_tokenizer(tmp_path / f"tokenizer {number}", template)))
        folders.append(folder_of(Request("ours", corpus, ""), tokenizer, tmp_path))
    assert folders[0] == folders[2] != folders[1]


def test_plain_text_keeps_its_cached_folders_and_their_content(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """The key and the files are those of earlier versions, whatever chat template is beside the tokenizer."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{n}"} for n in range(40)])
    corpus = TextFiles(train=str(tmp_path / "a.jsonl"), validation_fraction=0.5)
    packed = _pack(corpus, tokenizer, tmp_path)["train"]
    folder = packed.path.parent
    assert folder.name == f"ours-{digest(FORMAT, corpus.fingerprint(), tokenizer.fingerprint())}"
    assert FORMAT == 4
    assert sorted(path.name for path in folder.iterdir()) == [
        "counts.json", "train.bin", "train.documents", "validation.bin", "validation.documents"
    ]  # fmt: skip
    counts = json.loads((folder / "counts.json").read_text())["splits"]["train"]
    assert list(counts) == [
        "num_tokens", "num_bytes", "num_documents", "crc32", "documents_crc32", "left_out", "values"
    ]  # fmt: skip
    assert packed.targets is None


@pytest.mark.parametrize("damage", ["flipped", "shorter", "missing"])
def test_a_damaged_file_of_targets_is_detected(damage: str, tmp_path: Path, tokenizer: Tokenizer) -> None:
    corpus = _corpus(tmp_path, chats(3))
    path = _pack(corpus, tokenizer, tmp_path)["train"].path.with_suffix(".targets")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "shorter" else bytes([1 - content[0]]) + content[1:])
    with pytest.raises(ValueError, match=r"train\.targets|not a packed corpus"):
        open_folder(path.parent)
    assert _answers(_pack(corpus, tokenizer, tmp_path)["train"]) == ["0 and 0/", "1 and 1/", "2 and 2/"]


def test_targets_that_mark_a_first_token_are_rejected(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Whoever can write the cache can also write its checksums."""
    import zlib

    path = _pack(_corpus(tmp_path, chats(3)), tokenizer, tmp_path)["train"].path.with_suffix(".targets")
    for mask in (b"\1", b"\2"):
        content = json.loads((path.parent / "counts.json").read_text())
        forged = mask + path.read_bytes()[1:]
        path.write_bytes(forged)
        counts = content["splits"]["train"]
        counts["targets_crc32"], counts["num_targets"] = zlib.crc32(forged), sum(map(bool, forged))
        content["digest"] = digest(content["splits"])
        (path.parent / "counts.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"train\.targets does not mark \d+ tokens of train\.bin to predict"):
            open_folder(path.parent)


def test_limits_persons_partitions_and_held_out_conversations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    records = [{**record, "who": f"p{n % 3}", "lang": "ab"[n % 2]} for n, record in enumerate(chats(60))]
    file = write_jsonl(tmp_path / "all.jsonl", records)
    corpus = Conversations(train=str(file), person="who", max_documents=20, validation_fraction=0.3)
    packed = _pack(corpus, tokenizer, tmp_path)
    assert packed["train"].num_documents == 20
    assert packed["validation"].num_documents > 0
    assert not set(_answers(packed["train"])) & set(_answers(packed["validation"]))
    assert len(set(packed["train"].documents["person"].tolist())) == 3  # type: ignore[index]
    whole = Conversations(train=str(file), validation_fraction=0.3)
    shards = split_corpora({"it": Partition(corpus=whole, num_shards=2, by="lang", values=["a", "b"])}, {"it": whole})
    texts = {name: _answers(_pack(shard, tokenizer, tmp_path)["train"]) for name, shard in shards.items()}
    assert {int(text.split()[0]) % 2 for text in texts["it_1"]} == {0}
    assert {int(text.split()[0]) % 2 for text in texts["it_2"]} == {1}


def test_local_files_replace_conversations_by_conversations(tmp_path: Path) -> None:
    corpus = Conversations(train="no.jsonl", where={"a": "b"}, prompt="q", max_documents=3, validation_fraction=0.5)
    (found,) = find_wholes({"ours": corpus}, {"ours": "x_{split}.jsonl"}, tmp_path).values()
    assert isinstance(found, Conversations)
    assert (found.train, found.validation, found.where) == ("x_train.jsonl", "x_validation.jsonl", {})
    assert (found.prompt, found.max_documents, found.root) == ("q", 3, str(tmp_path))
