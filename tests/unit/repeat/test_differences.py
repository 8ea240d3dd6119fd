"""Where two records of a run differ, in words."""

from __future__ import annotations

import copy
from typing import Any

from worldlm.commands.repeat.differences import (
    compare_results,
    environment_changes,
    join_first,
    run_changes,
    setting_changes,
)


def record() -> dict[str, Any]:
    leaf = {"name": "a", "corpus": "a", "told": ["corpus a"], "children": []}
    round_ = {"nodes": {"a": {"tokens": 5, "epsilon": 1.5}}, "routes": {}}
    return {
        "seed": 7,
        "rounds_wanted": 2,
        "rounds_done": 2,
        "topology": {"name": "t", "root": {"name": "world", "corpus": None, "told": [], "children": [leaf]}},
        "initial_weights": "i",
        "final_weights": {"world": "w", "a": "x"},
        "data_nodes": {"a": {"text": ["t-1"], "blocks": 3}},
        "versions": {"torch": "1", "python": "3"},
        "last_start": {"device": "cpu", "threads": 2, "processes": 1, "code": {"worldlm": "abc"}},
        "rounds": [{"round": 0, **round_}, {"round": 1, **copy.deepcopy(round_)}],
    }


def test_a_run_is_itself() -> None:
    assert run_changes(record(), record()) == environment_changes(record(), record()) == []
    expected = "the weights of 2 nodes and every figure of 2 rounds are the same"
    assert compare_results(record(), record()) == (True, expected)


def test_what_makes_it_another_run() -> None:
    second = record()
    second["seed"], second["data_nodes"]["a"]["text"] = 8, ["t-2"]
    second["topology"]["root"]["children"][0]["told"] = ["corpus a", "2 steps"]
    expected = ["seed was 7 and is now 8", "a, told was corpus a and is now corpus a, 2 steps"]
    assert run_changes(record(), second) == [*expected, "a, text was t-1 and is now t-2"]
    joined = join_first(["one", "two", "three", "four", "five"])
    assert joined == "one; two; three (and 2 more)"


def test_text_is_known_by_its_tokens_wherever_it_lay() -> None:
    first, second = record(), record()
    second["data_nodes"]["a"] = {"text": ["t-2"], "tokens_crc32": ["0a"], "blocks": 3}
    assert run_changes(first, second) == ["a, text was t-1 and is now t-2"]
    first["data_nodes"]["a"]["tokens_crc32"] = ["0a"]
    assert run_changes(first, second) == []
    first["data_nodes"]["a"]["tokens_crc32"] = ["0b"]
    assert run_changes(first, second) == ["a, tokens_crc32 was 0b and is now 0a"]


def test_the_number_of_processes_makes_no_difference() -> None:
    second = record()
    second["versions"]["torch"] = "2"
    second["last_start"] = {"device": "cpu", "threads": 1, "processes": 3, "code": {"worldlm": "abc-dirty"}}
    expected = ["torch was 1 and is now 2", "threads was 2 and is now 1"]
    assert environment_changes(record(), second) == [*expected, "code, worldlm was abc and is now abc-dirty"]


def test_what_an_older_version_did_not_write_is_not_compared() -> None:
    first = record()
    del first["last_start"], first["initial_weights"], first["final_weights"]
    assert run_changes(first, record()) == environment_changes(first, record()) == []
    assert compare_results(first, record()) == (
        True,
        "every figure of 2 rounds is the same; its weights were not recorded",
    )


def test_the_first_figure_that_differs() -> None:
    second = record()
    second["rounds"][1]["nodes"]["a"]["epsilon"] = 1.6
    expected = "round 2, a, epsilon was 1.5 and is now 1.6; the weights of all 2 nodes are the same"
    assert compare_results(record(), second) == (False, expected)
    second["final_weights"]["a"] = "y"
    assert compare_results(record(), second)[1].endswith("1.6; the weights of 1 of 2 nodes differ")
    second["rounds"] = record()["rounds"]
    expected = "the weights of 1 of 2 nodes differ, first those of a: digest x, now y"
    assert compare_results(record(), second) == (False, expected)


def test_what_is_there_once_only_differs() -> None:
    for change in ({"routes": {"a > b": 1}}, {"nodes": {"a": {"tokens": 5, "epsilon": 1.5, "missed": 1}}}):
        second = record()
        second["rounds"][0].update(change)
        assert not compare_results(record(), second)[0]
        assert not compare_results(second, record())[0]
    second = record()
    second["rounds"], second["rounds_done"] = second["rounds"][:1], 1
    assert not compare_results(record(), second)[0]


def test_settings_that_differ() -> None:
    lines = setting_changes({"lr": "1", "same": "x", "old": "y"}, {"lr": "2", "same": "x", "new": "z"})
    assert lines == ["lr was 1 and is now 2", "old was y and is now not set", "new was not set and is now z"]
