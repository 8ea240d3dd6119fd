"""Models of transformers: their logits, blocks, folders, and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS, check_example_gradients

from worldlm.models import Architecture, LanguageModule, Split, Transformer, generate

FAST = ("gpt2", "llama_untied")
"""In the default suite: one with learnt positions, and one whose head is not tied."""

FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]

EXACT = ("gpt2", "gpt_neox", "llama", "llama_untied", "mistral", "qwen2", "qwen3")


def make(name: str, **changes: Any) -> LanguageModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = {**CONFIGS[name], **changes}
        return LanguageModule(transformer=Transformer(config=config, max_seq_len=16), split=Split(last_blocks=1))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 64, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers(name: str, tokens: torch.Tensor) -> None:
    module = make(name).eval()
    with torch.no_grad():
        expected = module.model(input_ids=tokens).logits
        assert torch.equal(module(tokens), expected)
        assert module(tokens[:0]).shape == (0, 17, 64)
        cache = module.architecture.new_cache()
        parts = [module(tokens[:1, :5], cache), module(tokens[:1, 5:], cache)]
    assert cache.num_tokens == 17
    assert torch.allclose(torch.cat(parts, dim=1), expected[:1], atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_blocks_are_keys_and_values(name: str) -> None:
    module = make(name)
    parts = module.partition()
    blocks = {int(part) for key in parts for part in key.split(".") if part.isdigit() and "experts" not in key}
    last = str(max(blocks))
    for key, part in parts.items():
        words = key.split(".")
        if any(word.isdigit() and word != last for word in words[:4]) or key in module.embeddings():
            assert part == "backbone", key
        elif last in words[:4]:
            is_attention = any("attn" in word or "attention" in word for word in words) and not any(
                "post_attention" in word for word in words
            )
            is_before = any(word in ("input_layernorm", "ln_1", "norm_1") for word in words)
            assert part == ("keys" if is_attention or is_before else "values"), key
    assert {"backbone", "keys", "values"} == set(parts.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    module = make(name)
    module.architecture.write_folder(tmp_path, dict(module.named_parameters()), eos_token_id=3)
    read = Transformer(config=str(tmp_path), max_seq_len=8)
    assert read.differences(dict(module.hparams)) == []
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 3
    found = read.read_folder(tmp_path)
    for key, parameter in module.named_parameters():
        assert torch.equal(found[key], parameter), key
    again = LanguageModule.from_hyper_parameters(module.hparams)
    assert again.partition() == module.partition()


@pytest.mark.parametrize("name", [n if n == "gpt2" else pytest.param(n, marks=pytest.mark.slow) for n in EXACT])
def test_gradients_of_examples_are_those_of_one_backward_pass_each(name: str, tokens: torch.Tensor) -> None:
    module = make(name).train()
    assert isinstance(module.architecture, Transformer)
    assert module.architecture.why_no_example_gradients() == ""
    check_example_gradients(module, tokens)


def test_other_families_have_no_gradients_of_examples() -> None:
    gemma, mixtral = (Transformer(config=CONFIGS[name], max_seq_len=8) for name in ("gemma", "mixtral"))
    assert gemma.why_no_example_gradients() == (
        "the gradients of single examples are not verified for gemma; choose one of gpt2, gpt_neox, llama, mistral, "
        "qwen2, qwen3, train adapters with model.lora, whose gradients are verified for this family, or protect the "
        "updates of the node with privacy"
    )
    assert gemma.why_no_example_gradients(has_adapters=True) == ""
    assert mixtral.why_no_example_gradients().endswith("qwen2, qwen3, or protect the updates of the node with privacy")
    assert "not verified for mixtral with lora; choose one of gpt2" in mixtral.why_no_example_gradients(True)


def test_both_embeddings_have_a_row_for_each_token() -> None:
    assert make("llama").embeddings() == ["model.model.embed_tokens.weight"]
    assert make("llama_untied").embeddings() == ["model.model.embed_tokens.weight", "model.lm_head.weight"]
    sizes = Architecture(num_blocks=3, d_model=32, num_heads=2, max_seq_len=8, vocab_size=64)
    assert LanguageModule(sizes).embeddings() == ["model.transformer.wte.weight"]


def test_a_text_goes_on(tokens: torch.Tensor) -> None:
    module = make("llama")
    text = generate(module, tokens[0, :4], num_new_tokens=20, temperature=0)  # beyond max_seq_len, where no cache helps
    assert len(text) == 24
    with torch.no_grad():
        assert int(module.eval()(text[None, 6:22])[0, -1].argmax()) == int(text[22])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "'lama', of which transformers has no causal language model; did you mean 'llama'"),
        ({}, "needs a model_type"),
        ({**CONFIGS["llama"], "hiden_size": 8}, "'hiden_size', which llama does not know; did you mean 'hidden_size'"),
        ({k: v for k, v in CONFIGS["llama"].items() if k != "intermediate_size"}, "needs intermediate_size"),
        ({k: v for k, v in CONFIGS["gpt2"].items() if k != "n_embd"}, "needs n_embd"),
        ({**CONFIGS["llama"], "auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "has auto_map: only models that"),
        ({**CONFIGS["llama"], "quantization_config": {}}, "has quantization_config"),
        ({**CONFIGS["llama"], "max_position_embeddings": 8}, "max_seq_len is 16: the model has 8 positions"),
        ("nowhere", "nowhere: it must be a folder with a config.json"),
    ],
)
def test_configurations_that_cannot_be_used(config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(config=config, max_seq_len=16)


FORMER = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("llama", FORMER),
        ("gpt_neox", {"rotary_emb_base": 500, "rotary_pct": 0.5}),
        *(
            pytest.param(name, FORMER, marks=pytest.mark.slow)
            for name in ("mistral", "qwen2", "qwen3", "gemma", "olmo2")
        ),
    ],
)
def test_positions_of_a_folder_of_a_former_version(
    name: str, former: dict[str, Any], tmp_path: Path, tokens: torch.Tensor
) -> None:
    """Most folders of the Hub have `rope_theta`, which transformers converts into `rope_parameters`."""
    from transformers import AutoModelForCausalLM

    module, config = make(name), {**CONFIGS[name], **former}
    module.architecture.write_folder(tmp_path, dict(module.named_parameters()))
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
        assert not torch.allclose(module.eval()(tokens), expected, atol=1e-4)
    for description in (str(tmp_path), config):
        transformer = Transformer(config=description, max_seq_len=16)
        again = LanguageModule(transformer=Transformer(config=transformer.config, max_seq_len=16)).eval()
        again.load_weights(transformer.read_folder(tmp_path))
        with torch.no_grad():
            torch.testing.assert_close(again(tokens), expected)


def test_exactly_one_model_is_described() -> None:
    sizes = Architecture(num_blocks=3, d_model=32, num_heads=2, max_seq_len=8, vocab_size=64)
    with pytest.raises(ValueError, match="either architecture or transformer, but none is given"):
        LanguageModule()
    with pytest.raises(ValueError, match="either architecture or transformer, but both are given"):
        LanguageModule(sizes, transformer=Transformer(config=CONFIGS["llama"], max_seq_len=8))
    with pytest.raises(ValueError, match=r"transformer\.config is missing"):
        Transformer(max_seq_len=8)


def test_a_kernel_of_a_hub_and_another_type_of_weights_are_ignored(tmp_path: Path) -> None:
    more = {"torch_dtype": "bfloat16", "dtype": "bfloat16", "attn_implementation": "kernels-community/none"}
    more |= {"_attn_implementation": "kernels-community/none"}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["llama"], **more}))
    module = LanguageModule(transformer=Transformer(config=str(tmp_path), max_seq_len=8))
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    model: Any = module.model
    assert model.config._attn_implementation == "sdpa"


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    module, other = make("llama"), Transformer(config={**CONFIGS["llama"], "intermediate_size": 96}, max_seq_len=8)
    here = module.architecture
    here.write_folder(tmp_path, dict(module.named_parameters()))
    with pytest.raises(ValueError, match="intermediate_size is 64 in .*, but 96 in this one"):
        other.read_folder(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has an adapter"):
        here.read_folder(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    from safetensors.torch import load_file, save_file

    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {key: value for key, value in weights.items() if "layers.1.mlp" not in key}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"missing keys: .*layers\.1\.mlp"):
        here.read_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        here.read_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no safetensors; pytorch_model\.bin is a pickle"):
        here.read_folder(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_implementation_of_attention_gives_the_same_logits(name: str, tokens: torch.Tensor) -> None:
    module = make(name).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = Transformer(config=CONFIGS[name], max_seq_len=16, attention="eager")
        eager = LanguageModule(transformer=transformer, split=Split(last_blocks=1)).eval()
    assert eager.model.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert transformer.differences(dict(module.hparams)) == []
    torch.testing.assert_close(eager(tokens), module(tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ("spda", "transformer.attention must be one of sdpa, eager, flash_attention_2, got 'spda'.*sdpa"),
        ("kernels-community/flash-attn", "transformer.attention must be one of sdpa, eager, flash_attention_2, got .*"),
        ("flash_attention_2", "transformer.attention is flash_attention_2: it needs the package flash_attn"),
    ],
)
def test_an_attention_that_cannot_be_used(attention: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^{expected}"):
        Transformer(config=CONFIGS["llama"], max_seq_len=16, attention=attention)


BERT = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_causal_model_is_accepted(name: str) -> None:
    make(name).setup("fit")


@pytest.mark.parametrize("is_decoder", [False, True])
def test_a_model_that_reads_what_it_predicts_is_rejected(is_decoder: bool) -> None:
    transformer = Transformer(config={**BERT, "is_decoder": is_decoder}, max_seq_len=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LanguageModule(transformer=transformer, split=Split(values=("encoder.layer.1.",)))
    if is_decoder:
        module.setup("fit")
        return
    with pytest.raises(ValueError, match="describes a bert that also reads the tokens after the one that it predicts"):
        module.setup("fit")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_to_nearly_the_same_weights(tmp_path: Path) -> None:
    from worldlm.callbacks import Averaging
    from worldlm.data import CorpusDataModule, Texts
    from worldlm.trainer import WorldTrainer

    children = [{"name": name, "corpus": name} for name in "ab"]
    topology = {"name": "pair", "settings": {"num_local_steps": 3}, "root": {"name": "world", "children": children}}

    def train(compile_model: bool) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            transformer = Transformer(config={**CONFIGS["llama"], "vocab_size": 257}, max_seq_len=32)
            module = LanguageModule(transformer=transformer, compile_model=compile_model)
        corpora = {name: Texts(train=[f"patient {i} of {name}" for i in range(200)]) for name in "ab"}
        data = CorpusDataModule(corpora=corpora, tokenizer="bytes", cache_dir=tmp_path)
        options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = WorldTrainer(topology=topology, max_epochs=2, callbacks=[Averaging()], limit_val_batches=0, **options)
        trainer.fit(module, datamodule=data)
        assert (module.model._compiled_call_impl is not None) == compile_model
        return dict(trainer.world.states["world"].parameters)

    torch.testing.assert_close(train(True), train(False), rtol=1e-4, atol=1e-5)
