"""Apple's pfl: its simulated backend, with one process, or several ranks of torch.distributed."""

import os
import socket
import subprocess
import sys
from itertools import count
from typing import Any

from job import CLIP, LR, Workspace, loss, optimizer

try:
    import pfl  # noqa: F401
except ImportError:
    raise SystemExit("skipped: pfl is not installed") from None


def start_ranks(processes: int) -> list[subprocess.Popen[bytes]]:
    """Make this process rank 0 of several, as torchrun would, and start the others."""
    if processes == 1 or "RANK" in os.environ:
        return []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"TORCHELASTIC_RUN_ID": "side_by_side", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(processes), "RANK": "0", "LOCAL_RANK": "0"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(1, processes)]
    return [subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, **rank}) for rank in ranks]


def main() -> None:
    workspace = Workspace.of_command_line()
    if workspace.job.accelerator != "cpu":
        raise SystemExit("skipped: set up for a CPU here")
    others = start_ranks(workspace.processes)
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    job = workspace.job

    class Module(torch.nn.Module):
        """The decoder, as pfl wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = workspace.model()

        def loss(self, tokens: Any) -> Any:
            return loss(self.decoder, tokens.long())  # pfl makes float32 of all that it reads

        def metrics(self, tokens: Any) -> dict[str, Any]:
            return {"nothing": Weighted(0, 1)}  # pfl evaluates in its first iteration whatever its settings

    class Clock(TrainingProcessCallback[Any]):
        """Notes the end of every round."""

        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> Any:
            if int(os.environ.get("RANK", 0)) == 0:
                workspace.end_round(lambda: {n: p.detach() for n, p in module.decoder.named_parameters()})
            return False, Metrics()

    module = Module()
    model = PyTorchModel(module, lambda _, lr: optimizer(module), torch.optim.SGD(module.parameters(), lr=1.0))
    visits = count()

    def user(visit: int) -> Dataset:
        number, client = divmod(visit, job.clients)
        return Dataset([torch.cat([workspace.tokens(client, number, step) for step in range(job.steps)]).numpy()])

    users = FederatedDataset(user, lambda: next(visits))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=job.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(users, users),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LR, local_batch_size=job.batch, local_max_grad_norm=CLIP
        ),
        NNEvalHyperParams(local_batch_size=job.batch * job.steps),
        [Clock()],
    )
    if int(os.environ.get("RANK", 0)) == 0:
        workspace.report()
    for other in others:
        other.wait()


if __name__ == "__main__":
    main()
