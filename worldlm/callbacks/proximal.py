"""FedProx: a proximal term pulls local training towards its initial weights."""

from typing import Any

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from worldlm.callbacks.example_privacy import ExamplePrivacy
from worldlm.federation.parameters import Tensors, clone
from worldlm.federation.proximal import add_proximal_gradient_
from worldlm.rounds import Context, LocalFit, RoundCallback
from worldlm.trainer import FederationCallback, WorldTrainer


class Proximal(FederationCallback):
    """Adds the term `mu / 2 * |w - w_start|^2` to the loss of every fit (FedProx, Li et al., arXiv 1812.06127).

    `w_start` is the node's weights at the start of its fit. In all parts that another callback copies on download,
    these are the parent's weights. The callback adds the gradient of the term, `mu * (w - w_start)`, to the accumulated
    gradient once per optimizer step. Lightning clips afterwards, so it clips the gradient of the whole loss. The logged
    loss does not include the term.

    With `ExamplePrivacy`, list `Proximal` after it. The term is then added to the noised gradient; it depends on the
    weights only, so it reveals nothing more about the text.

    Args:
        mu: Strength of the pull, at least 0; 0 adds nothing.

    Raises:
        ValueError: If `mu` is negative or not finite, or `ExamplePrivacy` is listed after this callback.
    """

    def __init__(self, mu: float) -> None:
        if not 0 <= mu < float("inf"):
            raise ValueError(f"mu must be at least 0, got {mu}")
        self.mu = mu
        self._anchor: Tensors = {}  # the initial weights of the current fit

    def must_follow(self, other: RoundCallback) -> str:
        if isinstance(other, ExamplePrivacy):
            return "ExamplePrivacy is listed after Proximal and would overwrite its term: list Proximal after it"
        return ""

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        live = dict(fit.module.named_parameters())
        if self._anchor and fit.resumed:
            self._anchor = {name: tensor.to(live[name].device) for name, tensor in self._anchor.items()}
        elif self.mu > 0:
            self._anchor = clone(live)

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.mu == 0:
            return
        live = dict(pl_module.named_parameters())
        gradients = {name: parameter.grad for name, parameter in live.items() if parameter.grad is not None}
        add_proximal_gradient_(gradients, live, self._anchor, self.mu)

    def on_local_fit_end(self, context: Context) -> None:
        self._anchor = {}

    def state_dict(self) -> dict[str, Any]:
        return {"anchor": dict(self._anchor)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._anchor = dict(state_dict["anchor"])
