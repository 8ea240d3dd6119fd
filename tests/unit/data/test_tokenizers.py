"""Tokenizers encode without surprises."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from worldlm.data import load_tokenizer


def _backend(end: str = "<|endoftext|>") -> Backend:
    vocabulary = {end: 0, "a": 1, "b": 2, "[UNK]": 3}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([end])
    return backend


def test_bytes_there_and_back() -> None:
    tokenizer = load_tokenizer("bytes")
    texts = ["a", "", "нещо 🙂"]
    encoded = tokenizer.encode_batch(texts)
    assert [list(ids) for ids in encoded] == [list(text.encode()) for text in texts]
    decoded = [tokenizer.decode([*np.asarray(ids).tolist(), 256]) for ids in encoded]
    assert decoded == texts
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode("é".encode()[:1]) == "\ufffd"


def test_a_tokenizer_file_is_read_without_its_extras(tmp_path: Path) -> None:
    backend = _backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert [list(ids) for ids in tokenizer.encode_batch(["a b a", "b"])] == [[1, 2, 1], [2]]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (4, 0)
    assert tokenizer.decode([1, 2, 0]) == "a b"
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint() == tokenizer.fingerprint()


def test_special_tokens_in_a_document_are_plain_text(tmp_path: Path) -> None:
    _backend("</s>").save(str(tmp_path / "tokenizer.json"))
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode("a</s>b").ids == [1, 0, 2]
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert list(tokenizer.encode_batch(["a</s>b"])[0]) == [3]


def test_fingerprints_follow_the_file(tmp_path: Path) -> None:
    _backend("</s>").save(str(tmp_path / "a.json"))
    _backend("<eos>").save(str(tmp_path / "b.json"))
    names = ["bytes", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert len({load_tokenizer(name).fingerprint() for name in names}) == 3


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer 'missing\.json' cannot be read: .*No such"):
        load_tokenizer("missing.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json' cannot be read"):
        load_tokenizer(tmp_path / "bad.json")
    _backend("[X]").save(str(tmp_path / "endless.json"))
    with pytest.raises(ValueError, match=r"endless\.json' has no end-of-text token; known are"):
        load_tokenizer(tmp_path / "endless.json")
