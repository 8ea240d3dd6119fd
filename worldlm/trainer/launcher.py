"""Starts the other processes of this machine, and ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.fabric.strategies.launchers.subprocess_script import _basic_subprocess_cmd
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from worldlm.distributed.transport import is_network_error, to_rank_lost
from worldlm.runs.parent_process import bound_to_this_process


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine. If one of them fails, it prints which one and ends all of them."""

    get_command: Callable[[], list[str]]
    """Returns the command that starts another process; if it is empty, the running script is started."""

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes, then run a function in this one.

        Args:
            function: The function that all processes run.
            *args: Its arguments.
            trainer: Unused; Lightning passes it.
            **kwargs: Its keyword arguments.

        Raises:
            RankLost: If the connection to another process is lost.
        """
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._start()
            threading.Thread(target=self._watch, daemon=True, name="watch").start()
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            self.end_others()
            if is_network_error(error):
                raise to_rank_lost(error) from error
            raise

    def _start(self) -> None:
        cluster = self.cluster_environment
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
        os.environ["NODE_RANK"], os.environ["LOCAL_RANK"] = str(cluster.node_rank()), "0"
        os.environ["WORLD_SIZE"] = str(self.num_processes * self.num_nodes)
        command = self.get_command() or _basic_subprocess_cmd()
        for rank in range(1, self.num_processes):
            environment = {**os.environ, "LOCAL_RANK": str(rank), **bound_to_this_process(signal.SIGKILL)}
            self.procs.append(subprocess.Popen(command, env=environment))

    def _watch(self) -> None:
        while not any(process.poll() for process in self.procs):
            if all(process.poll() == 0 for process in self.procs):
                return
            time.sleep(0.5)
        time.sleep(2)  # if the main process waits for a message, it detects the loss itself and ends cleanly
        failed = next(process for process in self.procs if process.returncode)
        number = self.procs.index(failed) + 1
        end = f"signal {-failed.returncode}" if failed.returncode < 0 else f"status {failed.returncode}"
        message = (
            f"process {number} of the run ended with {end}, so all others were ended; resume with --ckpt_path last"
        )
        print(f"worldlm: {message}", file=sys.stderr)
        self.end_others()
        os._exit(1)

    def end_others(self) -> None:
        """End the processes that this one has started."""
        for process in self.procs:
            process.kill()
