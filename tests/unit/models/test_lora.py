"""Adapters on frozen models of transformers: their parameters, logits, gradients and folders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import CONFIGS, check_example_gradients, open_with_peft, write_base

from worldlm.models import Architecture, LanguageModule, Lora, Split, Transformer, merge_adapters, write_adapter
from worldlm.models.lora import frozen_a

FAST = ("gpt2", "llama")
"""In the default suite: one whose weights are transposed, and one of linear layers."""

FAMILIES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]

EXACT = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3", "olmo2", "phi3", "smollm3")


def make(
    folder: Path, name: str, lora: Lora | None = None, split: Split | None = None, *, seed: int = 1
) -> LanguageModule:
    """Return a model with adapters whose base is in a folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LanguageModule(
            transformer=Transformer(config=CONFIGS[name], max_seq_len=16),
            split=split or Split(last_blocks=1),
            lora=lora or Lora(rank=2),
            init_from=str(folder),
        )


def train_a_bit(module: LanguageModule) -> LanguageModule:
    """Change every adapter, so that it has an effect."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 64, (3, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FAMILIES)
def test_new_adapters_change_no_bit(name: str, tmp_path: Path, tokens: torch.Tensor) -> None:
    base, module = write_base(tmp_path, name), make(tmp_path, name)
    module.load_base()
    with torch.no_grad():
        expected = base(tokens)
        assert torch.equal(module.eval()(tokens), expected)
        cache = module.architecture.new_cache()
        parts = [module(tokens[:1, :5], cache), module(tokens[:1, 5:], cache)]
        assert torch.allclose(torch.cat(parts, dim=1), expected[:1], atol=1e-5)
        assert not torch.equal(train_a_bit(module)(tokens), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_only_adapters_are_parameters(name: str, tmp_path: Path, tokens: torch.Tensor) -> None:
    base, module = write_base(tmp_path, name), make(tmp_path, name)
    module.load_base()
    names = [key for key, _ in module.named_parameters()]
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in names)
    assert sorted(module.state_dict()) == sorted(names)
    assert module.embeddings() == []
    frozen = {key: module.get_buffer(key) for key in module.frozen}
    assert frozen.keys() == dict(base.named_parameters()).keys()
    assert all(torch.equal(frozen[key], value) for key, value in base.named_parameters())
    train_a_bit(module).loss(tokens).backward()
    assert all(bool(parameter.grad.any()) for parameter in module.parameters())


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama_untied", False), ("gpt2", True)])
def test_tied_weights_stay_tied(name: str, tied: bool, tmp_path: Path) -> None:
    write_base(tmp_path, name)
    module = make(tmp_path, name)
    module.load_base()
    for other in (module, copy.deepcopy(module), copy.deepcopy(module).double(), copy.deepcopy(module).to("meta")):
        model: Any = other.model
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) is tied


def test_the_split_is_that_of_the_blocks_of_the_adapters(tmp_path: Path) -> None:
    write_base(tmp_path, "llama")
    parts = make(tmp_path, "llama").partition()
    for key, part in parts.items():
        expected = "keys" if ".self_attn." in key else "values"
        assert part == (expected if ".layers.2." in key else "backbone"), key
    of_attention = make(tmp_path, "llama", Lora(rank=2, targets="(q|v)_proj$")).partition()
    assert set(of_attention.values()) == {"backbone", "keys"}
    assert len(of_attention) == 3 * 2 * 2
    assert set(make(tmp_path, "llama", Lora(rank=2, targets="mlp")).partition().values()) == {"backbone", "values"}
    with pytest.raises(ValueError, match=r"split\.last_blocks is 1: the last 1 blocks have no adapters"):
        make(tmp_path, "llama", Lora(rank=2, targets=r"layers\.0\."))
    personal = make(tmp_path, "llama", split=Split(values=(r"lora_B\.",))).partition()
    assert {key.split(".")[-2]: part for key, part in personal.items()} == {"lora_A": "backbone", "lora_B": "values"}


def test_a_frozen_a_depends_on_the_layer_alone(tmp_path: Path, tokens: torch.Tensor) -> None:
    base, lora = write_base(tmp_path, "llama"), Lora(rank=2, freeze_a=True)
    first, second = (make(tmp_path, "llama", lora, seed=seed) for seed in (1, 2))
    assert all(key.endswith(".lora_B.weight") for key, _ in first.named_parameters())
    layers: Any = first.model.get_submodule("model.layers")
    others: Any = second.model.get_submodule("model.layers")
    a = layers[0].self_attn.q_proj.lora_A.weight
    assert torch.equal(a, others[0].self_attn.q_proj.lora_A.weight)
    assert torch.equal(a, frozen_a("model.layers.0.self_attn.q_proj", 2, 32))
    assert not torch.equal(a, layers[1].self_attn.q_proj.lora_A.weight)
    assert 0.5 / 32**0.5 < float(a.abs().max()) <= 1 / 32**0.5  # as that of a trained A
    first.load_base()
    with torch.no_grad():
        assert torch.equal(first.eval()(tokens), base(tokens))
    assert sorted(first.state_dict()) == sorted(key for key, _ in first.named_parameters())


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in EXACT])
def test_gradients_of_examples_are_those_of_one_backward_pass_each(
    name: str, freeze_a: bool, tmp_path: Path, tokens: torch.Tensor
) -> None:
    write_base(tmp_path, name)
    module = make(tmp_path, name, Lora(rank=2, freeze_a=freeze_a)).train()
    module.load_base()
    train_a_bit(module)
    assert module.architecture.why_no_example_gradients(has_adapters=True) == ""  # type: ignore[union-attr]
    check_example_gradients(module, tokens)


@pytest.mark.parametrize(
    "lora", [Lora(rank=2, alpha=3), Lora(rank=3, targets="attn|attention", freeze_a=True)], ids=["all", "a"]
)
@pytest.mark.parametrize("name", FAMILIES)
def test_folders_give_the_same_logits(name: str, lora: Lora, tmp_path: Path, tokens: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM

    write_base(tmp_path / "base", name)
    module = make(tmp_path / "base", name, lora).eval()
    module.load_base()
    weights = dict(train_a_bit(module).named_parameters())
    architecture: Any = module.architecture
    with torch.no_grad():
        expected = module(tokens)
        (tmp_path / "merged").mkdir()
        base = {key: module.get_buffer(key) for key in module.frozen}
        architecture.write_folder(tmp_path / "merged", merge_adapters(architecture, lora, weights, base))
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    near = {"rtol": 0.0, "atol": 1e-6 if name in FAST else 5e-6}  # norms within attention enlarge rounding
    torch.testing.assert_close(merged, expected, **near)

    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", architecture, lora, weights, str(tmp_path / "base"))
    opened = open_with_peft(tmp_path / "base", tmp_path / "adapter")
    assert opened.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    with torch.no_grad():
        torch.testing.assert_close(opened(tokens).logits, expected, **near)


def test_the_frozen_weights_are_those_on_which_the_adapters_were_trained(tmp_path: Path) -> None:
    write_base(tmp_path, "llama")
    module = make(tmp_path, "llama")
    assert module.base_digest is None
    module.load_base()
    again = LanguageModule.from_hyper_parameters(module.hparams)
    again.load_base(module.base_digest)
    assert again.base_digest == module.base_digest
    assert again.partition() == module.partition()
    write_base(tmp_path, "llama", seed=5)
    changed = LanguageModule.from_hyper_parameters(module.hparams)
    with pytest.raises(ValueError, match=rf"init_from is .*: its weights are not those .* it was {module.base_digest}"):
        changed.load_base(module.base_digest)
    module.load_base()  # reads nothing
    write_base(tmp_path, "llama", intermediate_size=96)
    with pytest.raises(ValueError, match="intermediate_size is 96 in .*, but 64 in this one"):
        make(tmp_path, "llama").load_base()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank is 0: it must be at least 1"),
        ({"alpha": 8.0}, "lora.rank is missing: it must be a whole number of at least 1"),
        ({"freeze_a": True}, "lora.rank is missing"),
        ({"rank": 2, "alpha": 0}, "lora.alpha is 0: it must be a number above 0"),
        ({"rank": 2, "targets": "(q"}, r"lora.targets '\(q' is not a regular expression: missing"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lora(**settings)


def test_models_that_cannot_be_adapted(tmp_path: Path) -> None:
    sizes = Architecture(num_blocks=3, d_model=32, num_heads=2, max_seq_len=8, vocab_size=64)
    llama = Transformer(config=CONFIGS["llama"], max_seq_len=8)
    with pytest.raises(ValueError, match=r"needs a model of transformers: write model\.transformer in place of arch"):
        LanguageModule(sizes, lora=Lora(rank=2), init_from=str(tmp_path))
    with pytest.raises(ValueError, match="lora needs init_from: the Hugging Face folder"):
        LanguageModule(transformer=llama, lora=Lora(rank=2))
    for origin in ("nowhere", "runs/quickstart:topics"):
        with pytest.raises(ValueError, match=f"init_from is {origin}: there is no such folder, but lora needs"):
            LanguageModule(transformer=llama, lora=Lora(rank=2), init_from=origin).check_init_from()
    linear = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    with pytest.raises(ValueError, match=rf"targets 'query' matches no linear layer in the blocks; there are {linear}"):
        make(tmp_path, "llama", Lora(rank=2, targets="query"))
    experts = r"matches model\.layers\.0\.mlp\.experts\.\w+, but only linear layers in the blocks can be adapted"
    with pytest.raises(ValueError, match=f"lora.targets 'experts' {experts}"):
        make(tmp_path, "mixtral", Lora(rank=2, targets="experts"))


def test_other_adapters_are_differences() -> None:
    lora = Lora(rank=2, targets="attn")
    assert lora.differences({"lora": vars(lora)}) == []
    assert Lora().differences({"lora": None}) == Lora().differences({}) == []
    changed = {**vars(lora), "rank": 4, "alpha": 8.0}
    assert lora.differences({"lora": changed}) == [
        "lora.rank is 4 in the saved model, but 2 in this one",
        "lora.alpha is 8.0 in the saved model, but 16.0 in this one",
    ]
    assert lora.differences({}) == ["the saved model has no adapters (lora), unlike this one"]
    assert Lora().differences({"lora": vars(lora)}) == ["the saved model has only adapters (lora), unlike this one"]
