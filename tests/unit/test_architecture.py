"""Rules of the house that no linter knows."""

from pathlib import Path

import worldlm

SOURCES = sorted(Path(worldlm.__file__).parent.rglob("*.py"))


def test_the_loops_alone_touch_the_private_loops_of_lightning() -> None:
    users = [path.name for path in SOURCES if "lightning.pytorch.loops" in path.read_text()]
    assert users == ["epoch_loop.py", "fit_loop.py"]


def test_files_stay_small() -> None:
    assert [path.name for path in SOURCES if len(path.read_text().splitlines()) > 300] == []
