"""The benchmark's systems do the same job."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks" / "side_by_side"
TINY = ["--clients", "2", "--steps", "2", "--rounds", "1", "--blocks", "2", "--width", "16"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_worldlm_and_the_bare_loop_agree_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    options = ["--jobs", "round_small", "--systems", "bare,worldlm", "--layouts", "1x1", *TINY]
    monkeypatch.setattr(sys, "argv", ["side_by_side", *options])
    runpy.run_path(str(FOLDER), run_name="__main__")
    told = capsys.readouterr().out
    assert "skipped" not in told, told
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.startswith(("bare", "worldlm"))}
    assert [row[-1] for row in (rows["bare"], rows["worldlm"])] == ["0.0e+00", "0.0e+00"], told
    assert all(float(cpu) >= 0 for _, cpu, *_ in rows.values())
