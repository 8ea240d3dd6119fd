"""Every kind of tokenizer as transformers opens it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

from worldlm.commands.inference.export import write_tokenizer
from worldlm.data import ByteTokenizer, FileTokenizer, TextFiles, Tokenizer, TrainedBPE

_TEXTS = ["the cat sat", "l'été à 9 h 30,  deux fois\n", "a </s> b <|endoftext|> c", "нещо 🙂\t\x00", " "]


def _bytes(folder: Path) -> Tokenizer:
    return ByteTokenizer()


def _trained(folder: Path) -> Tokenizer:
    (folder / "text.txt").write_text("\n\n".join(_TEXTS * 40))
    (folder / "more.txt").write_text("the cat sat on the mat " * 40)
    corpus = TextFiles(train=str(folder / "more.txt"), validation=str(folder / "text.txt"))
    return TrainedBPE(vocab_size=300).load({"text": corpus}, folder)


def _unigram(folder: Path) -> Tokenizer:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    letters = sorted({letter for text in _TEXTS for letter in text} | {"▁"})
    pieces += [(letter, -8.0) for letter in letters if letter != " "] + [("▁the", -3.0), ("▁cat", -3.0)]
    backend = Backend(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    backend.enable_truncation(3)
    backend.save(str(folder / "unigram.json"))
    return FileTokenizer(folder / "unigram.json")


def _unmarked(folder: Path) -> Tokenizer:
    """A byte-level BPE with dropout whose end of text is not marked as special."""
    content = json.loads(_trained(folder).to_json())
    content["model"]["dropout"] = 0.9
    for token in content["added_tokens"]:
        token["special"] = False
    (folder / "unmarked.json").write_text(json.dumps(content))
    return FileTokenizer(folder / "unmarked.json")


@pytest.mark.filterwarnings("ignore:the text gave a tokenizer")
@pytest.mark.parametrize("make", [_bytes, _trained, _unigram, _unmarked])
def test_it_encodes_as_the_run_did(make: Callable[[Path], Tokenizer], tmp_path: Path) -> None:
    ours, folder = make(tmp_path), tmp_path / "out"
    folder.mkdir()
    write_tokenizer(folder, ours, 64)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs(_TEXTS)["input_ids"] == [list(tokens) for tokens in ours.encode_batch(_TEXTS)]
    assert (theirs.eos_token_id, theirs.model_max_length) == (ours.end_of_text, 64)
    for text in _TEXTS:
        tokens = [int(token) for token in ours.encode_batch([text])[0]]
        assert theirs.decode([*tokens, ours.end_of_text], skip_special_tokens=True) == ours.decode(tokens)
