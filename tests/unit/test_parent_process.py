"""A process ends when the process that started it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

_CHILD = """
import sys, time
from worldlm.runs import parent_process
{before}
parent_process.follow_parent()
print("ready", parent_process._VARIABLE in parent_process.os.environ, flush=True)
time.sleep(60)
"""

_PARENT = """
import os, signal, subprocess, sys
from worldlm.runs.parent_process import bound_to_this_process
environment = {{**os.environ, **bound_to_this_process(signal.SIGKILL)}}
subprocess.run([sys.executable, "-c", {child!r}], env=environment)
"""

_NO_KERNEL = "parent_process._ask_kernel = lambda signum: False; parent_process._SECONDS_BETWEEN_LOOKS = 0.05"


@pytest.mark.parametrize("before", ["", _NO_KERNEL], ids=["kernel", "thread"])
def test_a_killed_parent_takes_its_child_along(before: str) -> None:
    parent = _PARENT.format(child=_CHILD.format(before=before))
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready False\n"  # processes of the child do not read the variable
        process.kill()
        assert process.stdout.read() == ""  # the pipe is closed as soon as the child has ended


def test_a_parent_that_ended_before_the_child_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    environment = {"WORLDLM_PARENT": f"{gone.pid} {int(signal.SIGTERM)}"}
    path = {"PYTHONPATH": ":".join(sys.path)}
    child = subprocess.run([sys.executable, "-c", _CHILD.format(before="")], env={**environment, **path}, check=False)
    assert child.returncode == -signal.SIGTERM
