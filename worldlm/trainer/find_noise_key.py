"""Finds or makes the noise key of a run, in all its processes."""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning.pytorch as pl

from worldlm.federation.noise_key import NoiseKey
from worldlm.runs.folder import key_name
from worldlm.storage.noise_key_file import find_key, read_key, write_key

log = logging.getLogger(__name__)


def find_noise_key(trainer: pl.Trainer, folder: Path, given: Path | None, fingerprint: str | None) -> NoiseKey:
    """Return the noise key of a run whose topology demands privacy. All processes call this at the same point.

    A new run gets a new key, in a file in its folder. A run that resumes uses the key of its checkpoint, from its own
    folder or from that of the run that it continues. If that key is lost or replaced, this is logged, and `Record` adds
    it to results.json. A trial run (`fast_dev_run`) has a key that is not kept.

    Args:
        trainer: Its strategy connects the processes.
        folder: The run's folder.
        given: The file that the user names, or None. If it does not exist, a new key is written there.
        fingerprint: Of the key of the checkpoint from which the run resumes, if there is one.

    Raises:
        ValueError: If a key cannot be read or written, or if other users can read it.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return _temporary_key(trainer)
    found: Path | str = ""
    if trainer.is_global_zero:
        try:
            found = _find_or_make(trainer, folder, given, fingerprint)
        except ValueError as error:
            found = str(error)
    found = trainer.strategy.broadcast(found)
    if isinstance(found, str):
        raise ValueError(found)
    return read_key(found)


def _temporary_key(trainer: pl.Trainer) -> NoiseKey:
    """Make a key that all processes of this machine read, and delete its file."""
    with TemporaryDirectory() as folder:  # which only this user can read
        path = Path(folder) / "noise.key"
        write_key(NoiseKey(), path)
        key = read_key(trainer.strategy.broadcast(path))
        trainer.strategy.barrier()
    return key


def _find_or_make(trainer: pl.Trainer, folder: Path, given: Path | None, fingerprint: str | None) -> Path:
    if given is not None and given.exists():
        found = read_key(given).fingerprint
        if fingerprint is None:
            message = "the noise key %s exists: runs that share a key draw the same examples, so give each run its own"
            log.warning(message, given)
        elif fingerprint != found:
            log.warning("the noise key was replaced: %s instead of %s, from this round on", found, fingerprint)
        return given
    if given is None and fingerprint is not None:
        checkpoint = Path(str(trainer.ckpt_path)).absolute()
        source = find_key(fingerprint, (folder, checkpoint.parents[1], checkpoint.parent))
        if source is not None:
            key = read_key(source)
            if key.fingerprint != fingerprint:
                raise ValueError(f"{source} holds the noise key {key.fingerprint}: delete or rename it")
            if source.parent.resolve() != folder.resolve():  # this run must not depend on the other's folder
                write_key(key, folder / source.name)
                log.warning(
                    "the noise key was copied from %s: if others have had that folder, name a new key with "
                    "--trainer.noise_key", source,
                )  # fmt: skip
            return folder / source.name
    key = NoiseKey()
    path = given or folder / key_name(key.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_key(key, path)
    if fingerprint is not None:
        log.warning(
            "the noise key %s of the checkpoint is lost, so a new one was made: %s; from this round on, the run cannot "
            "be the same as without the interruption", fingerprint, path,
        )  # fmt: skip
    else:
        log.info("wrote the noise key to %s: keep it secret", path)
    return path
