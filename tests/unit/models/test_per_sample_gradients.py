"""Per-sample gradients through the hooks of Opacus."""

from collections.abc import Iterator

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor

from worldlm.models import Architecture, LanguageModule, OptimizerSettings, Split

SIZES = Architecture(num_blocks=2, d_model=16, num_heads=4, max_seq_len=8, vocab_size=30)
SPLIT = Split(keys=(r"blocks\.1\.(norm_1|attn)\.",), values=(r"blocks\.1\.", r"norm_f\."))


@pytest.fixture
def module() -> LanguageModule:
    torch.manual_seed(0)
    module = LanguageModule(SIZES, SPLIT, OptimizerSettings())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return module


@pytest.fixture
def hooked(module: LanguageModule) -> Iterator[LanguageModule]:
    """The module, with the hooks of Opacus on its model."""
    wrapper = GradSampleModule(module.model)
    yield module
    wrapper.remove_hooks()


def one_by_one(module: LanguageModule, batch: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    rows = [torch.autograd.grad(module.loss(row[None]), parameters) for row in batch]
    return {name: torch.stack(grads) for name, *grads in zip(names, *rows, strict=True)}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_they_equal_separately_computed_gradients(module: LanguageModule) -> None:
    batch = torch.randint(0, SIZES.vocab_size, (3, 9))
    expected = one_by_one(module, batch)
    wrapper = GradSampleModule(module.model)
    module.training_step(batch, 0).backward()
    for name, parameter in module.named_parameters():
        assert expected[name].abs().max() > 1e-3, name
        torch.testing.assert_close(parameter.grad_sample, expected[name], rtol=0, atol=1e-5, msg=name)
    wrapper.remove_hooks()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_an_empty_batch_has_no_per_sample_gradients(hooked: LanguageModule) -> None:
    hooked.training_step(torch.zeros(0, 9, dtype=torch.int64), 0).backward()
    for name, parameter in hooked.named_parameters():
        assert parameter.grad_sample.shape == (0, *parameter.shape), name
        assert not parameter.grad.any(), name


def test_evaluation_stores_no_activations(hooked: LanguageModule) -> None:
    hooked.evaluate([torch.randint(0, SIZES.vocab_size, (2, 9))])
    assert not any(getattr(part, "activations", None) for part in hooked.modules())
