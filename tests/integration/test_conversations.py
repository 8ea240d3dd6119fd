"""Worlds that train on conversations."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chats import MARKED, VOCAB_SIZE, chats, turns, write_jsonl, write_tokenizer
from families import CONFIGS

from worldlm.callbacks import Averaging, ExamplePrivacy, NodeMetrics, TokenRows
from worldlm.cli import main
from worldlm.data import Conversations, CorpusDataModule
from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split, Transformer

Make = Callable[..., Any]
SIZES = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=64, vocab_size=VOCAB_SIZE)


def make_module(name: str = "own", seed: int = 0) -> LanguageModule:
    rest: dict[str, Any] = {"split": Split(last_blocks=1), "optimizer": OptimizerSettings(lr=1e-2, warmup_steps=1)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "own":
            return LanguageModule(SIZES, **rest)
        config = {**CONFIGS[name], "vocab_size": VOCAB_SIZE}
        return LanguageModule(transformer=Transformer(config=config, max_seq_len=64), **rest)


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[[], CorpusDataModule]:
    """Return a builder of the data of nodes a and b: conversations of different lengths, by 5 persons."""
    write_tokenizer(tmp_path / "tokenizer", MARKED)
    corpora = {}
    for name in "ab":
        records = [{**chat, "who": f"{n % 5}"} for n, chat in enumerate(chats(30, f"{name} {{n}}"))]
        file = write_jsonl(tmp_path / f"{name}.jsonl", records)
        corpora[name] = Conversations(train=str(file), person="who", validation_fraction=0.3)
    settings: dict[str, Any] = {"tokenizer": str(tmp_path / "tokenizer"), "cache_dir": str(tmp_path / "cache")}
    return lambda: CorpusDataModule(dict(corpora), batch_size=2, **settings)


@pytest.mark.parametrize("name", ["own", pytest.param("llama_untied", marks=pytest.mark.slow)])
def test_resume_from_every_step(
    name: str,
    star: Make,
    fit: Make,
    make_data: Make,
    save_everywhere: Make,
    snapshot: Make,
    differences: Make,
) -> None:
    def train(*callbacks: Any, seed: int = 0, **options: Any) -> Any:
        method = [TokenRows(), Averaging(), NodeMetrics(), *callbacks]
        return fit(star("ab"), method, module=make_module(name, seed), data=make_data(), **options)

    saver = save_everywhere("on_train_batch_end", "on_train_epoch_end")
    whole = snapshot(train(saver))
    assert len(saver.saved) == 2 * (2 * 2 + 1)
    for path in saver.saved:
        assert differences(snapshot(train(resume=path, seed=9)), whole) == [], path.name


def test_token_counts_and_perplexities_refer_to_the_answers(star: Make, fit: Make, make_data: Make) -> None:
    data = make_data()
    metrics = NodeMetrics()
    trainer = fit(star("ab"), [Averaging(), metrics], module=make_module(), data=data, max_epochs=1)
    for name in "ab":
        rows = data.blocks["train"][name]
        mean = rows.num_targets / len(rows)
        assert trainer.world.states[name].num_tokens == round(2 * 2 * mean)
        assert mean < 40 < 64
        held_out = data.blocks["validation"][name]
        batch = held_out.__getitems__(list(range(len(held_out))))
        evaluation = trainer.lightning_module.evaluate([batch])
        assert evaluation.num_tokens == int((batch["labels"] != -100).sum()) == held_out.num_targets
        (packed,) = held_out.parts
        assert packed.targets is not None
        answers = [token for token, is_target in zip(packed.tokens, packed.targets, strict=True) if is_target]
        assert held_out.bytes_per_token == sum(token < 256 for token in answers) / len(answers)


@pytest.mark.parametrize("unit", ["document", "person"])
def test_example_privacy_of_conversations_and_persons(unit: str, star: Make, fit: Make, make_data: Make) -> None:
    privacy = f"example_privacy: {{clip_norm: 1.0, noise_multiplier: 1.0, unit: {unit}}}"
    data, steps = make_data(), []

    class Watch(NodeMetrics):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            steps.append({key: tensor.clone() for key, tensor in batch.items()})

    topology = star("ab", privacy, a="settings: {batch_size: 1, num_local_steps: 8}")
    trainer = fit(topology, [Averaging(), ExamplePrivacy(), Watch()], module=make_module(), data=data)
    assert len(steps) == 2 * (8 + 2)
    assert {0, 1} <= {len(batch["labels"]) for batch in steps}  # Poisson sampling draws empty batches too
    for batch in steps:  # each example is one conversation
        assert batch["labels"].dtype == torch.int32
        assert ((batch["position_ids"] == 1).sum(1) == 1).all()
    account = trainer.find_callback(ExamplePrivacy)
    for name in "ab":
        node = trainer.topology.nodes[name]
        (epsilon,) = account.node_figures(node, trainer.world.states[name]).values()
        assert 0 < epsilon < math.inf
        rows = data.blocks["train"][name]
        assert len(rows.unit_starts) - 1 == (5 if unit == "person" else rows.num_conversations)


RECIPE = """
seed_everything: 1
federation: {topology: tree.yaml}
model:
  architecture: {num_blocks: 2, d_model: 16, num_heads: 2, max_seq_len: 64, vocab_size: 259}
  split: {last_blocks: 1}
  optimizer: {lr: 3.0e-3, warmup_steps: 2}
data:
  tokenizer: tokenizer
  batch_size: 4
  cache_dir: cache
  corpora:
    a: {class_path: worldlm.data.Conversations, init_args: {train: a.jsonl, validation_fraction: 0.2}}
    b: {class_path: worldlm.data.Conversations, init_args: {train: b.jsonl, validation_fraction: 0.2}}
trainer: {max_epochs: 2, limit_val_batches: 1}
"""
TREE = """
name: pair
settings: {num_local_steps: 3}
root:
  name: world
  children: [{name: a, corpus: a}, {name: b, corpus: b}]
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two files of conversations, a tokenizer with a chat template, a topology and a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    write_tokenizer(Path("tokenizer"), eos_token="<|im_end|>")
    write_jsonl(Path("a.jsonl"), [*chats(60), {"messages": turns("too long", "x" * 90)}])
    pairs = [{"prompt": f"add {n} and {n}", "completion": f"{2 * n}"} for n in range(60)]
    write_jsonl(Path("b.jsonl"), pairs)
    Path("tree.yaml").write_text(TREE)
    Path("chat.yaml").write_text(RECIPE)
    return tmp_path


def run(line: str, expected: int = 0) -> None:
    assert main(line.split()) == expected, line


@pytest.mark.filterwarnings("ignore:.*a. 1 of .* conversations have more tokens:UserWarning")
def test_all_commands(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = "--recipe chat.yaml --recipe methods/worldlm"
    run(f"prepare {recipes}")
    found = capsys.readouterr()
    assert "a: a, train " in found.out
    assert " conversations in " in found.out
    assert "% padding), validation " in found.out
    run(f"topology show tree.yaml {recipes}")
    run(f"fit {recipes} --trainer.enable_progress_bar false")
    folder = "runs/chat-worldlm"
    run(f"evaluate {folder}")
    matrix = json.loads(Path(folder, "version_0/evaluation/matrix.json").read_text())
    results = json.loads(Path(folder, "version_0/results.json").read_text())
    last = results["rounds"][-1]["nodes"]["a"]
    (scores,) = [node["scores"]["a"] for node in matrix["nodes"] if node["node"] == "a"]
    assert scores["perplexity"] == pytest.approx(last["after_fit"]["perplexity"], rel=1e-4)
    assert scores["bits_per_byte"] == pytest.approx(last["after_fit"]["bits_per_byte"], rel=1e-4)
    assert results["data_nodes"]["a"]["text"]
    run(f"generate {folder} hello --node a --max_new_tokens 4")
    run(f"report {folder}")
    run(f"topology estimate {recipes} --tokens_per_second 1000")
    run(f"export {folder} --node a --out model")

    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, model = AutoTokenizer.from_pretrained("model"), AutoModelForCausalLM.from_pretrained("model")
    assert model.config.eos_token_id == theirs.eos_token_id == 258
    prompt = theirs.apply_chat_template(turns("hi"), add_generation_prompt=True, return_dict=False)
    assert prompt == [257, *b"user\nhi", 258, 10, 257, *b"assistant\n"]


@pytest.mark.filterwarnings("ignore:no node except that of 'all' uses:UserWarning")
def test_mistakes_take_one_line(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def errors(change: Callable[[str], str]) -> str:
        Path("chat.yaml").write_text(change(RECIPE))
        capsys.readouterr()
        run("prepare --recipe chat.yaml", expected=2)
        return capsys.readouterr().err

    bloom = json.dumps({"model_type": "bloom", "vocab_size": 259, "hidden_size": 32, "n_layer": 2, "n_head": 2})
    line = "architecture: {num_blocks: 2, d_model: 16, num_heads: 2, max_seq_len: 64, vocab_size: 259}"
    error = errors(lambda text: text.replace(line, f"transformer: {{config: {bloom}, max_seq_len: 64}}"))
    assert "conversations (a, b) are not possible with this model: it is not verified that bloom keeps" in error
    write_jsonl(Path("a.jsonl"), [*chats(2), {"messages": turns("a", "b", "c", "d")}])
    error = errors(lambda text: text.replace("tokenizer: tokenizer", "tokenizer: bytes"))
    assert "node 'a', corpus 'a': a.jsonl:3: the tokenizer has no chat template, so a conversation must be" in error
    write_jsonl(Path("a.jsonl"), chats(60))
    mixed = "b: {class_path: worldlm.data.TextFiles, init_args: {train: b.jsonl, field: prompt}}"
    old = "b: {class_path: worldlm.data.Conversations, init_args: {train: b.jsonl, validation_fraction: 0.2}}"
    Path("tree.yaml").write_text(TREE.replace("corpus: b", "corpus: all"))
    error = errors(lambda text: text.replace(old, mixed))
    assert "plain text (b) and conversations (a) cannot be mixed in one node" in error


def test_a_run_on_plain_text_keeps_no_chat_template(desk: Path) -> None:
    files = [{"text": "the sea came in and went out. " * 4 + str(n)} for n in range(60)]
    for name in "ab":
        write_jsonl(Path(f"{name}.jsonl"), files)
    Path("chat.yaml").write_text(RECIPE.replace("Conversations", "TextFiles"))
    run("fit --recipe chat.yaml --recipe methods/fedavg --trainer.enable_progress_bar false")
    assert not Path("runs/chat-fedavg/version_0/tokenizer_config.json").exists()
    run("export runs/chat-fedavg --node a --out model")
    settings = json.loads(Path("model/tokenizer_config.json").read_text())
    assert settings["split_special_tokens"]
    assert settings["eos_token"] == "<|endoftext|>"
    assert "chat_template" not in settings


def test_a_pair_needs_no_chat_template(desk: Path) -> None:
    Path("tree.yaml").write_text(TREE.replace("corpus: a", "corpus: b"))
    recipe = RECIPE.replace("tokenizer: tokenizer", "tokenizer: bytes")
    lines = [line for line in recipe.splitlines() if not line.startswith("    a:")]
    Path("chat.yaml").write_text("\n".join(lines))
    run("fit --recipe chat.yaml --recipe methods/fedavg --trainer.enable_progress_bar false")
    run("evaluate runs/chat-fedavg")
