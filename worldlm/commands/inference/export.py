"""`worldlm export`: writes a node's model, or its adapters, as a Hugging Face folder."""

from __future__ import annotations

import glob
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from worldlm.cli.parser import Parser
from worldlm.commands.inference.errors import file_errors
from worldlm.commands.inference.model_card import model_card, own_updates
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.data import Tokenizer
from worldlm.data.tokenizers import FILE
from worldlm.federation.parameters import is_finite
from worldlm.files.regular import check_link
from worldlm.models import Transformer, architecture_of, merge_adapters, write_adapter
from worldlm.models.hugging_face import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, WEIGHTS
from worldlm.topology.errors import UserError


def export(arguments: Sequence[str]) -> int:
    """Write a node's model as a folder that transformers opens, or its adapters as one that peft opens.

    Args:
        arguments: The words after `worldlm export`.

    Returns:
        The exit status, 0.

    Raises:
        UserError: For mistakes that the user can correct, one line each.
    """
    options = _parser().parse_args(arguments)
    target = Path(os.path.expanduser(options.out))
    with file_errors():
        run = open_run(options.run, options.round, options.trust, options.base)
        if options.merge and not run.lora.is_given:
            raise UserError([f"--merge: {run.folder} trained no adapters, so the whole model is exported without it"])
        (node,) = run.choose([options.node])
        _check_target(target, force=options.force)
        warnings = export_node(run, node, target, license_=options.license, merged=options.merge)
    for line in warnings:
        print(f"worldlm: warning: {line}", file=sys.stderr)
    weights = ADAPTER_WEIGHTS if run.lora.is_given and not options.merge else WEIGHTS
    megabytes = (target / weights).stat().st_size / 1e6
    kind = "adapters" if weights == ADAPTER_WEIGHTS else "weights"
    tokenizer = "no tokenizer" if warnings[:1] == [_NO_TOKENIZER] else "tokenizer"
    print(f"{node} of {run.title}: {megabytes:,.1f} MB of {kind}, {tokenizer}, card")
    print(f"done. model: {target}")
    return 0


_WEIGHTS = (WEIGHTS, ADAPTER_WEIGHTS)
_OF_MODEL = {CONFIG, "generation_config.json", ADAPTER_CONFIG, *_WEIGHTS}
"""The files of a model or of adapters."""
_FILES = {*_OF_MODEL, FILE, "tokenizer_config.json", "README.md"}
"""All files of an exported folder."""
_NO_TOKENIZER = "the run's tokenizer was not found and is not exported"


def export_node(
    run: SavedRun, node: str, target: Path, *, license_: str | None = None, merged: bool = False
) -> list[str]:
    """Write config, weights, tokenizer and model card. What an earlier export left in the folder is replaced.

    All files are written beside the folder, and moved into it when all are complete, the weights last. What an export
    left beside the folder when it was killed is removed.

    Args:
        run: The run, as of the round that is exported.
        node: The node.
        target: The folder; it need not exist.
        license_: The licence to name in the card.
        merged: Whether adapters are added to their frozen model, which is then exported; else they are exported alone.

    Returns:
        Warnings for whoever passes the folder on, one line each.

    Raises:
        ValueError: If transformers' MPT cannot compute what the model does, the tokenizer cannot be read, or the frozen
            model of adapters is missing or has changed.
        OSError: If the folder cannot be written.
    """
    weights = _merged(run, node) if merged else run.world.parameters(node)
    tokenizer, warnings = _tokenizer(run)
    if not is_finite(weights):
        warnings.append(f"the weights of {node} are not all finite numbers: its training diverged")
    if run.topology is not None and (warning := own_updates(run, node, run.topology)):
        warnings.append(warning.replace("**", "").replace("`", ""))
    target.parent.mkdir(parents=True, exist_ok=True)
    target = check_link(target).resolve()
    _remove_left_over(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    partial.mkdir()
    try:
        _write_weights(partial, run, weights, tokenizer, merged=merged)
        if tokenizer is not None:
            write_tokenizer(partial, tokenizer, architecture_of(run.world.hyper_parameters).max_seq_len)
        missing = "" if tokenizer is not None else f"**No tokenizer**: {_NO_TOKENIZER}."
        card = model_card(run, node, weights, license_=license_, merged=merged, warning=missing)
        (partial / "README.md").write_text(card, "utf-8")
        target.mkdir(exist_ok=True)
        # a folder in which files of two exports are mixed has no weights, so nothing opens it
        for name in sorted(_OF_MODEL, key=lambda name: name not in _WEIGHTS):
            (target / name).unlink(missing_ok=True)
        for file in sorted(partial.iterdir(), key=lambda path: path.name in _WEIGHTS):
            file.replace(target / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return warnings


def _merged(run: SavedRun, node: str) -> dict[str, Tensor]:
    """Return the weights of the frozen model with a node's adapters added in."""
    module = run.module()
    assert isinstance(module.architecture, Transformer), "others have no adapters"
    base = {name: module.get_buffer(name).cpu() for name in module.frozen}
    return merge_adapters(module.architecture, module.lora, run.world.parameters(node), base)


def _write_weights(
    folder: Path, run: SavedRun, weights: Mapping[str, Tensor], tokenizer: Tokenizer | None, *, merged: bool
) -> None:
    architecture = architecture_of(run.world.hyper_parameters)
    if run.lora.is_given and not merged:
        assert isinstance(architecture, Transformer), "others have no adapters"
        write_adapter(folder, architecture, run.lora, weights, str(run.world.hyper_parameters["init_from"]))
    else:
        architecture.write_folder(folder, weights, None if tokenizer is None else end_token(tokenizer))
    for file in [*folder.glob("*.safetensors")]:  # safetensors makes them readable by their owner only
        file.chmod(next(folder.glob("*.json")).stat().st_mode)


def _tokenizer(run: SavedRun) -> tuple[Tokenizer | None, list[str]]:
    try:
        return run.tokenizer, []
    except ValueError as error:
        return None, [_NO_TOKENIZER, *str(error).splitlines()]


def _remove_left_over(target: Path) -> None:
    """Remove the partial folders of exports that were killed; their names contain the number of the process."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        number = folder.name.split(".")[-2]
        if number.isdigit() and (int(number) == os.getpid() or not _is_alive(int(number))):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def write_tokenizer(folder: Path, tokenizer: Tokenizer, max_seq_len: int) -> None:
    """Write a fast tokenizer for transformers that encodes as in training.

    It adds no tokens, and special tokens spelt out in a text stay plain text, unless there is a chat template:
    transformers encodes a rendered conversation as one text.
    """
    from tokenizers import Tokenizer as Backend

    content, chat = json.loads(tokenizer.to_json()), getattr(tokenizer, "chat", None)
    end = Backend.from_str(tokenizer.to_json()).id_to_token(end_token(tokenizer))
    _write_json(folder / FILE, {**content, "post_processor": None, "truncation": None, "padding": None})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "pad_token": end,
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": chat is None,
        **({} if chat is None else chat.settings()),
    }
    _write_json(folder / "tokenizer_config.json", settings)


def end_token(tokenizer: Tokenizer) -> int:
    """Return the token at which generation ends: the `eos_token` of a chat template if it has one."""
    chat = getattr(tokenizer, "chat", None)
    token = None if chat is None else chat.end_token
    return tokenizer.end_of_text if token is None else int(token)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def _check_target(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise UserError([f"{target} is a file: --out takes a folder"])
    names = {path.name for path in target.iterdir()} if target.is_dir() else set[str]()
    was_killed = names.isdisjoint(_WEIGHTS) and names <= _FILES
    if names and not was_killed and not force:
        raise UserError([f"{target} is not empty: choose another folder, or replace its files with --force"])


def _parser() -> Parser:
    description = (
        "Write a node's model as a folder that transformers' AutoModelForCausalLM opens, or its adapters as one that "
        "peft opens."
    )
    parser = Parser("worldlm export", description)
    parser.add_run()
    parser.add_argument("--node", required=True, metavar="NAME", help="a federation or a leaf")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--license", metavar="ID", help="licence to name in the card, such as mit; unknown by default")
    parser.add_argument("--merge", action="store_true", help="add adapters to their model, and write the whole model")
    parser.add_argument("--force", action="store_true", help="replace the files of a folder that is not empty")
    return parser
