"""The proximal gradient, compared with numbers computed by hand and with autograd."""

from __future__ import annotations

import torch

from worldlm.federation.proximal import add_proximal_gradient_


def test_by_hand() -> None:
    gradients = {"a": torch.tensor([1.0, 1.0])}
    parameters = {"a": torch.tensor([3.0, -2.0]), "frozen": torch.tensor([1.0])}
    anchor = {"a": torch.tensor([1.0, 2.0]), "frozen": torch.tensor([0.0])}
    add_proximal_gradient_(gradients, parameters, anchor, 0.25)
    assert gradients["a"].tolist() == [1.5, 0.0]
    assert parameters["a"].tolist() == [3.0, -2.0]
    assert anchor["a"].tolist() == [1.0, 2.0]


def test_it_is_the_gradient_of_half_mu_times_the_squared_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(3, 4, generator=generator, requires_grad=True)
    anchor = torch.randn(3, 4, generator=generator)
    (0.5 * 0.7 * (weights - anchor).square().sum()).backward()
    gradients = {"w": torch.zeros(3, 4)}
    add_proximal_gradient_(gradients, {"w": weights}, {"w": anchor}, 0.7)
    torch.testing.assert_close(gradients["w"], weights.grad)


def test_at_the_anchor_nothing_changes() -> None:
    generator = torch.Generator().manual_seed(1)
    gradient, weights = torch.randn(50, generator=generator), torch.randn(50, generator=generator)
    gradients = {"w": gradient.clone()}
    add_proximal_gradient_(gradients, {"w": weights}, {"w": weights.clone()}, 3.0)
    assert torch.equal(gradients["w"], gradient)
