"""The floor: a plain PyTorch loop with an in-place average, or several that share memory."""

import threading
from itertools import chain
from multiprocessing.synchronize import Barrier

import torch
from job import Workspace, train, trained
from torch import Tensor


class Loop:
    """The server's weights, and what every process needs to train its share of the clients."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.model = workspace.model()
        self.live = [parameter.detach() for parameter in trained(self.model).values()]
        self.server = [tensor.clone() for tensor in self.live]
        self.means = [[torch.zeros_like(tensor) for tensor in self.live] for _ in range(workspace.processes)]
        if workspace.processes > 1:
            for tensor in chain(self.server, *self.means):
                tensor.share_memory_()

    @torch.no_grad()
    def run(self, rank: int, number: int) -> None:
        """Train every so-manieth client, and add it to this process' share of the mean."""
        job, mean = self.workspace.job, self.means[rank]
        for target in mean:
            target.zero_()
        for client in range(rank, job.clients, self.workspace.processes):
            for live, common in zip(self.live, self.server, strict=True):
                live.copy_(common)
            with torch.enable_grad():
                train(self.workspace, self.model, client, number)
            for target, live in zip(mean, self.live, strict=True):
                target.add_(live, alpha=1 / job.clients)

    def merge(self) -> None:
        """Make the mean the server's weights."""
        if len(self.means) == 1:
            self.server, self.means[0] = self.means[0], self.server
            return
        for i, common in enumerate(self.server):
            torch.add(self.means[0][i], self.means[1][i], out=common)
            for mean in self.means[2:]:
                common.add_(mean[i])

    def weights(self) -> dict[str, Tensor]:
        """Return the mean, and the mean as a step of SGD(lr=1) makes it from the start, which rounds differently."""
        weights: dict[str, Tensor] = {}
        start = self.workspace.initial()
        for name, on_device in zip(trained(self.model), self.server, strict=True):
            mean = on_device.cpu()
            weights |= {name: mean, f"{name}/stepped": start[name] - (start[name] - mean)}
        return weights


def work(loop: Loop, rank: int, barrier: Barrier | threading.Barrier) -> None:
    """Train in a process of its own, whenever the first one does."""
    for number in range(loop.workspace.job.rounds):
        barrier.wait()
        loop.run(rank, number)
        barrier.wait()


def main() -> None:
    workspace = Workspace.of_command_line()
    loop = Loop(workspace)
    context = torch.multiprocessing.get_context("fork")
    barrier = context.Barrier(workspace.processes) if workspace.processes > 1 else threading.Barrier(1)
    ranks = range(1, workspace.processes)
    others = [context.Process(target=work, args=(loop, rank, barrier), daemon=True) for rank in ranks]
    for other in others:
        other.start()
    for number in range(workspace.job.rounds):
        barrier.wait()
        loop.run(0, number)
        barrier.wait()
        loop.merge()
        workspace.end_round(loop.weights)
    workspace.report()
    for other in others:
        other.join()


if __name__ == "__main__":
    main()
