"""The data module gives every data node its own batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import Trainer

from worldlm.data import (
    BlockBatchSampler,
    Blocks,
    Corpus,
    CorpusDataModule,
    HubDataset,
    Mixture,
    PoissonBatchSampler,
    StandardLibrary,
    TextFiles,
    TrainedBPE,
)
from worldlm.federation.noise_key import NoiseKey
from worldlm.topology import Node, PrivacyOfExamples, Settings, Topology


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, TextFiles]:
    texts = {"alpha": "a" * 500, "beta": "b" * 90, "gamma": "é" * 250, "empty": " "}
    made = {}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        (tmp_path / f"{name}-held-out.txt").write_text(text + text[:45], encoding="utf-8")
        files = {"train": f"{tmp_path}/{name}.txt", "validation": f"{tmp_path}/{name}-held-out.txt"}
        made[name] = TextFiles(train=files["train"], validation=files["validation"])
    return made


def _topology(**settings: Settings) -> Topology:
    """Build a star; the name of a leaf is `corpus_anything`."""
    children = tuple(Node(name=name, corpus=name.partition("_")[0], settings=leaf) for name, leaf in settings.items())
    return Topology(name="star", root=Node(name="world", children=children))


def _attach(module: CorpusDataModule, topology: Topology, seq_len: int = 8, vocab_size: int = 257) -> CorpusDataModule:
    architecture = SimpleNamespace(max_seq_len=seq_len, vocab_size=vocab_size)
    lightning_module = SimpleNamespace(architecture=architecture)
    key = NoiseKey(bytes(32))
    trainer = SimpleNamespace(
        topology=topology,
        data_nodes=topology.data_nodes,
        lightning_module=lightning_module,
        noise_key=key,
        run_settings=SimpleNamespace(seed=0),
    )
    module.trainer = cast(Trainer, trainer)
    return module


def _module(corpora: dict[str, TextFiles], tmp_path: Path, num_workers: int = 0) -> CorpusDataModule:
    return CorpusDataModule(dict(corpora), batch_size=4, cache_dir=str(tmp_path / "cache"), num_workers=num_workers)


STEPS = Settings(num_local_steps=3)


def test_every_data_node_has_its_loaders(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    used = {name: corpora[name] for name in ("alpha", "gamma")}
    small = Settings(num_local_steps=5, batch_size=2)
    topology = _topology(alpha=STEPS, gamma=small, alpha_2=STEPS)
    module = _attach(_module(used, tmp_path), topology)
    module.prepare_data()
    module.setup("fit")
    train, validation = module.train_dataloader(), module.val_dataloader()
    assert list(train) == list(validation) == ["alpha", "gamma", "alpha_2"]
    assert [len(loader) for loader in train.values()] == [3, 5, 3]
    assert [batch.shape for batch in train["gamma"]] == [(2, 9)] * 5
    blocks = module.blocks["train"]["alpha"]
    assert isinstance(blocks, Blocks)
    assert blocks.packed.num_tokens == 501
    assert module.bytes_per_token == pytest.approx({"alpha": 545 / 546, "gamma": 590 / 591, "alpha_2": 545 / 546})


def test_validation_reads_all_blocks_in_order(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = _attach(_module({"alpha": corpora["alpha"]}, tmp_path), _topology(alpha=STEPS))
    module.setup()
    batches = list(module.val_dataloader()["alpha"])
    assert [len(batch) for batch in batches] == [4] * 17
    tokens = torch.cat(batches)
    assert tokens[:, :-1].flatten().tolist() == [97] * 544
    assert tokens[-1].tolist() == [97] * 9


def test_example_level_privacy_draws_poisson_batches(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    private = Settings(num_local_steps=400, example_privacy=PrivacyOfExamples(clip_norm=1.0))
    topology = _topology(alpha=private, alpha_2=STEPS)
    module = _attach(_module({"alpha": corpora["alpha"]}, tmp_path), topology)
    module.setup()
    loaders = module.train_dataloader()
    sampler = loaders["alpha"].batch_sampler
    assert isinstance(sampler, PoissonBatchSampler)
    assert sampler.sample_rate == 4 / 55  # 501 tokens, in disjoint blocks of 9
    assert isinstance(loaders["alpha_2"].batch_sampler, BlockBatchSampler)
    sizes = {len(batch) for batch in loaders["alpha"]}
    assert 0 in sizes
    assert len(sizes) > 3


def test_reading_does_not_change_the_global_generator(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = _attach(_module({"alpha": corpora["alpha"]}, tmp_path), _topology(alpha=STEPS))
    module.setup()
    before = torch.get_rng_state()
    assert len(list(module.train_dataloader()["alpha"])) == 3
    assert len(list(module.val_dataloader()["alpha"])) == 17
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(map(str, range(400))), encoding="utf-8")
    (tmp_path / "b.txt").write_text("held out " * 9, encoding="utf-8")
    corpus = TextFiles(train=f"{tmp_path}/a.txt", validation=f"{tmp_path}/b.txt")
    visits = {}
    for num_workers in (0, 2):
        module = _module({"alpha": corpus}, tmp_path, num_workers)
        _attach(module, _topology(alpha=STEPS)).setup()
        loader = module.train_dataloader()["alpha"]
        visits[num_workers] = [batch.tolist() for batch in loader]
        sampler = cast(BlockBatchSampler, loader.batch_sampler)
        sampler.start, sampler.length = 3, 2
        visits[num_workers] += [batch.tolist() for batch in loader]
    assert visits[0] == visits[2]
    assert len(visits[0]) == 5


@pytest.mark.parametrize(
    ("name", "seq_len", "message"),
    [
        ("alfa", 8, "node 'alfa': unknown corpus 'alfa'; known are .*; did you mean 'alpha'"),
        ("empty", 8, r"node 'empty', corpus 'empty' \(train\): there are no train documents"),
        ("beta", 95, r"node 'beta', corpus 'beta' \(train\): 91 tokens are fewer than a block"),
    ],
)
@pytest.mark.filterwarnings("ignore:no node uses")
def test_mistakes_name_node_and_corpus(
    corpora: dict[str, TextFiles], tmp_path: Path, name: str, seq_len: int, message: str
) -> None:
    module = _attach(_module(corpora, tmp_path), _topology(**{name: STEPS}), seq_len)
    with pytest.raises(ValueError, match=message):
        module.prepare_data()
        module.setup()


@pytest.mark.filterwarnings("ignore:no node uses")
def test_mistakes_in_files_name_node_and_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    found = TextFiles(train=f"{tmp_path}/a.jsonl")
    missing = TextFiles(train=f"{tmp_path}/b.jsonl")
    module = _module({"found": found, "missing": missing}, tmp_path)
    with pytest.raises(ValueError, match=r"node 'found', corpus 'found'.*a.jsonl:1: no field"):
        _attach(module, _topology(found=STEPS)).prepare_data()
    with pytest.raises(ValueError, match=r"node 'missing', corpus 'missing'.*no such file: .*b\.j"):
        _attach(module, _topology(missing=STEPS)).prepare_data()


def test_unused_corpora_are_warned_of(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = _attach(_module(corpora, tmp_path), _topology(alpha=STEPS))
    with pytest.warns(UserWarning, match="no node uses the corpora beta, gamma, empty"):
        module.prepare_data()


def test_the_vocabulary_of_the_model_must_cover_all_tokens(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = _attach(_module(corpora, tmp_path), _topology(alpha=STEPS), vocab_size=256)
    with pytest.raises(ValueError, match="tokenizer has 257 tokens, the model's vocab_size is 256"):
        module.setup()


def test_too_large_poisson_batches_name_the_node(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    private = Settings(num_local_steps=1, batch_size=12, example_privacy=PrivacyOfExamples(clip_norm=1.0))
    module = _attach(_module({"beta": corpora["beta"]}, tmp_path), _topology(beta=private))
    module.setup()
    with pytest.raises(ValueError, match="node 'beta', corpus 'beta'.*batch_size is 12.*10 blocks"):
        module.train_dataloader()


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"num_workers": -1}])
def test_settings_are_checked(setting: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="it must be at least"):
        CorpusDataModule({}, **setting)  # type: ignore[arg-type]


def test_a_trainer_without_a_topology_is_rejected() -> None:
    module = CorpusDataModule({})
    module.trainer = cast(Trainer, SimpleNamespace())
    with pytest.raises(ValueError, match="needs a trainer that has a topology"):
        module.prepare_data()


def test_a_recipe_can_set_every_option() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(CorpusDataModule, "data")
    corpora = {
        "manual": {"class_path": "StandardLibrary", "init_args": {"area": "topics"}},
        "files": {"class_path": "worldlm.data.TextFiles", "init_args": {"train": ["a*.txt"]}},
    }
    mixture = {"class_path": "Mixture", "init_args": {"corpora": ["manual", "files"], "weights": [1, 3.0]}}
    local = {"files": "b/{split}/*.txt"}
    arguments = {"corpora": {**corpora, "both": mixture}, "batch_size": 3, "local": local}
    settings = {"class_path": "CorpusDataModule", "init_args": arguments}
    module = parser.instantiate(parser.parse_object({"data": settings}))["data"]
    files = TextFiles(train="b/train/*.txt", validation="b/validation/*.txt")
    assert module.corpora == {"manual": StandardLibrary(area="topics"), "files": files}
    assert module.mixtures == {"both": Mixture(corpora=["manual", "files"], weights=[1, 3]), "all": Mixture()}
    assert module.batch_size == 3
    for tokenizer in ("bytes", {"class_path": "worldlm.data.TrainedBPE", "init_args": {"vocab_size": 300}}):
        settings = {"class_path": "CorpusDataModule", "init_args": arguments | {"tokenizer": tokenizer}}
        parser.instantiate(parser.parse_object({"data": settings}))


def test_a_mixture_reads_the_text_of_its_parts(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    known = {"alpha": corpora["alpha"], "gamma": corpora["gamma"], "all": Mixture()}
    module = CorpusDataModule(known, batch_size=4, cache_dir=str(tmp_path / "cache"))
    _attach(module, _topology(all=Settings(num_local_steps=31), alpha=STEPS))
    module.prepare_data()
    module.setup()
    sizes = {name: len(blocks) for name, blocks in module.blocks["train"].items()}
    assert sizes == {"all": 501 // 8 + 501 // 8, "alpha": 501 // 8}
    assert module.bytes_per_token["all"] == pytest.approx((545 + 590) / (546 + 591))
    first = torch.cat(list(module.train_dataloader()["all"]))
    assert len(first) == 124
    assert set(first.flatten().tolist()) == {97, 195, 169}
    assert len(list((tmp_path / "cache").glob("[ag]*-*"))) == 2  # nothing is packed twice


def test_weights_set_the_share_of_each_part(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    mixture = Mixture(corpora=["gamma", "alpha"], weights=[1, 4])
    known = {"alpha": corpora["alpha"], "gamma": corpora["gamma"], "both": mixture}
    module = CorpusDataModule(known, batch_size=4, cache_dir=str(tmp_path / "cache"))
    _attach(module, _topology(both=Settings(num_local_steps=2500)))
    module.setup()
    first = [row[0] for batch in module.train_dataloader()["both"] for row in batch[:, 2:3].tolist()]
    assert sum(token == 97 for token in first) == pytest.approx(8000, abs=40)  # a few rows begin with an end of text
    private = Settings(num_local_steps=1, example_privacy=PrivacyOfExamples(clip_norm=1.0))
    _attach(module, _topology(both=private))
    with pytest.raises(ValueError, match="node 'both', corpus 'both'.*weights of a mixture cannot be combined with"):
        module.train_dataloader()


@pytest.mark.parametrize(
    ("defined", "members"),
    [({}, ["alpha", "beta"]), ({"all": Mixture(corpora=["beta"])}, ["beta"]), ({"all": None}, ["alpha"])],
    ids=["default", "mixture", "text"],
)
def test_all_mixes_all_corpora_unless_the_recipe_defines_it(
    corpora: dict[str, TextFiles], tmp_path: Path, defined: dict[str, Corpus | None], members: list[str]
) -> None:
    known: dict[str, Corpus] = {"alpha": corpora["alpha"], "beta": corpora["beta"]}
    extra = {name: corpora["alpha"] if corpus is None else corpus for name, corpus in defined.items()}
    module = CorpusDataModule({**known, **extra}, batch_size=4, cache_dir=str(tmp_path / "cache"))
    _attach(module, _topology(all=STEPS, alpha=Settings(num_local_steps=0), beta=STEPS))
    module.prepare_data()
    module.setup()
    sizes = {name: len(blocks) for name, blocks in module.blocks["train"].items()}
    assert sizes["alpha"] != sizes["beta"]
    assert sizes["all"] == sum(sizes[name] for name in members)


def test_corpora_that_only_all_uses_are_warned_of(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    known: dict[str, Corpus] = {name: corpora[name] for name in ("alpha", "gamma")}
    listens = Settings(num_local_steps=0)
    module = CorpusDataModule(known, batch_size=4, cache_dir=str(tmp_path / "cache"))
    with pytest.warns(UserWarning, match="no node except that of 'all' uses the corpora gamma"):
        _attach(module, _topology(all=STEPS, alpha=listens)).prepare_data()
    _attach(module, _topology(all=STEPS)).prepare_data()  # where all read the mixture, nothing is odd


def test_a_listener_draws_no_batches_for_private_training(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    """The text of a listener may be shorter than a Poisson-sampled batch, because it never trains."""
    private = Settings(num_local_steps=0, batch_size=99, example_privacy=PrivacyOfExamples(clip_norm=1.0))
    module = CorpusDataModule({"beta": corpora["beta"], "alpha": corpora["alpha"]}, cache_dir=str(tmp_path / "cache"))
    _attach(module, _topology(beta=private, alpha=STEPS)).setup()
    assert isinstance(module.train_dataloader()["beta"].batch_sampler, BlockBatchSampler)


def test_a_limited_validation_of_a_mixture_reads_all_parts(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    known = {"alpha": corpora["alpha"], "gamma": corpora["gamma"], "all": Mixture()}
    module = CorpusDataModule(known, batch_size=4, cache_dir=str(tmp_path / "cache"))
    _attach(module, _topology(all=STEPS)).setup()
    first = next(iter(module.val_dataloader()["all"]))
    assert set(first.flatten().tolist()) == {97, 195, 169}
    assert sum(map(len, module.val_dataloader()["all"])) == 545 // 8 + 590 // 8


def test_mistakes_in_a_mixture_name_the_node(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = CorpusDataModule({"alpha": corpora["alpha"], "both": Mixture(corpora=["alfa"])})
    with pytest.raises(ValueError, match="node 'both', corpus 'both': unknown corpus 'alfa'.*did you mean 'alpha'"):
        _attach(module, _topology(both=STEPS)).prepare_data()
    module = CorpusDataModule({"beta": corpora["beta"], "both": Mixture()}, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"node 'both', corpus 'both' \(train\): beta: 91 tokens are fewer than a bl"):
        _attach(module, _topology(both=STEPS), seq_len=95).setup()


def test_local_files_replace_a_corpus(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.jsonl").write_text('{"body": "aaaaaaaaaaaa"}\n{"body": "bbbbbbbbbbbb"}\n')
    (tmp_path / "here" / "validation.jsonl").write_text('{"body": "cccccccccccc"}\n')
    hub = HubDataset(path="far/away", field="body", where={"kind": "x"}, max_documents=1)
    module = CorpusDataModule(
        {"far": hub}, root=str(tmp_path), local={"far": "here/{split}.jsonl"}, cache_dir=str(tmp_path / "cache")
    )
    _attach(module, _topology(far=STEPS))
    module.prepare_data()
    module.setup()
    assert module.blocks["train"]["far"][0].tolist() == [97] * 9
    assert len(module.blocks["train"]["far"]) == 1
    assert module.blocks["validation"]["far"][0].tolist() == [99] * 9
    with pytest.raises(ValueError, match=r"local.fare: there is no corpus of that name.*did you mean 'far'.*known are"):
        CorpusDataModule({"far": hub}, local={"fare": "x"})


def test_a_tokenizer_is_trained_on_all_corpora_of_the_recipe(tmp_path: Path) -> None:
    for name, word in (("a", "abba "), ("b", "caffe ")):
        (tmp_path / f"{name}.txt").write_text(word * 90)
    corpora: dict[str, Corpus] = {
        name: TextFiles(train=f"{tmp_path}/{name}.txt", validation=f"{tmp_path}/c.txt") for name in "ab"
    }
    (tmp_path / "c.txt").write_text("abba caffe " * 30)
    tokens = []
    for used in ("a", "b"):
        module = CorpusDataModule(corpora, TrainedBPE(vocab_size=265), cache_dir=str(tmp_path / "cache"))
        _attach(module, _topology(**{used: STEPS}), vocab_size=265)
        with pytest.warns(UserWarning, match="no node uses the corpora"):
            module.prepare_data()
        module.setup()
        tokens.append(list(module.tokenizer.encode_batch(["abba caffe"])[0]))
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) < 6


def test_unknown_corpora_are_reported_before_anything_is_packed(corpora: dict[str, TextFiles], tmp_path: Path) -> None:
    module = CorpusDataModule(dict(corpora), TrainedBPE(), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="unknown corpus 'alfa'"):
        _attach(module, _topology(alfa=STEPS)).prepare_data()
    assert not (tmp_path / "cache").exists()
