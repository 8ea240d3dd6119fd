"""Tokenizers: bytes, files and the Hugging Face Hub."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from fake_hub import FakeHub, fake_hub
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from worldlm.data import ByteTokenizer, FileTokenizer, load_tokenizer
from worldlm.data.encoders import TextEncoder
from worldlm.data.encoding import encode
from worldlm.data.tokenizers import MAX_BYTES

_TEXTS = [
    "the cat's mat is on a map, a d k m n p s u < / >",
    "un chat <b>noir</b> et l'été; 3 < 4",
    "кот и мат > хлеб/сол",
]
_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def _backend(end: str = "<|endoftext|>") -> Backend:
    vocabulary = {end: 0, "a": 1, "b": 2, "[UNK]": 3}
    backend = Backend(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([end])
    return backend


def _like_xlm_roberta() -> Backend:
    """A SentencePiece unigram model with the special tokens in its vocabulary, all at a score of zero."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(_TEXTS * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return backend


def _like_bloom() -> Backend:
    """A byte-level BPE with its own split pattern and SentencePiece's names of special tokens."""
    backend = Backend(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…])]+"), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    settings_ = {"vocab_size": 300, "special_tokens": ["<unk>", "<s>", "</s>", "<pad>"], "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **settings_)
    backend.train_from_iterator(_TEXTS * 9, trainer)
    return backend


def _unmarked(backend: Backend) -> Backend:
    """Return a tokenizer whose special tokens are not marked as such in its file."""
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = False
    return Backend.from_str(json.dumps(content))


def _like_phi() -> Backend:
    """A byte-level BPE to which special tokens were added as ordinary ones, beside a placeholder of its text."""
    backend = _like_bloom()
    backend.add_tokens([AddedToken("<|user|>", rstrip=True), "|||EMAIL|||"])
    return _unmarked(backend)


def _like_llama() -> Backend:
    """A BPE without pre-tokenizer, whose merges spell the end of text within a word."""
    pieces = ["<unk>", "<s>", "</s>", "<", "/", "s", ">", "</", "s>", "▁", "▁<", *map(chr, range(97, 123))]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "<"), ("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>")]
    backend = Backend(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def _like_bert() -> Backend:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"[]abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    backend = Backend(models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(pieces[:5])
    return backend


def test_bytes_round_trip() -> None:
    tokenizer = load_tokenizer("bytes")
    texts = ["a", "", "нещо 🙂"]
    encoded = tokenizer.encode_batch(texts)
    assert [list(ids) for ids in encoded] == [list(text.encode()) for text in texts]
    decoded = [tokenizer.decode([*np.asarray(ids).tolist(), 256]) for ids in encoded]
    assert decoded == texts
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode("é".encode()[:1]) == "\ufffd"


def test_truncation_padding_and_templates_of_a_file_are_ignored(tmp_path: Path) -> None:
    backend = _backend()
    backend.enable_truncation(2)
    backend.enable_padding(length=9)
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert [list(ids) for ids in tokenizer.encode_batch(["a b a", "b", ""])] == [[1, 2, 1], [2], []]
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (4, 0)
    assert tokenizer.decode([1, 2, 0]) == "a b"


@pytest.mark.parametrize(("size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_tokens_use_the_smallest_dtype(tmp_path: Path, size: int, dtype: type) -> None:
    backend = Backend(models.WordLevel({"</s>": 0, "[UNK]": 1, "last": size - 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    (tokens,) = tokenizer.encode_batch(["last"])
    assert (tokenizer.vocab_size, np.asarray(tokens).dtype, list(tokens)) == (size, dtype, [size - 1])


def test_a_unigram_model_of_sentencepiece(tmp_path: Path) -> None:
    backend = _like_xlm_roberta()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (backend.get_vocab_size(), 2)
    for text in _TEXTS:
        (tokens,) = tokenizer.encode_batch([text])
        assert list(tokens) == backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode([*list(tokens), 2]) == text


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from([*_SPECIAL, "cat", " ", "<", "/s>", "s>", "l'été"]), max_size=6))
@example(parts=["cat", "</s>", "</s>", " ", "<s>", "cat"])
@pytest.mark.parametrize("make", [_like_xlm_roberta, _like_bloom])
def test_no_text_becomes_a_special_token(make: Callable[[], Backend], parts: list[str], tmp_path: Path) -> None:
    if not (tmp_path / "tokenizer.json").exists():
        make().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    text = "".join(parts)
    (tokens,) = tokenizer.encode_batch([text])
    special = {tokenizer.end_of_text, *range(4)}
    assert not special & set(np.asarray(tokens).tolist())
    assert tokenizer.decode(list(tokens)).split() == text.split()


def test_special_tokens_in_a_document_are_plain_text(tmp_path: Path) -> None:
    _backend("</s>").save(str(tmp_path / "tokenizer.json"))
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode("a </s> b").ids == [1, 0, 2]
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert list(tokenizer.encode_batch(["a </s> b"])[0]) == [1, 3, 3, 2]


@pytest.mark.parametrize("make", [_backend, _like_xlm_roberta, _like_bloom])
def test_a_pickled_tokenizer_encodes_identically(make: Callable[[], Backend], tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    again = pickle.loads(pickle.dumps(tokenizer))
    texts = [*_TEXTS, "a <|endoftext|> </s> b"]
    expected = [list(tokens) for tokens in tokenizer.encode_batch(texts)]
    assert [list(tokens) for tokens in again.encode_batch(texts)] == expected
    assert again.fingerprint() == tokenizer.fingerprint()


@settings(max_examples=50)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@example(text="a <|endoftext|> \x00\r\n\t b")
def test_the_byte_tokenizer_can_be_written_as_a_file(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bytes", numbered=True) / "tokenizer.json"
    path.write_text(ByteTokenizer().to_json(), encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert list(tokenizer.encode_batch([text])[0]) == list(text.encode())
    assert tokenizer.decode([*text.encode(), 256]) == text


@pytest.mark.parametrize("make", [_backend, _like_xlm_roberta, _like_bloom])
def test_a_written_tokenizer_encodes_identically(make: Callable[[], Backend], tmp_path: Path) -> None:
    make().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    (tmp_path / "again.json").write_text(tokenizer.to_json(), encoding="utf-8")
    again = load_tokenizer(tmp_path / "again.json")
    texts = [*_TEXTS, "a <|endoftext|> </s> b <s>"]
    assert [list(ids) for ids in again.encode_batch(texts)] == [list(ids) for ids in tokenizer.encode_batch(texts)]
    assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)
    assert again.to_json() == tokenizer.to_json()


def test_a_special_token_is_preferred_as_the_end_of_text(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"</s>": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "plain.json"))
    assert load_tokenizer(tmp_path / "plain.json").end_of_text == 0
    backend.add_special_tokens(["[SEP]"])
    backend.save(str(tmp_path / "special.json"))
    assert load_tokenizer(tmp_path / "special.json").end_of_text == 1


_CONTROLS = ["</s>", "<s>", "<pad>", "<unk>", "<|user|>", "[SEP]", "[PAD]", "[CLS]"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from([*_CONTROLS, "cat", "s", " ", "<", "/s>", "[", "SEP]"]), max_size=6))
@example(parts=[*_CONTROLS, "cat", "</s>", "</s>", " ", "</s>", "cat"])
@pytest.mark.parametrize(
    "make",
    [
        _like_llama,
        _like_bert,
        _like_phi,
        lambda: _unmarked(_like_xlm_roberta()),
        lambda: _unmarked(_like_bloom()),
        lambda: _unmarked(_like_llama()),
        lambda: _unmarked(_backend("</s>")),
        lambda: Backend(models.WordLevel({"</s>": 0, "cat": 1, "[UNK]": 2}, unk_token="[UNK]")),
    ],
)
def test_no_text_becomes_a_control_token(make: Callable[[], Backend], parts: list[str], tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    if not file.exists():
        make().save(str(file))
        (tmp_path / "again.json").write_text(load_tokenizer(file).to_json(), encoding="utf-8")
    vocabulary = Backend.from_file(str(file)).get_vocab()
    control = {vocabulary[text] for text in set(_CONTROLS) - {"<unk>"} if text in vocabulary}
    for name in (file, tmp_path / "again.json"):
        tokenizer = load_tokenizer(name)
        tokens = np.asarray(tokenizer.encode_batch(["".join(parts)])[0]).tolist()
        assert not (control | {tokenizer.end_of_text}) & set(tokens)
        assert tokenizer.decode([*tokens, tokenizer.end_of_text]) == tokenizer.decode(tokens)


def test_an_unmarked_token_that_is_no_control_token_stays_one_token(tmp_path: Path) -> None:
    _like_phi().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    (tokens,) = tokenizer.encode_batch(["a|||EMAIL|||"])
    assert len(tokens) == 2
    assert tokenizer.decode(list(tokens)) == "a|||EMAIL|||"


def test_the_end_of_text_must_not_stand_for_unknown_characters(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer.json' cannot be used: unknown characters .* '</s>'"):
        load_tokenizer(tmp_path)


def test_sampling_is_switched_off(tmp_path: Path) -> None:
    plain, dropping, sampling = (json.loads(_like_bloom().to_str()) for _ in range(3))
    dropping["model"]["dropout"] = 0.5
    sampling["model"] = json.loads(_like_xlm_roberta().to_str())["model"] | {"alpha": 0.1, "nbest_size": -1}
    tokenizers = []
    for number, content in enumerate((plain, dropping, sampling)):
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        tokenizers.append(load_tokenizer(tmp_path / f"{number}.json"))
    expected, *others = [[list(ids) for ids in tokenizer.encode_batch(_TEXTS * 20)] for tokenizer in tokenizers]
    assert others[0] == expected
    assert all(ids == others[1][i % len(_TEXTS)] for i, ids in enumerate(others[1]))
    assert tokenizers[1].to_json() == tokenizers[0].to_json()  # so an export does not drop merges either


@pytest.mark.parametrize("make", [_backend, _like_xlm_roberta, _like_bloom, lambda: _unmarked(_like_bloom())])
def test_a_run_folder_has_the_fingerprint_of_the_file(make: Callable[[], Backend], tmp_path: Path) -> None:
    make().save(str(tmp_path / "file"))  # with line breaks
    tokenizer = FileTokenizer(tmp_path / "file")
    (tmp_path / "kept").write_text(tokenizer.to_json())
    assert (tmp_path / "kept").read_text() != (tmp_path / "file").read_text()
    assert FileTokenizer(tmp_path / "kept").fingerprint() == tokenizer.fingerprint()


def test_fingerprints_depend_on_the_file(tmp_path: Path) -> None:
    _backend("</s>").save(str(tmp_path / "a.json"))
    _backend("<eos>").save(str(tmp_path / "b.json"))
    names = ["bytes", str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    assert len({load_tokenizer(name).fingerprint() for name in names}) == 3


def _slow_regex(path: Path) -> Path:
    """Write a tokenizer whose regular expression takes exponential time, until the library gives up with a panic."""
    backend = _backend()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("(a|aa)+$"), "isolated")
    backend.save(str(path))
    return path


def test_a_panic_of_the_library_becomes_one_line(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(_slow_regex(tmp_path / "slow.json"))
    assert tokenizer.encode_batch(["b"])[0].tolist() == [2]
    with pytest.raises(
        ValueError, match=r"^tokenizer '.*slow\.json' cannot encode a text: Onig: Regex search error.*$"
    ):
        tokenizer.encode_batch(["a" * 100 + "b"])
    with pytest.raises(ValueError, match=r"slow\.json' cannot encode a text: Onig"):
        list(
            encode([("tag", ["a" * 100 + "b"])], lambda _, texts: TextEncoder(tokenizer).encode(texts))
        )  # in its thread


def test_text_that_a_tokenizer_cannot_encode(tmp_path: Path) -> None:
    backend = Backend(models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "narrow.json"))
    with pytest.raises(ValueError, match=r"^tokenizer '.*narrow\.json' cannot encode a text: .*UNK"):
        FileTokenizer(tmp_path / "narrow.json").encode_batch(["b"])


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ValueError, match=r"bad\.json' cannot be read"):
        load_tokenizer(tmp_path / "bad.json")
    _backend("[X]").save(str(tmp_path / "endless.json"))
    with pytest.raises(ValueError, match=r"endless\.json' has no end-of-text token; known are"):
        load_tokenizer(tmp_path / "endless.json")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("byte", r"'byte': it must be bytes, a tokenizer\.json .*; did you mean 'bytes'\?"),
        ("mine", r"'mine': it must be bytes, .*; did you mean 'mine2'\?"),
        ("", r"'': it must be bytes"),
        ("a/b/c", r"'a/b/c': it must be bytes"),
        ("mine.json", r"'mine\.json': there is no such file or folder; did you mean 'my\.json'\?"),
        ("owner/name.json", r"'owner/name\.json': there is no folder 'owner'"),
        ("./owner/name", r"'\./owner/name': there is no folder 'owner'"),
        ("~/no/such", r"'~/no/such': there is no folder '.*/no'"),
        ("~nobody-at-all/x.json", r"'~nobody-at-all/x\.json': there is no folder '~nobody-at-all'"),
        ("empty", r"'empty': the folder has no tokenizer\.json; .*from_pretrained\('empty'\)\.save_pretrained"),
    ],
)
def test_an_unknown_name_is_rejected_with_a_hint(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for known in ("mine2", "my.json"):
        (tmp_path / known).touch()
    with pytest.raises(ValueError, match=f"^tokenizer {expected}.*$"):
        load_tokenizer(name)


def test_an_existing_path_takes_precedence_over_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("owner/name", "other"):
        (tmp_path / name).mkdir(parents=True)
        _backend("</s>").save(str(tmp_path / name / "tokenizer.json"))
        assert load_tokenizer(name).end_of_text == 0
    assert hub.requests == []


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(monkeypatch) as served:
        yield served


def test_only_the_tokenizer_is_fetched_from_the_hub_and_cached(tmp_path: Path, hub: FakeHub) -> None:
    hub.files["/owner/name/resolve/main/tokenizer.json"] = _backend("</s>").to_str().encode()
    hub.files["/owner/name/resolve/v1.0/tokenizer.json"] = _backend("<eos>").to_str().encode()
    newest, tagged = (load_tokenizer(name, tmp_path) for name in ("owner/name", "owner/name@v1.0"))
    assert newest.fingerprint() != tagged.fingerprint()
    assert {line.rpartition("/")[2] for line in hub.requests} == {"tokenizer.json"}
    hub.files.clear()
    hub.status, hub.requests = 503, []
    assert load_tokenizer("owner/name", tmp_path).fingerprint() == newest.fingerprint()
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "EntryNotFound", r"the repository has no tokenizer\.json .*mt5.*from_pretrained\('owner/name'\)"),
        (404, "RepoNotFound", r"no file, folder or repository on the Hub has that name"),
        (404, "RevisionNotFound", r"the repository has no revision 'v2'"),
        (403, "GatedRepo", r"access to the repository is restricted: .* HF_TOKEN"),
        (
            503,
            "",
            r"tokenizer.json cannot be fetched from the Hugging Face Hub \(.*503.*\) and is not in its cache; .*",
        ),
    ],
)
def test_an_error_of_the_hub_is_reported_in_a_line_without_retries(
    status: int, code: str, expected: str, tmp_path: Path, hub: FakeHub
) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(ValueError, match=f"^tokenizer 'owner/name@v2': {expected}.*$"):
        load_tokenizer("owner/name@v2", tmp_path)
    assert len(hub.requests) == 1


def test_offline_mode_sends_no_request(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot be fetched .*\(.*offline mode.*\) and is not in its cache.*$"):
        load_tokenizer("owner/name", tmp_path)
    assert hub.requests == []


def test_an_unreachable_hub_is_reported_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_port  # no server listens there once it is closed
    template = f"http://127.0.0.1:{port}/{{repo_id}}/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again"))
    with pytest.raises(ValueError, match=r"^tokenizer 'owner/name': tokenizer.json cannot be fetched .*$"):
        load_tokenizer("owner/name", tmp_path)
    with pytest.raises(ValueError, match=r"^tokenizer 'a--b/c': this is not a valid name on the Hub: .*$"):
        load_tokenizer("a--b/c", tmp_path)


def test_a_file_that_would_take_minutes_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 150_000_000)  # takes no space on the disk
    for name in (path, tmp_path):
        with pytest.raises(ValueError, match=r"tokenizer.json' cannot be read: it has 250 MB; 100 MB are allowed"):
            load_tokenizer(name)
