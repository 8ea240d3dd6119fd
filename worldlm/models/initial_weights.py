"""Initial weights of a world from an existing model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from worldlm.checkpoint.read import SavedWorld, open_world
from worldlm.models.architecture import Architecture
from worldlm.models.hub import fetch_model, is_folder_or_hub_name, is_hub_name
from worldlm.models.hugging_face import ADAPTER_CONFIG, CONFIG
from worldlm.models.transformer import Transformer
from worldlm.runs.folder import find_run, find_saved

_KINDS = (
    "it must be a Hugging Face folder, a model of the Hub, OWNER/NAME@REVISION, or RUN:NODE or RUN:NODE@ROUND, such as "
    "runs/NAME/version_0:world"
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source of weights whose architecture has been checked."""

    folder: Path
    """A Hugging Face folder, or the folder of a run."""
    node: str = ""
    """The node of the run; empty for a Hugging Face folder."""
    world: SavedWorld | None = None
    """The saved nodes of the run; None for a Hugging Face folder."""


def find_origin(init_from: str, architecture: Architecture | Transformer) -> Origin:
    """Find the source that `init_from` specifies, without reading weights.

    Args:
        init_from: A Hugging Face folder, a model of the Hub, `owner/name@revision`, or a node of a run, `RUN:NODE` or
            `RUN:NODE@ROUND` with rounds from 1.
        architecture: The required architecture; `max_seq_len` may differ, because no weight depends on it.

    Raises:
        ValueError: If the source does not exist, or for another architecture, with one line per difference.
    """
    with _titled(init_from):
        folder = Path(os.path.expanduser(init_from))
        if is_hub_name(init_from) and not folder.exists():
            folder = fetch_model(init_from, weights=True)
        if folder.is_dir():
            if not (folder / CONFIG).is_file():
                if (folder / ADAPTER_CONFIG).is_file():
                    raise ValueError("the folder has adapters only: worldlm export --merge writes the whole model")
                is_run = any(folder.glob("**/checkpoints/*.ckpt"))
                problem = f"add a node of the run, as {init_from}:NODE" if is_run else f"the folder has no {CONFIG}"
                raise ValueError(f"{problem}; {_KINDS}")
            architecture.check_folder(folder)
            return Origin(folder=folder)
        return _find_node(init_from, architecture)


def check_base(init_from: str) -> None:
    """Check that the frozen model of adapters is in a folder or on the Hub, so that a resumed run can read it again.

    Raises:
        ValueError: If there is no such folder, or `init_from` is a node of a run.
    """
    with _titled(init_from):
        if not is_folder_or_hub_name(init_from):
            raise ValueError(
                "there is no such folder, but lora needs the Hugging Face folder of the model that it freezes, such as "
                "one that worldlm export has written, or a model of the Hub, OWNER/NAME@REVISION"
            )


def _find_node(init_from: str, architecture: Architecture | Transformer) -> Origin:
    run, colon, rest = init_from.rpartition(":")
    node, at, round_ = rest.partition("@")
    if not colon or (at and not round_.isdigit()):
        raise ValueError(f"there is no such folder; {_KINDS}" if not colon else f"{round_!r} is not a round; {_KINDS}")
    folder = find_run(run)
    world = open_world(find_saved(folder, int(round_) if at else None))
    world.parameters(node)  # raises if the node does not exist
    if world.hyper_parameters.get("lora") is not None:
        raise ValueError("the run trained adapters: worldlm export --merge writes a folder of the whole model")
    if different := architecture.differences(world.hyper_parameters):
        raise ValueError("\n".join(different))
    return Origin(folder=folder, node=node, world=world)


def initial_weights(
    init_from: str, architecture: Architecture | Transformer, current: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Read the weights from the source that `init_from` specifies.

    Args:
        init_from: As in `find_origin`.
        architecture: As in `find_origin`.
        current: The weights of the model to initialise, by name.

    Raises:
        ValueError: As `find_origin`, or if weights are missing, superfluous, not finite or of another shape.
    """
    origin = find_origin(init_from, architecture)
    with _titled(init_from):
        weights = (
            architecture.read_folder(origin.folder) if origin.world is None else origin.world.parameters(origin.node)
        )
        mistakes = [f"the weights {name} are missing" for name in current if name not in weights]
        mistakes += [f"the model has no weights {name}" for name in weights if name not in current]
        for name in (name for name in current if name in weights):
            shape, required = list(weights[name].shape), list(current[name].shape)
            if shape != required:
                mistakes.append(f"the weights {name} have the shape {shape}, but the model needs {required}")
            elif not bool(weights[name].isfinite().all()):
                mistakes.append(f"the weights {name} are not all finite numbers")
        if mistakes:
            raise ValueError("\n".join(mistakes))
    return dict(weights)


@contextmanager
def _titled(init_from: str) -> Iterator[None]:
    """Begin every line of an error with the setting `init_from`."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError("\n".join(f"init_from is {init_from}: {line}" for line in str(error).splitlines())) from error
