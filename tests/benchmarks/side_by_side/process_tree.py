"""CPU time and memory of a process and all that it started, read from /proc (Linux)."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def tree(root: int) -> dict[int, float]:
    """Return the CPU seconds of a process and of its living descendants, by process id."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(folder.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS
    wanted = {root}
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return {pid: seconds[pid] for pid in wanted if pid in seconds}


def memory(root: int) -> float:
    """Return the memory of a process and of its living descendants in MB; what several share counts once."""
    return sum(_pss(pid) for pid in tree(root)) / 1e6


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


class TreeClock:
    """CPU seconds of a process tree: of a process that ended, what was last seen of it.

    Timers that count reaped children would miss processes that nobody waits for, such as Ray's workers.
    """

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def seconds(self) -> float:
        """Return what this process and all below it have used since they started."""
        for pid, seconds in tree(os.getpid()).items():
            self._seen[pid] = max(seconds, self._seen.get(pid, 0.0))
        self._seen[os.getpid()] = time.process_time()  # finer than the ticks of /proc
        return sum(self._seen.values())
