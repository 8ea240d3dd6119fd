"""FedProx, compared with local steps written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from worldlm.callbacks import Averaging, ExamplePrivacy, Proximal
from worldlm.data import BlockBatchSampler
from worldlm.federation.parameters import PARTS
from worldlm.models.module import warmup_cosine
from worldlm.topology import Topology

Make = Callable[..., Any]


@pytest.mark.parametrize("clip", [None, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_equals_adamw_on_the_loss_with_the_term(
    accumulate: int,
    clip: float | None,
    star: Make,
    fit: Make,
    make_module: Make,
    make_data: Make,
    tolerance: float,
) -> None:
    mu, steps = 5.0, 3
    options = {"max_epochs": 1, "accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    topology = star("a", a=f"settings: {{num_local_steps: {steps}}}")
    trainer = fit(topology, [Averaging(parts=PARTS), Proximal(mu)], **options)

    module = make_module()
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    blocks = make_data().blocks("a", "train")
    sampler = BlockBatchSampler(len(blocks), 2, 7, "a")
    sampler.length = steps * accumulate
    batches = [blocks.__getitems__(indices) for indices in sampler]
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * warmup_cosine(step, 1, steps, 0.1)
        optimizer.zero_grad()
        chosen = batches[step * accumulate : (step + 1) * accumulate]
        loss = torch.stack([module.loss(batch) for batch in chosen]).mean()
        squares = [(value - start[name]).square().sum() for name, value in module.named_parameters()]
        (loss + mu / 2 * torch.stack(squares).sum()).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()

    trained = trainer.world.states["a"].parameters
    for name, value in module.named_parameters():
        torch.testing.assert_close(trained[name], value.detach(), rtol=1e-5, atol=tolerance)


def test_mu_of_zero_changes_nothing(
    tree: Topology, fit: Make, whole_method: Make, snapshot: Make, differences: Make
) -> None:
    plain, nothing = (snapshot(fit(tree, [*whole_method(), *more])) for more in ([], [Proximal(0.0)]))
    assert nothing["callbacks"].pop("Proximal") == {"anchor": {}}
    assert differences(plain, nothing) == []


def test_every_fit_is_pulled_towards_its_initial_weights(star: Make, fit: Make) -> None:
    """With a stronger pull, two fits from the same weights end closer to each other."""
    moved = {}
    for mu in (0.0, 100.0):
        states = fit(star("ab"), [Averaging(parts=PARTS), Proximal(mu)], limit_val_batches=0).world.states
        rounds = [states[name].parameters for name in "ab"]
        moved[mu] = sum(float((rounds[0][name] - rounds[1][name]).square().sum()) for name in rounds[0])
    assert moved[100.0] < moved[0.0]


def test_the_term_is_added_to_the_noised_gradient(star: Make, fit: Make) -> None:
    terms: list[float] = []

    class Watched(Proximal):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            before = {name: value.grad.clone() for name, value in pl_module.named_parameters()}
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            for name, value in pl_module.named_parameters():
                term = 0.5 * (value.detach() - self._anchor[name])
                terms.append(float(term.abs().max()))
                torch.testing.assert_close(value.grad, before[name] + term)

    settings = "example_privacy: {clip_norm: 1.0, noise_multiplier: 1.0}"
    fit(star("ab", settings), [Averaging(parts=PARTS), ExamplePrivacy(), Watched(0.5)], limit_val_batches=0)
    assert max(terms) > 0
