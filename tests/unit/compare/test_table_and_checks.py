"""Numbers worked out by hand, and what stands against a comparison."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldlm.commands.compare import compare
from worldlm.commands.compare.checks import check
from worldlm.commands.compare.plots import draw_all, mean_curve
from worldlm.commands.compare.records import common_nodes, read_runs
from worldlm.commands.compare.table import Spread, cells, comma_separated, legend, markdown, rows, spread
from worldlm.plots.style import save
from worldlm.runs.results import RunRecord, results_of
from worldlm.topology.errors import UserError

Make = Callable[..., Any]


def test_spread() -> None:
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0)
    assert spread([5.0]) == Spread(5.0, None)
    assert spread([1.0, None]) is None
    assert spread([]) is None
    assert spread([1.0, math.inf]) == Spread(math.inf, None)


def test_the_numbers_of_a_method(record: Make) -> None:
    first = record("m", 1)
    two = record("m", 2, (10.0, 6.0), (6.0, 4.0), seconds=80.0)
    (row,) = rows([first, two])
    assert (row.method, row.num_seeds) == ("m", 2)
    half = math.sqrt(2.0)
    assert row.figures["after_merge"] == Spread(7.0, half)  # of 6 and 8
    assert row.figures["after_fit"] == Spread(4.5, half / 2)  # of 4 and 5
    assert row.figures["after_merge bits per byte"] == Spread(1.75, half / 4)
    assert row.figures["a after_merge"] == Spread(9.0, half)
    assert row.figures["b after_fit"] == Spread(3.0, half)
    assert row.figures["tokens"] == Spread(2000.0, 0.0)  # two leaves, 1000 each
    assert row.figures["MB moved"] == Spread(12.0, 0.0)  # two leaves, 2 down and 4 up each
    assert row.figures["epsilon"] is None
    assert row.figures["seconds"] == Spread(70.0, 200**0.5)


def test_the_largest_epsilon_counts_and_none_is_infinite(record: Make) -> None:
    private = record("p")
    private.content["rounds"][-1]["nodes"]["a"]["epsilon"] = 3.0
    private.content["rounds"][-1]["nodes"]["b"]["example_epsilon"] = 5.0
    assert private.epsilon == 5.0
    private.content["rounds"][-1]["nodes"]["a"]["epsilon"] = None
    assert private.epsilon == math.inf
    assert "inf" in markdown(rows([private]))


def test_the_table_as_text(record: Make) -> None:
    table = rows([record("z", 1), record("z", 2, (10.0, 6.0), (6.0, 4.0)), record("a", 1)])
    assert [row.method for row in table] == ["z", "a"]  # as given
    lines = markdown(table).splitlines()
    bits = "after_merge bits per byte | after_fit bits per byte | best after_fit"
    assert lines[0] == f"| method | seeds | after_merge | after_fit | {bits} | a | b | tokens | MB moved | seconds |"
    assert lines[2] == (
        "| z | 2 | 7.00 ± 1.41 | 4.50 ± 0.71 | 1.750 ± 0.354 | 1.125 ± 0.177 | 4.50 ± 0.71 "
        "| 9.00 / 6.00 | 5.00 / 3.00 | 2,000 | 12.0 | 60 |"
    )
    assert lines[3] == "| a | 1 | 6.00 | 4.00 | 1.500 | 1.000 | 4.00 | 8.00 / 6.00 | 4.00 / 2.00 | 2,000 | 12.0 | 60 |"
    assert cells(table)[1][0] == [cell.strip() for cell in lines[2].strip("| ").split("|")]
    read = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert float(read[0]["after_merge deviation"]) == math.sqrt(2.0)
    assert (read[1]["a after_fit"], read[1]["a after_fit deviation"], read[1]["epsilon"]) == ("6.0", "", "")


def test_means_are_over_the_nodes_that_have_a_score(record: Make) -> None:
    run, other = record("m"), record("other")
    for number in run.content["rounds"]:
        del number["nodes"]["b"]["after_fit"]
    row, of_other = rows([run, other])
    assert row.figures["after_fit"] == row.figures["a after_fit"] == row.figures["best after_fit"] == Spread(6.0)
    assert of_other.figures["after_fit"] == Spread(6.0)  # not the mean of 6 and 2: both are over a alone
    assert of_other.figures["after_merge"] == Spread(6.0)
    assert "4.00 / -" in markdown([row])
    assert legend([run, other])[-1] == "Means of after_fit are over 1 of 2 data nodes: not b."
    assert not any("Means of" in line for line in legend([other]))


def test_the_last_score_counts_where_the_last_round_has_none(record: Make) -> None:
    run = record("m")
    del run.content["rounds"][1]["nodes"]["a"]["after_merge"]
    assert run.last("a", "after_merge") == 18.0
    assert run.series("a", "after_merge") == {1: 18.0}


# ---------------------------------------------------------------------- comparable?


def said(records: list[RunRecord]) -> list[str]:
    return [finding.text for finding in check(records) if not finding.good]


def test_comparable_runs(record: Make) -> None:
    findings = check([record("x", 1), record("x", 2), record("y", 1), record("y", 2)])
    assert [str(finding) for finding in findings if not finding.good] == []
    assert [finding.text for finding in findings][:2] == ["same seeds: 1, 2", "same initial weights"]
    assert len(findings) == 8


def test_every_difference_is_named(record: Make) -> None:
    def other(change: Callable[[dict[str, Any]], object]) -> list[str]:
        two = record("y", 1)
        change(two.content)
        return said([record("x", 1), two])

    def change_nodes(**facts: Any) -> Callable[[dict[str, Any]], object]:
        return lambda content: content["data_nodes"]["b"].update(facts)

    assert other(lambda c: c.update(seed=2)) == ["same seeds: x 1; y 2"]
    assert other(lambda c: c.update(initial_weights="?")) == ["same initial weights: these differ: seed 1: x | y"]
    assert other(lambda c: c.update(initial_weights=None)) == ["same initial weights: not recorded for y, seed 1"]
    both = "these differ: x, seed 1 | y, seed 1"
    assert other(change_nodes(held_out_blocks=2)) == [f"same held-out text at every node: {both}"]
    assert other(change_nodes(batch_size=8)) == [
        "same batches in the same order at every node: these differ: seed 1: x | y"
    ]
    assert other(change_nodes(steps=1, fits=5)) == []  # sub-rounds read the same batches
    assert other(change_nodes(steps=4)) == ["same batches in the same order at every node: these differ: seed 1: x | y"]
    text = other(change_nodes(text=["sea-2"]))
    assert [line.split(":")[0] for line in text] == [
        "same training text of all nodes together",
        "same batches in the same order at every node",
    ]
    assert other(lambda c: c.update(rounds_done=3)) == [f"same rounds: {both}"]
    assert other(lambda c: c["versions"].update(torch="3")) == [f"same versions: {both}"]
    assert other(lambda c: c["rounds"][-1]["nodes"]["a"].update(tokens=1)) == [f"same tokens at every node: {both}"]


def centralised(record: Make, tokens: int) -> RunRecord:
    run: RunRecord = record("central")
    run.content["topology"]["root"]["corpus"] = "all"
    for number in run.content["rounds"]:
        number["nodes"]["world"]["tokens"] = tokens
        for leaf in "ab":
            number["nodes"][leaf]["tokens"] = 0
            del number["nodes"][leaf]["after_fit"]
    run.content["data_nodes"] = {
        "world": {"text": ["hills-1"], "blocks": 10, "batch_size": 4, "steps": 10, "fits": 1},
        **{leaf: {"text": ["hills-1"], "steps": 0, "fits": 0, **facts} for leaf, facts in _held_out().items()},
    }
    return run


def _held_out() -> dict[str, dict[str, Any]]:
    return {leaf: {"held_out_text": ["hills-1"], "held_out_blocks": 3} for leaf in "ab"}


@pytest.mark.parametrize(("tokens", "good"), [(2000, True), (1000, False)])
def test_a_centralised_run_is_an_exception(record: Make, tokens: int, good: bool) -> None:
    records = [record("x"), centralised(record, tokens)]
    assert common_nodes(records) == ["a", "b"]
    findings = check(records)
    start = "central does not train on the nodes on which it is evaluated"
    assert findings[-1].text == f"{start}: {tokens:,} tokens in total, the other runs 2,000"
    assert findings[-1].good == good
    assert [finding.text for finding in findings[:-1] if not finding.good] == []
    assert rows(records)[1].figures["after_merge"] == Spread(6.0)
    assert rows(records)[1].figures["after_fit"] is None
    assert rows(records)[1].figures["tokens"] == Spread(float(tokens))
    assert rows(records)[1].figures["MB moved"] == Spread(0.0)  # its leaves only listen


# ---------------------------------------------------------------------- reading folders


def keep(folder: Path, content: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def test_the_last_version_counts(tmp_path: Path, content: Make) -> None:
    for number in (0, 9, 10):
        keep(tmp_path / f"version_{number}", content())
    (tmp_path / "version_11").mkdir()
    assert results_of(tmp_path) == tmp_path / "version_10" / "results.json"
    assert results_of(tmp_path / "version_9") == tmp_path / "version_9" / "results.json"
    assert results_of(tmp_path / "version_11") is None


def test_a_comparison_and_a_plain_run_are_read(tmp_path: Path, content: Make) -> None:
    for method, seed in (("x", 1), ("y-z", 1)):
        keep(tmp_path / "it" / f"{method}-{seed}" / "version_0", content(seed))
        (tmp_path / "it" / f"{method}-{seed}" / "settings.json").write_text("{}")
    keep(tmp_path / "quickstart" / "version_0", content(3))
    records = read_runs([tmp_path / "it", tmp_path / "quickstart"])
    assert [(run.method, run.seed) for run in records] == [("x", 1), ("y-z", 1), ("quickstart", 3)]
    assert read_runs([tmp_path / "it" / "y-z-1" / "version_0"])[0].method == "y-z"


def test_what_cannot_be_read(tmp_path: Path, content: Make) -> None:
    keep(tmp_path / "half", {**content(), "finished": False})
    keep(tmp_path / "new", {**content(), "format": 99})
    keep(tmp_path / "list", [])  # type: ignore[arg-type]
    keep(tmp_path / "one", content())
    for folder, message in (("half", "not finished"), ("new", "format 99"), ("list", "no record of a run")):
        with pytest.raises(UserError, match=message):
            read_runs([tmp_path / folder])
    with pytest.raises(UserError, match="both are one, seed 1"):
        read_runs([tmp_path / "one", tmp_path / "one"])


def test_a_comparison_read_again_keeps_its_order(
    tmp_path: Path, player: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("worldlm.plots.style.save", lambda figure, path: path.with_suffix(".svg").touch())
    for name in ("base", "zebra", "ant"):
        (tmp_path / f"{name}.yaml").write_text(f"# {name}\n")
    assert compare(["--recipe", "base.yaml", "--methods", "zebra.yaml,ant.yaml"], player) == 0
    folder = Path("runs/compare-base")
    first, printed = (folder / "table.md").read_text(), capsys.readouterr().out
    assert [line.split(" | ")[0] for line in first.splitlines()[2:4]] == ["| zebra", "| ant"]
    assert printed.splitlines()[-1] == "done. table and pictures: runs/compare-base"
    for path in folder.glob("*.*"):
        if path.name != "comparison.json":
            path.unlink()
    assert compare(["--read", str(folder)]) == 0
    assert (folder / "table.md").read_text() == first
    pictures = {"perplexity_by_round", "perplexity_by_megabytes", "attention_zebra", "attention_ant"}
    assert {path.stem for path in folder.glob("*.svg")} == pictures


# ---------------------------------------------------------------------- pictures


def test_a_mean_curve() -> None:
    assert mean_curve([{1: 1.0, 2: 4.0, 3: 0.0}, {2: 6.0, 1: 3.0}]) == {1: Spread(2.0, 2**0.5), 2: Spread(5.0, 2**0.5)}


def test_what_the_pictures_show(record: Make, tmp_path: Path) -> None:
    records = [record("x", 1), record("x", 2, (10.0, 6.0)), record("y", 1, (4.0, 4.0))]
    for round_ in records[2].rounds:
        round_["mixtures"] = {}
    figures = draw_all(records)
    assert sorted(figures) == ["attention_x", "perplexity_by_megabytes", "perplexity_by_round"]
    a, b = figures["perplexity_by_round"].axes[:2]
    assert (a.get_title(), b.get_title()) == ("a", "b")
    assert [list(line.get_ydata()) for line in a.lines] == [[19, 9], [16, 6], [14, 4], [16, 6]]
    assert [line.get_linestyle() for line in a.lines] == ["-", ":", "-", ":"]
    assert a.lines[0].get_color() == a.lines[1].get_color() != a.lines[2].get_color()
    assert len(a.collections) == 1  # a band where there are two seeds
    (axes,) = figures["perplexity_by_megabytes"].axes
    assert [list(line.get_xdata()) for line in axes.lines] == [[6, 12]] * 4
    assert list(axes.lines[0].get_ydata()) == [17, 7]
    (image,) = figures["attention_x"].axes[0].images
    assert image.get_array().tolist() == [[0.25, 0.75]]
    save(figures["attention_x"], tmp_path / "it.by")
    first = (tmp_path / "it.by.svg").read_bytes()
    save(draw_all(records)["attention_x"], tmp_path / "it.by")
    assert (tmp_path / "it.by.svg").read_bytes() == first


def test_a_method_that_moves_nothing_is_a_level_line(record: Make) -> None:
    run = record("local")
    for number in run.rounds:
        for node in number["nodes"].values():
            node |= {"bytes_down": 0, "bytes_up": 0}
    (axes,) = draw_all([run, record("x")])["perplexity_by_megabytes"].axes
    assert list(axes.lines[0].get_ydata()) == [6.0, 6.0]


def test_nodes_that_come_and_go(record: Make) -> None:
    """What moved stays moved; a node that came back counts from 0 again."""

    def edge(down: int, up: int = 0) -> dict[str, int]:
        return {"bytes_down": down * 10**6, "bytes_up": up * 10**6}

    nodes = [{"a": edge(1, 1), "b": edge(2)}, {"a": edge(2, 2)}, {"a": edge(3, 3), "b": edge(1), "c": edge(5)}]
    rounds = [{"round": i, "nodes": figures, "routes": {}} for i, figures in enumerate(nodes)]
    change = {"round": 1, "joined": {}, "left": ["b"], "moved": {}, "changed": {}}
    run, other = record("x", rounds=rounds, changes=[change]), record("y")
    assert run.megabytes() == {1: 4.0, 2: 6.0, 3: 14.0}
    assert run.series("b", "after_fit") == {}
    (found,) = [finding for finding in check([run, other]) if "topology changes" in finding.text]
    assert not found.good
    assert not [finding for finding in check([other, record("z")]) if "topology changes" in finding.text]
