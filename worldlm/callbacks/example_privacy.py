"""Example-level differential privacy: DP-SGD during a node's fit, with Opacus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from worldlm.callbacks.alternating_adapters import AlternatingAdapters
from worldlm.callbacks.privacy_ledgers import PrivacyLedgers
from worldlm.federation.messages import Download, Upload
from worldlm.federation.private_gradient import private_gradient
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, LocalFit, RoundCallback, World
from worldlm.topology import Node
from worldlm.topology.changes import Changes
from worldlm.topology.settings import UNITS
from worldlm.trainer import WorldTrainer

if TYPE_CHECKING:
    from opacus import GradSampleModule


class _Memory(TypedDict, total=False):
    history: list[list[float]]
    unit: str


class ExamplePrivacy(PrivacyLedgers):
    """Trains with DP-SGD (Abadi et al., arXiv 1607.00133) at every node for which the topology sets `example_privacy`.

    The unit of privacy is a block of text, a document, or a person, as the topology sets it. Each step clips the
    gradient of the one block that each drawn unit contributes, adds noise to their sum, and divides by the expected
    batch size. Batches are Poisson-sampled, as the accountant assumes. Opacus computes per-sample gradients. The node's
    own optimizer steps with their clipped, noised mean, so schedules, precision and Lightning's hooks work as usual. A
    node whose next fit would exceed its `max_epsilon` no longer takes part; this is logged once.

    List it after `AlternatingAdapters`, so that only the trained factor is clipped and noised.

    Raises:
        ValueError: If gradients are accumulated over batches or scaled for float16, several devices share a node, or a
            node's batches are not Poisson-sampled; or if a run resumes with a larger unit.
    """

    enforces = frozenset({"example_privacy"})
    memory_schema = _Memory

    def __init__(self) -> None:
        super().__init__()
        self._samples: GradSampleModule | None = None
        self._batch_size = 1
        self._context: Context | None = None
        self._trainer: WorldTrainer | None = None

    def must_follow(self, other: RoundCallback) -> str:
        if isinstance(other, AlternatingAdapters):
            return (
                "AlternatingAdapters is listed after ExamplePrivacy, which would clip the gradients of both factors: "
                "list ExamplePrivacy after it"
            )
        return ""

    def setup(self, trainer: WorldTrainer, pl_module: LightningModule, stage: str) -> None:  # type: ignore[override]
        self._trainer = trainer
        private = [node.name for node in trainer.data_nodes if node.settings.example_privacy]
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
        if private and not hasattr(pl_module, "model"):
            raise ValueError(
                f"example_privacy at {', '.join(private)} needs the gradient of each example, which is computed in the "
                f"attribute `model` of the module, and {type(pl_module).__name__} has none: put its layers into one"
            )
        check: Any = getattr(getattr(pl_module, "architecture", None), "why_no_example_gradients", None)
        has_adapters = getattr(getattr(pl_module, "lora", None), "is_given", False)
        if private and check is not None and (reason := check(has_adapters)):
            raise ValueError(f"example_privacy at {', '.join(private)} is not possible with this model: {reason}")
        if private and trainer.scaler is not None:
            raise ValueError(
                f"precision is {trainer.precision}, so example_privacy at {', '.join(private)} would clip scaled "
                "gradients; use bf16-mixed or 32-true"
            )

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        super().on_topology_change(world, changes, states)
        for name, node in world.topology.nodes.items():
            memory, privacy = states[name].memory.get(self.state_key, {}), node.settings.example_privacy
            before = memory.get("unit", UNITS[0])
            if privacy and memory.get("history") and UNITS.index(before) < UNITS.index(privacy.unit):
                raise ValueError(
                    f"{name} has trained with the unit {before}, so its epsilon cannot hold for each {privacy.unit}: "
                    f"keep example_privacy.unit {before}, or start a new run"
                )

    def participates(self, context: Context) -> bool:
        name, privacy = context.node.name, context.node.settings.example_privacy
        if privacy is None or privacy.max_epsilon is None or not context.node.holds_data:
            return True
        assert self._trainer is not None, "setup runs before the first round"
        steps, rate = self._trainer.plan.num_batches(name), _sample_rate(self._trainer, name)
        return self._may_go_on(context, privacy, "fit", rate, steps)

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        private: list[Any] = [n for n in trainer.data_nodes if n.fits and n.settings.example_privacy]
        samplers: dict[str, Any] = {n.name: trainer.fit_loop.loaders[n.name].batch_sampler for n in private}
        if names := [name for name, sampler in samplers.items() if not hasattr(sampler, "sample_rate")]:
            raise ValueError(
                f"example_privacy at {', '.join(names)} needs Poisson-sampled batches, which its accountant assumes; "
                "use worldlm.data.PoissonBatchSampler"
            )
        for node in private:
            wanted, drawn = node.settings.example_privacy.unit, samplers[node.name].unit
            if wanted != drawn:
                raise ValueError(
                    f"example_privacy at {node.name} protects each {wanted}, but its batch_sampler draws {drawn}s; see "
                    "worldlm.data.UnitBatchSampler"
                )

    def on_local_fit_start(self, context: Context, fit: LocalFit) -> None:
        privacy = context.node.settings.example_privacy
        if privacy is None:
            return
        from opacus import GradSampleModule  # imports scipy, so only where a node asks for it

        module: Any = fit.module
        self._samples = GradSampleModule(module.model, batch_first=True, loss_reduction="mean")
        self._batch_size = fit.batch_sampler.batch_size
        self._context = context

    def on_before_optimizer_step(  # type: ignore[override]
        self, trainer: WorldTrainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._context is None:
            return
        context, privacy = self._context, self._context.node.settings.example_privacy
        assert privacy is not None and context.world.noise_key is not None
        num_steps = sum(steps for _, _, steps in self.ledger(context.state).history)
        parameters: dict[str, Any] = {  # without the factor that `AlternatingAdapters` does not train in this round
            name: parameter for name, parameter in pl_module.named_parameters() if parameter.grad is not None
        }
        gradients = private_gradient(
            {name: parameter.grad_sample.to(parameter.dtype) for name, parameter in parameters.items()},
            clip_norm=privacy.clip_norm,
            noise_multiplier=privacy.noise_multiplier,
            expected_batch_size=self._batch_size,
            stream=context.world.noise_key.stream_for(context.node.name, num_steps, "gradient noise"),
        )
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        self._spend(context.state, privacy.noise_multiplier, _sample_rate(trainer, context.node.name))
        self.memory(context.state)["unit"] = privacy.unit

    def on_train_batch_end(self, trainer: WorldTrainer, *args: Any) -> None:  # type: ignore[override]
        if self._samples is not None:
            self._samples.zero_grad(set_to_none=True)  # also drops the per-sample gradients

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
        self._samples = self._context = None


def _sample_rate(trainer: WorldTrainer, name: str) -> float:
    sampler: Any = trainer.fit_loop.loaders[name].batch_sampler
    return float(sampler.sample_rate)
