"""What a user of Lightning would write at first: one `Trainer.fit` per client per round.

As `lightning` with all of a Trainer's defaults, as `lightning_quiet` without logger, checkpoints, bars and summary.
"""

import logging
import shutil
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from job import CLIP, Workspace, loss, optimizer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Module(pl.LightningModule):
    """The decoder, as a LightningModule."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        batch_loss = loss(self.model, batch[0])
        self.log("loss", batch_loss)
        return batch_loss

    def configure_optimizers(self) -> Any:
        chosen = optimizer(self.model)
        chosen._step_supports_amp_scaling = False  # otherwise Lightning does not clip with a fused optimizer
        return chosen


def main() -> None:
    workspace = Workspace.of_command_line()
    if workspace.processes > 1:
        raise SystemExit("skipped: trains in one process")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    job, folder = workspace.job, workspace.folder / "lightning"
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    options = quiet if workspace.system == "lightning_quiet" else {}
    module = Module(workspace.model())
    server = {name: parameter.detach().clone() for name, parameter in module.model.named_parameters()}
    for number in range(job.rounds):
        trained = []
        for client in range(job.clients):
            module.model.load_state_dict({**server, "lm_head.weight": server["transformer.wte.weight"]}, strict=False)
            tokens = torch.cat([workspace.tokens(client, number, step) for step in range(job.steps)])
            trainer = pl.Trainer(
                max_steps=job.steps,
                gradient_clip_val=CLIP,
                accelerator=job.accelerator,
                default_root_dir=folder,
                **options,
            )
            trainer.fit(module, DataLoader(TensorDataset(tokens), batch_size=job.batch))
            trained.append(
                {
                    name: parameter.detach().to(job.device, copy=True)
                    for name, parameter in module.model.named_parameters()
                }
            )
        server = {name: torch.stack([weights[name] for weights in trained]).mean(0) for name in server}
        workspace.end_round(lambda weights=server: weights)
        shutil.rmtree(folder, ignore_errors=True)
    workspace.report()


if __name__ == "__main__":
    main()
