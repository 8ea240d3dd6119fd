"""Two systems at the same time: `python tests/benchmarks/side_by_side/duel.py --systems worldlm,pfl --jobs many`.

Each has a core and a thread of its own, and they swap cores after every duel: whatever else the machine does, or how
fast it is at the time, happens to both. A system against itself shows how far to trust a ratio. Compared is CPU per
round, the median of all rounds but the first, which starts up, and the last, in which the other may have ended.
"""

import argparse
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from job import JOBS
from one_run import SYSTEMS, Skipped, prepare, run


def seconds(system: str, folder: Path, core: int) -> float:
    """Run a system on one core; return CPU seconds of a round."""
    os.sched_setaffinity(0, {core})  # of this thread, and of what it starts
    rounds, _ = run(system, folder, processes=1, threads=1)
    return statistics.median(cpu for _, cpu in rounds[1:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default="worldlm,bare", help=f"two of {', '.join(SYSTEMS)}")
    parser.add_argument("--jobs", default="many", help=f"some of {', '.join(JOBS)}")
    parser.add_argument("--rounds", type=int, default=6, help="of a run, at least 3")
    parser.add_argument("--duels", type=int, default=4)
    given = parser.parse_args()
    first, second = systems = given.systems.split(",")
    for name in given.jobs.split(","):
        ratios = []
        with tempfile.TemporaryDirectory() as top, ThreadPoolExecutor(2) as pool:
            folders = [Path(top, side) for side in ("one", "other")]
            for folder in folders:
                folder.mkdir()
                prepare(folder, replace(JOBS[name], rounds=given.rounds))
            for duel in range(given.duels):
                cores = sorted(os.sched_getaffinity(0))[:2][:: 1 if duel % 2 else -1]
                try:
                    mine, theirs = pool.map(seconds, systems, folders, cores)
                except Skipped as reason:
                    parser.exit(1, f"skipped: {reason}\n")
                ratios.append(mine / theirs)
                print(f"{name}: {first} {mine:.3f} s, {second} {theirs:.3f} s: {ratios[-1]:.3f}", flush=True)
        print(f"done. {name}: {first} takes {statistics.median(ratios):.3f} of {second}'s CPU in a round", flush=True)


if __name__ == "__main__":
    main()
