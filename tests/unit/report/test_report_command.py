"""`worldlm report` as a user meets it: where it writes, and what it says of what it cannot read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldlm.cli import main
from worldlm.runs.results_schema import mistakes

Lay = Callable[..., Path]


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages hold the runs' titles alone."""
    drawn = lambda runs, track: f"{[one.record.title for one in runs]}</html>\n"  # noqa: E731
    monkeypatch.setattr("worldlm.commands.report.page.page", drawn)


@pytest.mark.usefixtures("undrawn")
def test_a_page_lies_beside_the_record_it_tells_of(lay: Lay, capsys: pytest.CaptureFixture[str]) -> None:
    lay("one")
    lay("other")
    for arguments, target in (
        (["runs/one"], "runs/one/version_0/report.html"),
        (["runs/one/version_0"], "runs/one/version_0/report.html"),
        (["runs/one", "runs/other"], "report.html"),
        (["runs/one", "runs/one/version_0/../version_0"], "report.html"),
        (["runs/one", "--out", "deep/down/x.html"], "deep/down/x.html"),
    ):
        assert main(["report", *arguments]) == 0
        assert capsys.readouterr() == (f"done. report: {target}\n", "")
        assert Path(target).read_text("utf-8").endswith("</html>\n")
        Path(target).unlink()
    assert [path.name for path in Path("runs/one/version_0").iterdir() if path.name.endswith("partial")] == []


@pytest.mark.usefixtures("undrawn")
def test_of_a_comparison_all_runs_in_its_order(lay: Lay, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a-1", "b-1"):
        lay(f"both/{name}")
        Path(f"runs/both/{name}/settings.json").write_text("{}")
    Path("runs/both/comparison.json").write_text('{"methods": ["b", "a"]}')
    assert main(["report", "runs/both"]) == 0
    assert capsys.readouterr().out == "done. report: runs/both/report.html\n"
    assert "['b, seed 1337', 'a, seed 1337']" in Path("runs/both/report.html").read_text("utf-8")
    Path("runs/both/comparison.json").write_text("{}")
    assert main(["report", "runs/both"]) == 2
    assert capsys.readouterr().err == "worldlm: runs/both/comparison.json: has no order of methods: 'methods'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "results.json: no record of a run: Expecting property name"),
        ("[" * 100_000, "results.json: no record of a run: it is nested too deeply"),
        ('{"format": 2}', "results.json: format 2 is unknown"),
        ('{"format": 1}', "results.json: not as worldlm writes it: finished: is missing"),
    ],
)
def test_a_broken_record_is_a_line(lay: Lay, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    assert main(["report", str(lay(text=text))]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_what_is_not_there_is_a_line(lay: Lay, capsys: pytest.CaptureFixture[str]) -> None:
    lay()
    Path("runs/empty").mkdir()
    for arguments, message in (
        (["runs/tinny"], "worldlm: runs/tinny: no such folder; did you mean 'runs/tiny'?\n"),
        (["runs/empty"], "worldlm: runs/empty: no results.json in it, nor in the folder of a run below\n"),
        (["runs/tiny", "--out", "runs"], "worldlm: runs is a folder; --out takes a file, such as runs/report.html\n"),
    ):
        assert main(["report", *arguments]) == 2
        assert capsys.readouterr() == ("", message)


def changed(content: dict[str, Any], path: str, value: object) -> list[str]:
    place: Any = content
    *above, last = path.split(".")
    for key in above:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return list(mistakes(content))


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("rounds.0.nodes.a.tokens", "x", "rounds[0].nodes.a.tokens: must be a whole number of at least 0, but is 'x'"),
        ("rounds.1.nodes.a.after_fit.perplexity", 0,
         "rounds[1].nodes.a.after_fit.perplexity: must be above 0, but is 0"),
        ("rounds.1.nodes.a.after_fit.perplexity", True,
         "rounds[1].nodes.a.after_fit.perplexity: must be a number, but is True"),
        ("rounds.0.nodes.a.epsilon", 10**400, f"rounds[0].nodes.a.epsilon: must be a number, but is 1{'0' * 56}..."),
        ("rounds.0.routes", {"a to b": 1}, "rounds[0].routes: must name routes as 'origin > home', but has 'a to b'"),
        ("rounds.0.mixtures", [], "rounds[0].mixtures: must be an object, but is []"),
        ("rounds.0.mixtures.north.a", {}, "rounds[0].mixtures.north.a: must have a weight, but is {}"),
        ("topology.root.children.0.children.1.told", "x",
         "topology.root.children[0].children[1].told: must be a list, but is 'x'"),
        ("versions.python", 3, "versions.python: must be text, but is 3"),
        ("finished", 1, "finished: must be true or false, but is 1"),
        ("data_nodes.a", None, "data_nodes.a: must be an object, but is None"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place(
    content: Callable[..., dict[str, Any]], path: str, value: object, fault: str
) -> None:
    assert list(mistakes(content())) == []
    assert changed(json.loads(json.dumps(content())), path, value) == [fault]
