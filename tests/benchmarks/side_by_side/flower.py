"""Flower: its simulation over Ray, with one actor, or several."""

import os
import sys
from pathlib import Path
from typing import Any

from job import Workspace, train, trained

try:
    import ray  # noqa: F401
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
except ImportError as error:
    raise SystemExit(f"skipped: {error.name} is not installed") from None

client_app, server_app = ClientApp(), ServerApp()
cached: list[tuple[Workspace, Any]] = []
"""The workspace and the module of an actor, which the app has to keep from one client to the next."""


def workspace() -> Workspace:
    """Return the workspace, which actors read from their environment."""
    folder, processes, threads = os.environ["SIDE_BY_SIDE"].split(":")
    return Workspace(Path(folder), "flower", int(processes), int(threads))


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    """Train one client."""
    import torch

    if not cached:
        new_workspace = workspace()
        cached.append((new_workspace, new_workspace.model()))
    space, model = cached[0]
    with torch.no_grad():
        sent = message.content["arrays"].to_torch_state_dict()
        for name, parameter in trained(model).items():
            parameter.copy_(sent[name])
    client, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    train(space, model, client, number)
    weights = {name: parameter.detach() for name, parameter in trained(model).items()}
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": 1})})
    return Message(content=content, reply_to=message)


class Strategy(FedAvg):
    """FedAvg that notes the end of every round."""

    def __init__(self, space: Workspace) -> None:
        clients = space.job.clients
        super().__init__(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.space = space

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None, "no client answered"
        self.space.end_round(lambda: {name: array.numpy() for name, array in arrays.items()})
        return arrays, metrics


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run all rounds."""
    space = workspace()
    Strategy(space).start(grid=grid, initial_arrays=ArrayRecord(space.initial()), num_rounds=space.job.rounds)
    space.report()


def main() -> None:
    folder, _, processes, threads = sys.argv[1:5]
    os.environ["SIDE_BY_SIDE"] = f"{folder}:{processes}:{threads}"
    os.environ["PYTHONPATH"] = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import flower  # this very file, but importable by the actors

    run_simulation(
        flower.server_app,
        flower.client_app,
        num_supernodes=Workspace.of_command_line().job.clients,
        backend_config={
            "init_args": {"num_cpus": int(processes), "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


if __name__ == "__main__":
    main()
