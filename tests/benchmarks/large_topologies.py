"""CPU seconds and memory of the commands that read a topology, against its number of leaves.

    python tests/benchmarks/large_topologies.py [--leaves 1000 5000 20000] [--runs 3] [--commands check,show,estimate]

Each topology is written in two shapes: `flat`, four federations of as many leaves as needed, and `deep`, 20 federations
of federations of ten leaves. Each command is a process of its own; the commands take turns, and the median of the runs
is printed, with the command on `single`, a topology of one node, before: that is what starting the command takes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = {
    "check": ["topology", "check"],
    "show": ["topology", "show"],
    "svg": ["topology", "show", "--format", "svg", "--out", "world.svg"],
    "estimate": ["topology", "estimate", "quickstart", "--tokens_per_second", "1000", "--recipe"],
}
CORPUS = "text: {class_path: worldlm.data.StandardLibrary, init_args: {area: topics}}"
MEASURED = """import resource, sys
from worldlm.cli import main
status = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss // 1024, file=sys.stderr)
sys.exit(status)
"""


def flat(num_leaves: int) -> str:
    """Return four federations below the root."""
    lines = ["name: flat", "settings: {num_local_steps: 1}", "root:", "  name: world", "  children:"]
    for i in range(4):
        lines += [f"    - name: f{i}", "      children:"]
        lines += [f"        - {{name: leaf_{i}_{j}, corpus: text}}" for j in range(num_leaves // 4)]
    return "\n".join([*lines, ""])


def deep(num_leaves: int) -> str:
    """Return 20 federations of federations of ten leaves."""
    lines = ["name: deep", "settings: {num_local_steps: 1}", "root:", "  name: world", "  children:"]
    for i in range(20):
        lines += [f"    - name: f{i}", "      children:"]
        for j in range(num_leaves // 200):
            lines += [f"        - name: f{i}_{j}", "          children:"]
            lines += [f"            - {{name: leaf_{i}_{j}_{k}, corpus: text}}" for k in range(10)]
    return "\n".join([*lines, ""])


def measure(command: str, path: Path) -> tuple[float, int]:
    """Return the CPU seconds of a command, and the most memory of its process in MB."""
    given = path
    if command == "estimate":
        given = path.with_suffix(".recipe.yaml")
        given.write_text(f"federation:\n  topology: {path}\ndata:\n  corpora:\n    {CORPUS}\n")
    words = [sys.executable, "-c", MEASURED, *COMMANDS[command], str(given)]
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=path.parent)
    *_, seconds, megabytes = done.stderr.split()
    return float(seconds), int(megabytes)


def main() -> None:
    """Measure every command on every topology."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--commands", default="check,show,svg,estimate")
    options = parser.parse_args()
    commands = options.commands.split(",")
    with tempfile.TemporaryDirectory() as folder:
        texts = {"single": "name: single\nsettings: {num_local_steps: 1}\nroot: {name: alone, corpus: text}\n"}
        texts |= {f"flat {number:,}": flat(number) for number in options.leaves}
        texts |= {f"deep {number:,}": deep(number) for number in options.leaves}
        found: dict[tuple[str, str], list[tuple[float, int]]] = {}
        for _ in range(options.runs):
            for name, text in texts.items():
                path = Path(folder, f"{name.replace(' ', '_')}.yaml")
                path.write_text(text)
                for command in commands:
                    found.setdefault((name, command), []).append(measure(command, path))
        print(f"{'leaves':14}", *(f"{command:>18}" for command in commands))
        for name in texts:
            cells = []
            for command in commands:
                seconds = statistics.median(run[0] for run in found[name, command])
                megabytes = max(run[1] for run in found[name, command])
                cells.append(f"{f'{seconds:.2f} s {megabytes:5} MB':>18}")
            print(f"{name:14}", *cells)


if __name__ == "__main__":
    main()
