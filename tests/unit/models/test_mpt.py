"""The MPT decoder, compared with transformers' MptForCausalLM and on its own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MptConfig, MptForCausalLM

from worldlm.models import MPT, Architecture, alibi_slopes
from worldlm.models.mpt import Cache, LayerNorm


def small(num_heads: int = 4, max_seq_len: int = 16, vocab_size: int = 50) -> Architecture:
    return Architecture(
        num_blocks=2,
        d_model=4 * num_heads,
        num_heads=num_heads,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
    )


def build(architecture: Architecture, seed: int = 0) -> MPT:
    """A model with weights large enough to make differences visible."""
    torch.manual_seed(seed)
    model = MPT(architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def build_theirs(architecture: Architecture) -> MptForCausalLM:
    config = MptConfig(
        d_model=architecture.d_model,
        n_heads=architecture.num_heads,
        n_layers=architecture.num_blocks,
        max_seq_len=architecture.max_seq_len,
        vocab_size=architecture.vocab_size,
        no_bias=True,
        tie_word_embeddings=True,
        use_cache=False,
    )
    return MptForCausalLM._from_config(config, attn_implementation="eager").eval()


def some_tokens(architecture: Architecture, batch: int = 3, seq: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    length = architecture.max_seq_len if seq is None else seq
    return torch.randint(0, architecture.vocab_size, (batch, length), generator=generator)


@pytest.mark.parametrize("num_heads", [4, 12, 16])
@pytest.mark.parametrize("seq", [16, 5])
def test_transformers_gives_the_same_logits_with_our_weights(num_heads: int, seq: int) -> None:
    architecture = small(num_heads)
    ours, theirs = build(architecture), build_theirs(architecture)
    theirs.load_state_dict(ours.state_dict())
    tokens = some_tokens(architecture, seq=seq)
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_heads", [12, 16])
def test_our_model_gives_the_same_logits_with_their_weights(num_heads: int) -> None:
    architecture = small(num_heads)
    theirs, ours = build_theirs(architecture), MPT(architecture)
    theirs.load_state_dict(build(architecture, seed=3).state_dict())
    ours.load_state_dict(theirs.state_dict())
    tokens = some_tokens(architecture)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_names_are_those_of_transformers() -> None:
    architecture = small()
    ours, theirs = MPT(architecture), build_theirs(architecture)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in theirs.named_parameters()}


def test_a_state_dict_survives_transformers() -> None:
    architecture = small()
    theirs, our_state = build_theirs(architecture), build(architecture).state_dict()
    theirs.load_state_dict(our_state)
    back = MPT(architecture)
    back.load_state_dict(theirs.state_dict())
    assert all(torch.equal(value, our_state[name]) for name, value in back.state_dict().items())


def test_slopes_by_hand() -> None:
    assert alibi_slopes(4).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]
    assert alibi_slopes(3).tolist() == [2.0**-4, 2.0**-8, 2.0**-2]
    assert alibi_slopes(1, alibi_bias_max=3).tolist() == [2.0**-3]


def test_the_head_is_the_embedding_itself() -> None:
    model = MPT(small())
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    model.load_state_dict(build(small(), seed=5).state_dict())
    assert model.lm_head.weight is model.transformer.wte.weight


def test_a_later_token_changes_no_earlier_logits() -> None:
    architecture = small()
    model, tokens = build(architecture), some_tokens(architecture)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % architecture.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


@pytest.mark.parametrize(
    ("num_blocks", "d_model", "num_heads", "max_seq_len", "millions"),
    [
        (3, 896, 16, 1024, 74.0),
        (12, 768, 12, 2048, 123.6),
        (12, 1536, 12, 1024, 417.1),  # of the two 400M models, the wider
        (24, 1024, 16, 1024, 354),
    ],
)
def test_sizes_of_the_paper(num_blocks: int, d_model: int, num_heads: int, max_seq_len: int, millions: float) -> None:
    with torch.device("meta"):
        model = MPT(
            Architecture(
                num_blocks=num_blocks,
                d_model=d_model,
                num_heads=num_heads,
                max_seq_len=max_seq_len,
                vocab_size=50368,
            )
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 50368 * d_model + num_blocks * (12 * d_model**2 + 2 * d_model) + d_model
    assert count == pytest.approx(millions * 1e6, rel=0.005)


def test_initial_values() -> None:
    torch.manual_seed(0)
    model = MPT(small(num_heads=16, vocab_size=500))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.001, name
        else:
            assert bool((parameter == 1).all()), name


def test_the_bias_is_built_once_and_not_part_of_the_state_dict() -> None:
    model = MPT(small())
    assert not any("bias" in name for name in model.state_dict())
    address = model.transformer.bias.data_ptr()
    hidden = model.transformer.wte(some_tokens(small(), seq=5))
    assert model.transformer._bias_for(hidden).data_ptr() == address


def test_an_empty_batch_gives_empty_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = small()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_, **__: None)  # as on a GPU, in bf16
    assert MPT(architecture)(some_tokens(architecture, batch=0)).shape == (0, 16, 50)


def test_a_sequence_beyond_max_seq_len_is_rejected() -> None:
    with pytest.raises(ValueError, match="17 tokens: max_seq_len is 16"):
        MPT(small())(some_tokens(small(), seq=17))


@pytest.mark.parametrize("sizes", [[1] * 16, [5, 1, 1, 9], [3, 13]])
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_a_text_in_pieces_with_a_cache_equals_the_whole_text(sizes: list[int], precision: torch.dtype) -> None:
    architecture = small(num_heads=12)
    model, tokens, cache = build(architecture).to(precision), some_tokens(architecture), Cache()
    with torch.no_grad():
        logits = torch.cat([model(piece, cache) for piece in tokens.split(sizes, 1)], 1)
        whole = model(tokens)
        assert cache.num_tokens == 16
        with pytest.raises(ValueError, match="17 tokens: max_seq_len is 16"):
            model(tokens[:, :1], cache)
    exact = precision == torch.float64
    torch.testing.assert_close(logits, whole, atol=1e-9 if exact else 0.5, rtol=1e-9 if exact else 0.1)


def test_bfloat16_stays_close_to_float32() -> None:
    architecture = small()
    model, tokens = build(architecture), some_tokens(architecture)
    with torch.no_grad():
        exact = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(tokens)
        pure = model.bfloat16()(tokens)
    for logits in (mixed, pure):
        assert logits.dtype == torch.bfloat16
        assert (logits.float() - exact).std() < 0.05 * exact.std()


def test_the_norm_equals_torch_without_bias() -> None:
    ours, theirs = LayerNorm(8), nn.LayerNorm(8, bias=False)
    weight = torch.linspace(0.5, 2.0, 8)
    with torch.no_grad():
        ours.weight.copy_(weight)
        theirs.weight.copy_(weight)
    x = torch.randn(2, 3, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["num_blocks", "max_seq_len", "alibi_bias_max"])
def test_sizes_below_one_are_rejected(name: str) -> None:
    sizes = {"num_blocks": 1, "d_model": 8, "num_heads": 2, "max_seq_len": 4, "vocab_size": 9}
    with pytest.raises(ValueError, match=f"{name} is 0: it must be at least 1"):
        Architecture(**{**sizes, name: 0})


@pytest.mark.parametrize(
    ("name", "most"), [("num_blocks", 10_000), ("d_model", 100_000_000), ("vocab_size", 100_000_000)]
)
def test_too_large_sizes_are_rejected(name: str, most: int) -> None:
    sizes = {"num_blocks": 1, "d_model": 8, "num_heads": 2, "max_seq_len": 4, "vocab_size": 9}
    assert getattr(Architecture(**{**sizes, name: most}), name) == most
    with pytest.raises(ValueError, match=f"{name} is {most + 2}: it must be at most {most:,}"):
        Architecture(**{**sizes, name: most + 2})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="d_model is 10: it must be a multiple of num_heads, 4"):
        Architecture(num_blocks=1, d_model=10, num_heads=4, max_seq_len=4, vocab_size=9)


def test_the_bias_decreases_with_distance_and_masks_later_tokens() -> None:
    bias = MPT(small(num_heads=4)).transformer.bias
    assert bias.shape == (1, 4, 16, 16)
    assert bias[0, 0, 3, :5].tolist() == [-0.75, -0.5, -0.25, 0.0, -math.inf]
