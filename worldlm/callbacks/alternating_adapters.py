"""RoLoRA: in each round the nodes train only one of the two factors of their adapters."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from worldlm.rounds import Context, LocalFit
from worldlm.trainer import FederationCallback, WorldTrainer

_FACTORS = ("lora_B.", "lora_A.")  # the trained factor of the rounds 0, 2, ... and of the rounds 1, 3, ...


class AlternatingAdapters(FederationCallback):
    """Trains only B of each adapter in one round, and only A in the next (RoLoRA, Chen et al., arXiv 2409.02346).

    The first round trains B. All nodes then have the same A, so that the mean of their B gives the mean of their
    products `B A`. The same holds with the factors exchanged in the next round. This needs nodes that copy the weights
    of their parent (`Averaging` of all parts with a download rate of 1) and no privacy noise on uploads.

    The gradient of the factor that is not trained is removed before each optimizer step. Gradient clipping ignores it,
    and the optimizer skips its weights: their values and moments do not change in a fit.

    List `ExamplePrivacy` after this callback. It then clips and noises only the gradient of the trained factor.

    Raises:
        ValueError: If the model has no adapters, trains only one factor of them, or `ExamplePrivacy` is listed before
            this callback.
    """

    def __init__(self) -> None:
        self._fixed = ""  # part of the names of the parameters that the current fit does not train

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        names = [name for name, _ in pl_module.named_parameters()]
        if missing := [factor for factor in _FACTORS if not any(factor in name for name in names)]:
            why = "the model has no adapters: set model.lora"
            if len(missing) == 1:
                why = "the model trains only B: remove lora.freeze_a, or AlternatingAdapters"
            raise ValueError(f"AlternatingAdapters trains A and B of adapters in turn, but {why}")

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        self._fixed = _FACTORS[(context.round + 1) % 2]

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        for name, parameter in pl_module.named_parameters():
            if self._fixed and self._fixed in name:
                parameter.grad = None

    def on_local_fit_end(self, context: Context) -> None:
        self._fixed = ""
