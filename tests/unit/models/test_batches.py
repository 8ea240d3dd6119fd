"""Batches of conversations: each is read alone, and only what is marked is predicted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import CONFIGS
from torch import Tensor

from worldlm.federation.token_rows import Tally
from worldlm.models import Architecture, LanguageModule, Split, Transformer
from worldlm.models.batches import read_batch, separate, tokens_read
from worldlm.models.transformer import _SEPARATING

X = -100
VOCAB = 64
SPLIT = Split(last_blocks=1)
SIZES = Architecture(num_blocks=2, d_model=16, num_heads=2, max_seq_len=16, vocab_size=VOCAB)
LENGTHS = [[5, 4], [2, 10]]
"""Lengths of the conversations of each row; the rest of a row of 12 is padding."""


def module_of(name: str) -> LanguageModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "own":
            module = LanguageModule(SIZES, split=SPLIT)
        else:
            module = LanguageModule(split=SPLIT, transformer=Transformer(config=CONFIGS[name], max_seq_len=16))
        for parameter in module.parameters():  # with the initial weights, tokens hardly look at each other
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def rows(seed: int = 0, dtype: torch.dtype = torch.int64) -> dict[str, Tensor]:
    """Return two rows; of each conversation, the second half is predicted."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, VOCAB, (2, 12), generator=random)
    labels, positions = torch.full((2, 12), X), torch.zeros(2, 12, dtype=torch.int64)
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            half = at + length // 2
            labels[row, half : at + length] = tokens[row, half : at + length]
            positions[row, at : at + length] = torch.arange(length)
            at += length
        tokens[row, at:] = 0
    return {"input_ids": tokens.to(dtype), "labels": labels.to(dtype), "position_ids": positions.to(dtype)}


def conversations(batch: dict[str, Tensor]) -> list[tuple[int, slice]]:
    found = []
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            found.append((row, slice(at, at + length)))
            at += length
    return found


FAMILIES = [name for name in CONFIGS if name != "mpt"]


def test_all_verified_families_are_tested() -> None:
    assert {CONFIGS[name]["model_type"] for name in FAMILIES} == set(_SEPARATING)


@pytest.mark.parametrize("name", ["own", *FAMILIES])
def test_a_packed_row_gives_the_logits_of_each_conversation_alone(name: str) -> None:
    module, batch = module_of(name), rows()
    with torch.no_grad():
        packed = module(batch["input_ids"], position_ids=batch["position_ids"])
        blind = module(batch["input_ids"])
        for number, (row, place) in enumerate(conversations(batch)):
            alone = module(batch["input_ids"][row : row + 1, place])[0]
            torch.testing.assert_close(packed[row, place], alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
            if number % 2:  # without positions, the second conversation of a row sees the first
                assert float((blind[row, place] - alone).abs().max()) > 1e-2 * float(alone.abs().max())


def test_families_that_do_not_take_positions_are_rejected() -> None:
    bloom = {"model_type": "bloom", "vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 2}
    for config in (CONFIGS["mpt"], bloom):
        reason = Transformer(config=config, max_seq_len=8).why_no_conversations()
        assert reason.startswith(
            f"it is not verified that {config['model_type']} keeps the conversations of a row apart"
        )
    assert not Transformer(config=CONFIGS["llama"], max_seq_len=8).why_no_conversations()


def test_conversations_of_a_row_are_numbered_by_their_restarts() -> None:
    same = separate(torch.tensor([[0, 1, 0, 1, 0, 0]]))[0, 0]
    groups = torch.tensor([1, 1, 2, 2, 3, 4])
    assert torch.equal(same, groups[:, None] == groups[None, :])


def _by_hand(module: LanguageModule, batch: dict[str, Tensor]) -> list[list[float]]:
    """Return the losses of the predicted tokens of each row, from a run of each conversation alone."""
    losses: list[list[float]] = [[], []]
    with torch.no_grad():
        for row, place in conversations(batch):
            tokens, labels = batch["input_ids"][row, place], batch["labels"][row, place]
            scores = module(tokens[None])[0].log_softmax(-1)
            losses[row] += [-float(scores[t - 1, tokens[t]]) for t in range(1, len(tokens)) if labels[t] != X]
    return losses


@pytest.mark.parametrize("name", ["own", "llama"])
def test_the_loss_is_the_mean_of_the_predicted_tokens(name: str) -> None:
    module, batch = module_of(name), rows()
    losses = _by_hand(module, batch)
    assert [len(row) for row in losses] == [5, 6]
    flat = [loss for row in losses for loss in row]
    assert float(module.loss(batch).detach()) == pytest.approx(sum(flat) / 11, rel=1e-5)
    evaluation = module.evaluate([batch, rows(1)])
    assert evaluation.num_tokens == 22
    both = sum(flat) + sum(loss for row in _by_hand(module, rows(1)) for loss in row)
    assert evaluation.nats == pytest.approx(both / 22, rel=1e-5)
    private = {key: tensor.int() for key, tensor in batch.items()}
    assert float(module.loss(private).detach()) == pytest.approx(
        sum(sum(row) / len(row) for row in losses) / 2, rel=1e-5
    )


def test_the_loss_is_that_of_transformers() -> None:
    module, batch = module_of("llama"), rows()
    model: Any = module.model
    theirs = model(
        **batch, use_cache=False
    ).loss  # the batch has the names of transformers, and labels as it takes them
    torch.testing.assert_close(module.loss(batch), theirs)


@pytest.mark.parametrize("name", ["own", "llama"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("kind", ["empty", "masked"])
def test_a_batch_without_targets_has_no_loss_and_gradients_of_zero(name: str, dtype: torch.dtype, kind: str) -> None:
    module, batch = module_of(name), rows(dtype=dtype)
    if kind == "empty":
        batch = {key: tensor[:0] for key, tensor in batch.items()}
    else:
        batch["labels"].fill_(X)
    loss = module.loss(batch)
    assert float(loss.detach()) == 0.0
    loss.backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert not parameter.grad.any(), key
    with pytest.raises(ValueError, match="there are no tokens to evaluate"):
        module.evaluate([batch])


def test_a_batch_of_plain_text_is_read_as_before() -> None:
    module, tokens = module_of("own"), torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = module(tokens[:, :-1])
    assert torch.equal(module.loss(tokens), F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    examples = read_batch(tokens)
    assert examples.predicts_all
    assert examples.position_ids is None


def test_rows_of_tokens_are_counted_without_padding() -> None:
    batch = rows()
    batch["input_ids"][0, 0] = 0  # a token whose number is that of padding
    tally = Tally.empty(VOCAB)
    tokens, counted = tokens_read(batch)
    tally.add_(tokens, 0, 1, counted)
    real = torch.cat([batch["input_ids"][row, place] for row, place in conversations(batch)])
    assert torch.equal(tally.total, torch.bincount(real, minlength=VOCAB))
    assert int(tally.total.sum()) == 21


@pytest.mark.parametrize("name", ["own", "gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3"])
def test_per_sample_gradients_are_those_of_one_backward_for_each(name: str) -> None:
    from opacus import GradSampleModule

    batch = rows(dtype=torch.int32)
    module = module_of(name).train()
    expected = []
    for row in range(2):
        module.zero_grad()
        module.loss({key: tensor[row : row + 1] for key, tensor in batch.items()}).backward()
        expected.append({key: parameter.grad.clone() for key, parameter in module.named_parameters()})  # type: ignore[union-attr]
    module.zero_grad()
    samples = GradSampleModule(module.model, batch_first=True, loss_reduction="mean")
    module.loss(batch).backward()
    for key, parameter in module.named_parameters():
        for row in range(2):
            torch.testing.assert_close(parameter.grad_sample[row], expected[row][key], rtol=1e-3, atol=1e-5, msg=key)
    samples.to_standard_module()
