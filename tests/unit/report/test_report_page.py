"""The page: well formed, complete, harmless, and with the numbers of the record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from worldlm.cli import main

Lay = Callable[..., Path]
VOID = {"meta"}
EVIL = "<script>alert('1')</script>\"><img src=x onerror=y>&amp;$\\frac{x}$"


class Page(HTMLParser):
    """Reads a page: its tables, headings, text, ids and whatever it refers to; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.handlers: list[str] = []
        self.headings: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        named = {name: value or "" for name, value in attrs}
        assert len(named) == len(attrs)
        self.ids += [named["id"]] if "id" in named else []
        self.loaded += [named[name] for name in ("src", "href", "xlink:href", "action", "data") if name in named]
        self.loaded += re.findall(r"url\(([^)]*)\)", " ".join(named.values()))
        self.handlers += [name for name in named if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)
        self.rows += [[]] if tag == "tr" else []
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self.headings += [""] if tag == "h2" else []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "h2" in self.open:
            self.headings[-1] += data

    def table(self, heading: str) -> list[list[str]]:
        """Return the rows of the first table of which a column has this heading."""
        start = next(i for i, row in enumerate(self.rows) if heading in row)
        width = len(self.rows[start])
        return [row for row in self.rows[start:] if len(row) == width]


def report_page(*folders: Path, out: str = "page.html") -> Page:
    """Return the page of runs, having looked that it is sound and loads nothing."""
    assert main(["report", *map(str, folders), "--out", out]) == 0
    text = Path(out).read_text("utf-8")
    page = Page(text)
    assert text.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert [link for link in page.loaded if not link.startswith(("#", "data:image/png;base64,"))] == []
    inside = {link[1:] for link in page.loaded if link.startswith("#")}
    assert inside - set(page.ids) == set()
    assert len(page.ids) == len(set(page.ids))
    assert not {"script", "iframe", "link", "object", "embed", "form", "base", "img"} & page.tags
    assert page.handlers == []
    assert "@import" not in text
    return page


def test_one_run_is_told_wholly(lay: Lay, capsys: pytest.CaptureFixture[str]) -> None:
    folder = lay()
    page = report_page(folder)
    report_page(folder, out="again.html")
    assert Path("again.html").read_bytes() == Path("page.html").read_bytes()
    assert 20_000 < Path("page.html").stat().st_size < 400_000
    assert page.headings == ["The world", "Results", "Curves", "Attention", "Residuals", "Privacy", "Costs", "Text",
                             "Versions and machine", "To repeat it"]  # fmt: skip
    assert capsys.readouterr().out == "done. report: page.html\ndone. report: again.html\n"
    for expected in (
        "A world of 5 nodes in 3 levels, 3 with text (shore), trained for 2 of 2 rounds with seed 1337 on 6,666 tokens",
        "went from 257.75 to 16.75 (after_fit).",
        "The largest epsilon that a node has spent is 8.75 (private: c). "
        f"epsilon: at delta 1e-05, for {UPDATES}, towards {PARENT}.",
        "worldlm fit --recipe tiny",
        "worldlm fit --recipe runs/tiny/version_0/config.yaml --name tiny-repeated --trainer.logger null",
        "model: {lr: 0.5}",
        "an abacus",
        "25.8 MB over all edges",
    ):
        assert expected in page.text


UPDATES, PARENT = "all text at and below the node", "its parent and all beyond it"


@pytest.mark.usefixtures("empty_pictures")
def test_the_table_says_what_the_record_says(lay: Lay, content: Callable[..., dict[str, Any]]) -> None:
    page = report_page(lay())
    headings, *rows = page.table("best after_fit")
    assert headings == ["node", "before", "after_merge", "after_fit", "best after_fit", "bits per byte", "tokens",
                        "passes", "MB down", "MB up", "epsilon"]  # fmt: skip
    shown = {row[0]: dict(zip(headings[1:], row[1:], strict=True)) for row in rows[:5]}
    last = content()["rounds"][-1]["nodes"]
    assert list(shown) == ["world", "north", "a", "b", "c"]
    for name, figures in last.items():
        for moment in ("before", "after_merge", "after_fit"):
            expected = figures.get(moment, {}).get("perplexity")
            assert shown[name][moment] == ("" if expected is None else f"{expected:.2f}")
        bits = figures.get("after_fit", figures["after_merge"])["bits_per_byte"]
        assert shown[name]["bits per byte"] == f"{bits:.2f}"
        assert shown[name]["tokens"] == (f"{figures['tokens']:,}" if "tokens" in figures else "")
        assert shown[name]["MB down"] == (f"{figures['bytes_down'] / 1e6:.1f}" if "bytes_down" in figures else "")
    assert shown["a"]["best after_fit"] == "15.75"
    assert (shown["b"]["epsilon"], shown["c"]["epsilon"]) == ("", "8.75")


@pytest.mark.usefixtures("empty_pictures")
def test_privacy_has_an_account_of_every_private_node(lay: Lay) -> None:
    page = report_page(lay())
    assert page.table("noise_multiplier")[:2] == [
        ["node", "protects", "towards", "epsilon", "max_epsilon", "delta", "noise_multiplier", "clip_norm"],
        ["c", UPDATES, PARENT, "8.75", "12", "1e-05", "0.75", "0.5"],
    ]
    assert page.table("c (updates)")[1:3] == [["1", "4.38"], ["2", "8.75"]]
    rounds = [{"round": 0, "nodes": {"a": {"after_merge": {"perplexity": 4.0}}}, "routes": {}}]
    leaf = {"name": "a", "corpus": "a", "children": []}
    plain = lay("plain", rounds=rounds, topology={"name": "t", "root": {**leaf, "name": "w", "children": [leaf]}})
    page = report_page(plain)
    assert "This run has no differential privacy" in page.text
    assert "It has no differential privacy." in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_an_epsilon_without_a_bound_is_said_to_have_none(lay: Lay, content: Callable[..., dict[str, Any]]) -> None:
    rounds = content()["rounds"]
    for round_ in rounds:
        round_["nodes"]["c"]["epsilon"] = None
    page = report_page(lay(rounds=rounds))
    assert page.table("noise_multiplier")[1][3] == "no bound"
    assert "is no bound (private: c)" in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_an_epsilon_that_protects_nothing_is_said_to(lay: Lay, content: Callable[..., dict[str, Any]]) -> None:
    said = "Epsilon above 10 protects little or nothing: "
    useful = lay("useful")
    assert "protects little or nothing" not in report_page(useful).text
    rounds = content()["rounds"]
    for round_ in rounds:
        round_["nodes"]["c"]["epsilon"] = 1507390.0
    large = lay("large", rounds=rounds)
    page = report_page(large)
    assert f"{said}c." in page.text
    assert "the largest of any node; protects little or nothing" in page.text
    assert f"{said}large, seed 1337." in report_page(useful, large).text


def test_names_that_look_like_html_are_only_text(lay: Lay, content: Callable[..., dict[str, Any]]) -> None:
    record = json.loads(json.dumps(content()))
    record["topology"]["name"] = EVIL
    leaf = record["topology"]["root"]["children"][0]["children"][0]
    leaf["name"], leaf["told"], leaf["corpus"] = EVIL, [EVIL], f"{EVIL} corpus"
    for round_ in record["rounds"]:
        round_["nodes"][EVIL] = round_["nodes"].pop("a")
        round_["mixtures"] = {EVIL: {EVIL: {EVIL: 0.5, "b": 0.5}}}
        round_["routes"] = {f"{EVIL} > north": 1}
    record["data_nodes"][EVIL] = {**record["data_nodes"].pop("a"), "text": [EVIL]}
    record["versions"][EVIL] = EVIL
    record["last_start"] = {"command": f"worldlm fit '{EVIL}", "platform": EVIL, "device": EVIL}
    settings = f"model: ['{EVIL}']\n</pre>{EVIL}"
    page = report_page(lay(config=settings, text=json.dumps(record)), lay("other"))
    assert page.text.count("<script>") > 12
    assert settings in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_several_runs_stand_side_by_side(lay: Lay) -> None:
    first = lay("one", config="model: {lr: 0.5, width: 8}\nname: one\n")
    other = lay("other", config="model: {lr: 0.25, width: 8}\nname: other\n", names="abd")
    page = report_page(first, other)
    assert page.headings[:6] == ["Methods", "Runs", "Comparable?", "Curves", "What differs", "Run by run"]
    assert page.headings.count("To repeat it") == 2
    assert [row[:4] for row in page.table("best after_fit")[1:3]] == [["one", "1", "16.75", "16.25"],
                                                                    ["other", "1", "16.75", "16.25"]]  # fmt: skip
    assert page.table("setting")[:2] == [["setting", "one", "other"], ["model.lr", "0.5", "0.25"]]
    assert "model.width" not in [row[0] for row in page.table("setting")]
    runs = next(i for i, row in enumerate(page.rows) if row[0] == "run")
    assert [row[0] for row in page.rows[runs + 1 : runs + 3]] == ["one, seed 1337", "other, seed 1337"]


@pytest.mark.usefixtures("empty_pictures")
def test_runs_of_one_name_are_told_apart(lay: Lay) -> None:
    folder = lay("again")
    (folder / "version_0").rename(folder / "version_1")
    lay("again")
    page = report_page(folder / "version_0", folder / "version_1")
    assert "2 methods (again in runs/again/version_0, again in runs/again/version_1), seed 1337" in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_runs_without_a_common_node_are_told_one_by_one(lay: Lay) -> None:
    page = report_page(lay("one", names="ab"), lay("other", names="xy"))
    assert page.headings[:4] == ["Runs", "Comparable?", "What differs", "Run by run"]
    assert "no data node in common" in page.text
    assert "Their settings are the same, except seeds and folders." in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_an_unfinished_run_says_so(lay: Lay) -> None:
    page = report_page(lay(finished=False, num_rounds=1))
    assert "Not finished: 1 round of 2 when its results were last written." in page.text
    nothing = report_page(lay("new", finished=False, num_rounds=0))
    assert nothing.headings == [
        "The world",
        "Results",
        "Privacy",
        "Costs",
        "Text",
        "Versions and machine",
        "To repeat it",
    ]
    assert "No round is finished yet" in nothing.text
    both = report_page(Path("runs/tiny"), Path("runs/new"))
    assert "Not finished: tiny, seed 1337, new, seed 1337." in both.text


@pytest.mark.usefixtures("empty_pictures")
def test_what_a_repetition_is_held_against_is_shown(lay: Lay) -> None:
    started = {"command": "worldlm fit --recipe tiny", "code": {"worldlm": "abc-dirty", "folder": "def"}}
    page = report_page(lay(last_start=started, final_weights={"world": "digest 2", "a": "digest 3"}))
    assert "commit of worldlmabc-dirtycommit of the folderdef" in page.text
    assert "digest of the root's final weightsdigest 2" in page.text
    assert "worldlm fit --repeat runs/tiny/version_0" in page.text
    assert "--repeat" not in report_page(lay("begun", finished=False)).text


@pytest.mark.usefixtures("empty_pictures")
def test_what_older_versions_did_not_write_is_left_out(lay: Lay, content: Callable[..., dict[str, Any]]) -> None:
    old = content()
    del old["last_start"]

    def strip(node: dict[str, Any]) -> dict[str, Any]:
        fields = {name: node[name] for name in ("name", "corpus", "noise_multiplier")}
        return {**fields, "children": [strip(child) for child in node["children"]]}

    old["topology"]["root"] = strip(old["topology"]["root"])
    folder = lay("old", config=None, text=json.dumps(old))
    page = report_page(folder)
    assert page.table("noise_multiplier")[0] == ["node", "protects", "towards", "epsilon", "noise_multiplier"]
    assert "Its command and its config.yaml are missing." in page.text
    assert "every federation has a frame." in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_where_one_node_trains_for_all_the_others_stand_for_the_run(
    lay: Lay, content: Callable[..., dict[str, Any]]
) -> None:
    pooled = content()
    for round_ in pooled["rounds"]:
        for name in "bc":
            del round_["nodes"][name]["after_fit"]
        del round_["nodes"]["a"]["after_merge"]
    page = report_page(lay(text=json.dumps(pooled)))
    assert "The mean held-out perplexity over 2 of 3 data nodes went from 258.25 to 17.75 (after_merge)." in page.text


@pytest.mark.usefixtures("empty_pictures")
def test_nodes_far_worse_than_at_the_start_are_named_at_the_head(
    lay: Lay, content: Callable[..., dict[str, Any]]
) -> None:
    lost = content()
    lost["rounds"][-1]["nodes"]["b"]["after_merge"]["perplexity"] = 1e304
    lost["rounds"][-1]["nodes"]["c"]["after_fit"] = {"perplexity": None, "bits_per_byte": None}
    page = report_page(lay(text=json.dumps(lost)))
    warning = "Far worse than at the start (perplexity above 2 times that before, or not finite): b, c."
    assert page.text.index(warning) < page.text.index("A world of 5 nodes")
    assert "Far worse" not in report_page(lay("good")).text


@pytest.mark.usefixtures("empty_pictures")
def test_of_a_wide_world_the_first_nodes_stand_for_all(lay: Lay) -> None:
    page = report_page(lay(names="abcdefghijklmnopqrstuvwxyz" + "".join(map(chr, range(913, 1139)))))
    assert "All nodes (200 rows)" in page.text
    assert "And 54 more nodes, in results.json." in page.text
    assert "The first 12 of 252 nodes." in page.text
