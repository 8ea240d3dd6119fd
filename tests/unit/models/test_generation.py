"""Generating a continuation of a text."""

from typing import Any

import pytest
import torch
from torch import Tensor

from worldlm.models import Architecture, LanguageModule, NotFiniteError, OptimizerSettings, Split, generate
from worldlm.models.generation import next_token

SIZES = Architecture(num_blocks=2, d_model=16, num_heads=4, max_seq_len=8, vocab_size=30)
PROMPT = torch.tensor([3, 1, 4])


@pytest.fixture(scope="module")
def module() -> LanguageModule:
    torch.manual_seed(0)
    made = LanguageModule(SIZES, Split(keys=(r"1\.(norm_1|attn)",), values=(r"1\.", "norm_f")), OptimizerSettings())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(20)  # so that no two tokens are about equally likely
    return made


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_temperature_zero_takes_the_most_likely_token_given_the_last_tokens(module: LanguageModule) -> None:
    text = PROMPT
    for _ in range(9):
        with torch.no_grad():
            text = torch.cat([text, module(text[None, -8:])[0, -1].argmax()[None]])
    assert generate(module, PROMPT, num_new_tokens=9, temperature=0.0).tolist() == text.tolist()


def test_with_the_cache_each_token_is_computed_once(module: LanguageModule, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, whole = [], module.model.forward

    def watched(text: Tensor, *more: Any) -> Tensor:
        lengths.append(text.shape[1])
        logits: Tensor = whole(text, *more)
        return logits

    monkeypatch.setattr(module.model, "forward", watched)
    generate(module, PROMPT, num_new_tokens=8)
    assert lengths == [3, 1, 1, 1, 1, 1, 8, 8]


def test_the_text_depends_only_on_the_seed(module: LanguageModule) -> None:
    def draw(seed: int) -> list[int]:
        torch.rand(1)  # the global generator is elsewhere every time
        text: Tensor = generate(module, PROMPT, num_new_tokens=12, temperature=30.0, generator=seeded(seed))
        return text.tolist()

    assert draw(1) == draw(1) != draw(2)


def test_mode_and_global_generator_are_unchanged(module: LanguageModule) -> None:
    module.train()
    before = torch.random.get_rng_state()
    generate(module, PROMPT, num_new_tokens=2, generator=seeded(0))
    assert module.training
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tokens_are_drawn_with_the_probabilities_of_the_model() -> None:
    logits, generator = torch.tensor([1.0, 0.0, 3.0, 2.0]), seeded(5)
    drawn = torch.tensor([next_token(logits, 2.0, 3, generator) for _ in range(4000)])
    expected = (torch.tensor([1.0, -torch.inf, 3.0, 2.0]) / 2).softmax(-1)
    assert torch.bincount(drawn, minlength=4)[1] == 0
    assert (torch.bincount(drawn, minlength=4) / 4000).tolist() == pytest.approx(expected.tolist(), abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": PROMPT[:0]}, r"shape \[0\]"),
        ({"tokens": PROMPT[None]}, r"shape \[1, 3\]"),
        ({"tokens": PROMPT + 27}, "from 28 to 31: the vocabulary is 0 to 29"),
        ({"num_new_tokens": -1}, "num_new_tokens is -1"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
    ],
)
def test_invalid_arguments_are_rejected(module: LanguageModule, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(module, **{"tokens": PROMPT, "num_new_tokens": 1, **arguments})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logit", [torch.nan, torch.inf])
def test_a_diverged_model_raises_an_error(temperature: float, logit: float) -> None:
    with pytest.raises(NotFiniteError, match="the model has diverged"):
        next_token(torch.tensor([0.0, logit, 9.0]), temperature)
