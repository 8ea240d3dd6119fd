"""The weights that a world starts from, where they are somebody's already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from worldlm.checkpoint.read import SavedWorld, open_world
from worldlm.models.hugging_face import CONFIG, check_config, read_folder
from worldlm.models.mpt import Architecture, differences
from worldlm.runs.folder import find_run, find_saved

_KINDS = "it takes a Hugging Face MPT folder, or RUN:NODE or RUN:NODE@ROUND, as in runs/NAME/version_0:world"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights come from, checked: a model of the right architecture."""

    folder: Path
    """A Hugging Face folder, or that of a run."""
    node: str = ""
    """The node of the run."""
    world: SavedWorld | None = None
    """The run's nodes; None: it is a Hugging Face folder."""


def find_origin(init_from: str, architecture: Architecture) -> Origin:
    """Find what `init_from` names, without reading weights.

    Args:
        init_from: A Hugging Face folder, or `RUN:NODE`, or `RUN:NODE@ROUND`, rounds counted from 1.
        architecture: What the model must be, but for `max_seq_len`, on which no weight depends.

    Raises:
        ValueError: If nothing is there, or another architecture; one line for each difference.
    """
    with _titled(init_from):
        folder = Path(init_from).expanduser()
        if folder.is_dir():
            if not (folder / CONFIG).is_file():
                is_run = any(folder.glob("**/checkpoints/*.ckpt"))
                told = f"name a node of the run too, as {init_from}:NODE" if is_run else f"the folder has no {CONFIG}"
                raise ValueError(f"{told}; {_KINDS}")
            check_config(folder, architecture)
            return Origin(folder=folder)
        return _find_node(init_from, architecture)


def _find_node(init_from: str, architecture: Architecture) -> Origin:
    run, colon, rest = init_from.rpartition(":")
    node, at, round_ = rest.partition("@")
    if not colon or (at and not round_.isdigit()):
        raise ValueError(f"there is no such folder; {_KINDS}" if not colon else f"{round_!r} is no round; {_KINDS}")
    folder = find_run(run)
    world = open_world(find_saved(folder, int(round_) if at else None))
    world.parameters(node)  # is there
    if different := differences(world.hyper_parameters.get("architecture", {}), architecture):
        raise ValueError("\n".join(different))
    return Origin(folder=folder, node=node, world=world)


def initial_weights(init_from: str, architecture: Architecture, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read the weights that `init_from` names.

    Args:
        init_from: As in `find_origin`.
        architecture: As in `find_origin`.
        own: The weights that they are to replace, by name.

    Raises:
        ValueError: As `find_origin`, or if some are missing, too many, of another shape or no numbers.
    """
    origin = find_origin(init_from, architecture)
    with _titled(init_from):
        found = (
            read_folder(origin.folder, architecture) if origin.world is None else origin.world.parameters(origin.node)
        )
        wrong = [f"the weights {name} are missing" for name in own if name not in found]
        wrong += [f"the weights {name} have no place here" for name in found if name not in own]
        for name in (name for name in own if name in found):
            there, here = list(found[name].shape), list(own[name].shape)
            if there != here:
                wrong.append(f"the weights {name} are of shape {there}, and {here} here")
            elif not bool(found[name].isfinite().all()):
                wrong.append(f"the weights {name} are not all finite numbers")
        if wrong:
            raise ValueError("\n".join(wrong))
    return dict(found)


@contextmanager
def _titled(init_from: str) -> Iterator[None]:
    """Say in every line which setting it is that is wrong."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        raise ValueError("\n".join(f"init_from is {init_from}: {line}" for line in str(error).splitlines())) from error
