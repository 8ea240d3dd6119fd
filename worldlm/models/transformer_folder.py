"""Reading the weights of a folder of transformers: only safetensors of that folder, without code from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from worldlm.files.regular import check_regular
from worldlm.models.hugging_face import ADAPTER_CONFIG, INDEX, WEIGHTS, advice, indexed_files
from worldlm.topology.errors import join_names, native_errors


def read_model(folder: Path, config: Any) -> Any:
    """Return the model of a folder, float32.

    Args:
        folder: Has safetensors.
        config: The configuration of transformers; that of the folder is not read.

    Raises:
        ValueError: If the folder has no safetensors, an adapter, or weights of another model; with one line for each
            kind of mistake.
    """
    from transformers import AutoModelForCausalLM

    if (folder / ADAPTER_CONFIG).exists():
        raise ValueError(f"{folder} has an adapter, which would change the weights: merge it into them first")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no safetensors{advice(folder)}")
    for file in files:
        check_regular(file)
    has_index = not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file()
    if missing := [file for file in (indexed_files(folder) if has_index else ()) if file not in files]:
        raise ValueError(f"{missing[0]} does not exist{advice(folder)}")
    with native_errors(f"the weights in {folder} cannot be read as safetensors"), _quiet():
        read: Any = AutoModelForCausalLM.from_pretrained
        model, report = read(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported
        )
    mistakes = [
        f"{folder}: the weights {name} have the shape {[*found]}, but the model needs {[*needed]}"
        for name, found, needed in sorted(report.pop("mismatched_keys", ()), key=str)[:3]
    ]
    mistakes += [
        f"{folder}: {kind.replace('_', ' ')}: {join_names([str(name) for name in sorted(names, key=str)], 3)}"
        for kind, names in report.items()
        if names
    ]
    if mistakes:
        raise ValueError("\n".join(mistakes))
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' report of mismatches, which are in the error, and its progress bar."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()
