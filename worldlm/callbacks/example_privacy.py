"""Example-level differential privacy: DP-SGD during a node's fit, with Opacus."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from worldlm.callbacks.privacy_ledgers import PrivacyLedgers
from worldlm.federation.messages import Download, Upload
from worldlm.federation.seeds import derive_seed
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, LocalFit
from worldlm.topology import Node
from worldlm.trainer import WorldTrainer

if TYPE_CHECKING:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer


class ExamplePrivacy(PrivacyLedgers):
    """Trains with DP-SGD (Abadi et al., arXiv 1607.00133) at every node for which the topology sets `example_privacy`.

    The unit of privacy is one block of text of the model's sequence length. Each step clips the gradient of each block,
    adds noise to their sum, and divides by the expected batch size. Batches are Poisson-sampled, as the accountant
    assumes. Opacus computes per-sample gradients, clips, and adds noise. The node's own optimizer then steps with the
    result, so schedules, precision and Lightning's hooks work as usual. A node whose next fit would exceed its
    `max_epsilon` no longer takes part; this is logged once.

    Raises:
        ValueError: If gradients are accumulated over batches or scaled for float16, several devices share a node, or a
            node's batches are not Poisson-sampled.
    """

    enforces = frozenset({"example_privacy"})

    def __init__(self) -> None:
        super().__init__()
        self._samples: GradSampleModule | None = None
        self._optimizer: DPOptimizer | None = None
        self._context: Context | None = None
        self._trainer: WorldTrainer | None = None

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._trainer = trainer
        private = [node.name for node in trainer.topology.data_nodes if node.settings.example_privacy]
        if private and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"accumulate_grad_batches is {trainer.accumulate_grad_batches}, but example_privacy at "
                f"{', '.join(private)} needs 1, because Poisson sampling draws a new batch for every step"
            )
        if private and trainer.devices_per_node > 1:
            raise ValueError(
                f"devices_per_node is {trainer.devices_per_node}, but example_privacy at {', '.join(private)} needs 1, "
                "because noise is drawn once for the whole batch"
            )
        if private and trainer.scaler is not None:
            raise ValueError(
                f"precision is {trainer.precision}, so example_privacy at {', '.join(private)} would clip scaled "
                "gradients; use bf16-mixed or 32-true"
            )

    def participates(self, context: Context) -> bool:
        name, privacy = context.node.name, context.node.settings.example_privacy
        if privacy is None or privacy.max_epsilon is None or not context.node.holds_data:
            return True
        assert self._trainer is not None, "setup runs before the first round"
        steps, rate = self._trainer.plan.num_batches(name), _sample_rate(self._trainer, name)
        return self._may_go_on(context, privacy, "fit", rate, steps)

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        private = [node.name for node in trainer.topology.data_nodes if node.fits and node.settings.example_privacy]
        samplers = {name: trainer.fit_loop.loaders[name].batch_sampler for name in private}
        if names := [name for name, sampler in samplers.items() if not hasattr(sampler, "sample_rate")]:
            raise ValueError(
                f"example_privacy at {', '.join(names)} needs Poisson-sampled batches, which its accountant assumes; "
                "use worldlm.data.PoissonBatchSampler"
            )

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        privacy = context.node.settings.example_privacy
        if privacy is None:
            return
        from opacus import GradSampleModule  # imports scipy, so only where a node asks for it
        from opacus.optimizers import DPOptimizer

        module: Any = fit.module
        self._samples = GradSampleModule(module.model, batch_first=True, loss_reduction="mean")
        self._optimizer = DPOptimizer(
            fit.optimizers[0],
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clip_norm,
            expected_batch_size=fit.batch_sampler.batch_size,
            generator=torch.Generator(device=module.device),
        )
        self._context = context

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._optimizer is None or self._context is None:
            return
        state, name, privacy = self._context.state, self._context.node.name, self._context.node.settings.example_privacy
        assert privacy is not None and self._optimizer.generator is not None
        num_steps = sum(steps for _, _, steps in self.ledger(state).history)
        self._optimizer.generator.manual_seed(derive_seed(trainer.seed, name, num_steps, "gradient noise"))
        self._optimizer.pre_step()  # p.grad becomes the clipped, noised mean
        self._spend(state, privacy.noise_multiplier, _sample_rate(trainer, name))

    def on_train_batch_end(self, trainer: WorldTrainer, *args: Any) -> None:  # type: ignore[override]
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)  # drops the per-sample gradients

    def on_local_fit_end(self, context: Context) -> None:
        if (privacy := context.node.settings.example_privacy) is not None:
            self._remove_hooks()
            self._log_epsilon(context, privacy, "example_epsilon")

    def on_sanitise(self, context: Context, upload: Upload, download: Download) -> Upload:
        """Remove metrics and token counts: they reveal the text, and only the model is protected by noise."""
        if context.node.settings.example_privacy is None:
            return upload
        return replace(upload, metrics={}, row_counts={})

    def node_figures(self, node: Node, state: NodeState) -> dict[str, float]:
        privacy = node.settings.example_privacy
        if privacy is None or not node.holds_data:
            return {}
        return {"example epsilon": self.ledger(state).epsilon(privacy.delta)}

    def on_exception(self, trainer: Any, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        if self._samples is not None:
            self._samples.to_standard_module()  # removes Opacus' hooks
        self._samples = self._optimizer = self._context = None


def _sample_rate(trainer: WorldTrainer, name: str) -> float:
    sampler: Any = trainer.fit_loop.loaders[name].batch_sampler
    return float(sampler.sample_rate)
