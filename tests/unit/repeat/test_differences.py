"""Where two records of a run differ, in words."""

from __future__ import annotations

import copy
from typing import Any

from worldlm.commands.repeat.differences import another, in_a_line, outcome, settings, surroundings


def record() -> dict[str, Any]:
    leaf = {"name": "a", "corpus": "a", "told": ["corpus a"], "children": []}
    one = {"nodes": {"a": {"tokens": 5, "epsilon": 1.5}}, "attention": {}, "routes": {}}
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
        "rounds": [{"round": 0, **one}, {"round": 1, **copy.deepcopy(one)}],
    }


def test_a_run_is_itself() -> None:
    assert another(record(), record()) == surroundings(record(), record()) == []
    told = "the weights of 2 nodes and every figure of 2 rounds are the same"
    assert outcome(record(), record()) == (True, told)


def test_what_makes_it_another_run() -> None:
    here = record()
    here["seed"], here["data_nodes"]["a"]["text"] = 8, ["t-2"]
    here["topology"]["root"]["children"][0]["told"] = ["corpus a", "2 steps"]
    told = ["seed is 7 there and 8 here", "a, told is corpus a there and corpus a, 2 steps here"]
    assert another(record(), here) == [*told, "a, text is t-1 there and t-2 here"]
    joined = in_a_line(["one", "two", "three", "four", "five"])
    assert joined == "one; two; three (and 2 more)"


def test_text_is_known_by_its_tokens_wherever_it_lay() -> None:
    first, here = record(), record()
    here["data_nodes"]["a"] = {"text": ["t-2"], "tokens_crc32": ["0a"], "blocks": 3}
    assert another(first, here) == ["a, text is t-1 there and t-2 here"]
    first["data_nodes"]["a"]["tokens_crc32"] = ["0a"]
    assert another(first, here) == []
    first["data_nodes"]["a"]["tokens_crc32"] = ["0b"]
    assert another(first, here) == ["a, tokens_crc32 is 0b there and 0a here"]


def test_the_number_of_processes_makes_no_difference() -> None:
    here = record()
    here["versions"]["torch"] = "2"
    here["last_start"] = {"device": "cpu", "threads": 1, "processes": 3, "code": {"worldlm": "abc-dirty"}}
    told = ["torch is 1 there and 2 here", "threads is 2 there and 1 here"]
    assert surroundings(record(), here) == [*told, "code, worldlm is abc there and abc-dirty here"]


def test_what_an_older_version_did_not_write_is_not_compared() -> None:
    first = record()
    del first["last_start"], first["initial_weights"], first["final_weights"]
    assert another(first, record()) == surroundings(first, record()) == []
    assert outcome(first, record()) == (True, "every figure of 2 rounds; its weights were not recorded")


def test_the_first_figure_that_differs() -> None:
    here = record()
    here["rounds"][1]["nodes"]["a"]["epsilon"] = 1.6
    told = "round 2, a, epsilon is 1.5 there and 1.6 here; the weights of all 2 nodes are the same"
    assert outcome(record(), here) == (False, told)
    here["final_weights"]["a"] = "y"
    assert outcome(record(), here)[1].endswith("1.6 here; the weights of 1 of 2 nodes differ")
    here["rounds"] = record()["rounds"]
    told = "the weights of a is x there and y here, and so are those of 1 of 2 nodes in all"
    assert outcome(record(), here) == (False, told)


def test_what_is_there_once_only_differs() -> None:
    for change in ({"routes": {"a > b": 1}}, {"nodes": {"a": {"tokens": 5, "epsilon": 1.5, "missed": 1}}}):
        here = record()
        here["rounds"][0].update(change)
        assert not outcome(record(), here)[0]
        assert not outcome(here, record())[0]
    here = record()
    here["rounds"], here["rounds_done"] = here["rounds"][:1], 1
    assert not outcome(record(), here)[0]


def test_settings_that_differ() -> None:
    told = settings({"lr": "1", "same": "x", "old": "y"}, {"lr": "2", "same": "x", "new": "z"})
    assert told == ["lr is 1 there and 2 here", "old is y there and not set here", "new is not set there and z here"]
