"""What `worldlm fit` makes of errors that it has not raised itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException

from worldlm.cli.fit import run_command
from worldlm.cli.parser import parse_command_line
from worldlm.runs.folder import LAST
from worldlm.topology.errors import UserError


def run(act: Callable[[Any], Any]) -> int:
    """Run `fit` up to where it would build anything, and act there with its progress."""
    return run_command(parse_command_line(["fit", "--recipe", "quickstart"]), lambda _, progress: act(progress))


def test_an_error_of_lightning_is_one_line() -> None:
    stopping: Any = EarlyStopping("val_loss")
    with pytest.raises(UserError, match="conditioned on metric `val_loss` which is not available") as caught:
        run(lambda _: stopping._validate_condition_metric({"train_loss": 1}))
    assert len(str(caught.value).splitlines()) == 1


def test_an_error_of_other_code_keeps_its_traceback() -> None:
    with pytest.raises(TypeError):
        run(lambda _: len(3))  # type: ignore[arg-type]


def test_a_stopped_run_resumes_only_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(progress: Any) -> None:
        progress.folder = tmp_path
        raise SIGTERMException

    assert run(stop) == 143
    line = capsys.readouterr().out
    assert line == f"stopped; it cannot resume, because no checkpoint was written. results so far: {tmp_path}\n"
    (tmp_path / LAST).parent.mkdir()
    (tmp_path / LAST).touch()
    assert run(stop) == 143
    assert "resume with: worldlm fit --recipe quickstart --ckpt_path last" in capsys.readouterr().out
