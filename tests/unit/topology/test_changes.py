"""The changes between two topologies."""

from __future__ import annotations

import json
import pickle

import pytest

from worldlm.topology import changes as changes_module
from worldlm.topology import parse_topology
from worldlm.topology.changes import Changes, compare, described

OLD = """
name: old
settings: {num_local_steps: 500}
root:
  name: world
  children:
    - name: internet
      children: [{name: cc, corpus: cc}, {name: wk, corpus: wk}]
    - name: medical
      settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0, max_epsilon: 8}}
      children: [{name: pba, corpus: pba}, {name: pbc, corpus: pbc}]
"""


def _compare(old: str, new: str) -> Changes:
    before, after = (described(parse_topology(text, "t.yaml")) for text in (old, new))
    return compare(pickle.loads(pickle.dumps(before)), after)


def test_nothing_changed() -> None:
    same = OLD.replace(
        "{name: cc, corpus: cc}, {name: wk, corpus: wk}", "{name: wk, corpus: wk}, {name: cc, corpus: cc}"
    )
    changes = _compare(OLD, same.replace("name: old", "name: new"))
    assert not changes
    assert [*changes.lines(), *changes.warnings()] == []


def test_join_leave_move_and_change() -> None:
    new = OLD.replace("{name: cc, corpus: cc}, {name: wk, corpus: wk}", "{name: web, corpus: cc}")
    new = new.replace("{name: pba, corpus: pba}", "{name: pba, corpus: pba, settings: {num_local_steps: 250}}")
    new = new.replace("corpus: pbc}", "corpus: news, weight: 2}, {name: wk, corpus: wk}")
    changes = _compare(OLD, new)
    assert changes.joined == {"web": "internet"}
    assert changes.left == {"cc": "internet"}
    assert changes.moved == {"wk": ("internet", "medical")}
    assert changes.parted == [("cc", "internet"), ("wk", "internet")]
    assert changes.new_texts == {"pbc": "news"}
    assert list(changes.lines()) == [
        "joined: web (from internet)",
        "left: cc",
        "moved: wk from internet to medical",
        "changed: pba num_local_steps 500 -> 250",
        "changed: pbc corpus pbc -> news, weight none -> 2",
        "changed: wk privacy.clip_norm none -> 0.5, privacy.noise_multiplier none -> 1, privacy.delta none -> 1e-05, "
        "privacy.max_epsilon none -> 8",
        "pbc: starts to read news from its beginning",
    ]
    assert list(changes.warnings()) == ["privacy begins at wk: epsilon does not cover earlier training"]
    record = json.loads(json.dumps(changes.record(), allow_nan=False))
    assert record["left"] == ["cc"]
    assert record["moved"] == {"wk": ["internet", "medical"]}
    assert record["changed"]["pba"] == {"num_local_steps": [500, 250]}


def test_new_nodes_start_from_their_nearest_old_ancestor() -> None:
    new = """
name: new
settings: {num_local_steps: 500}
root:
  name: earth
  children:
    - name: world
      children:
        - name: internet
          children:
            - {name: cc, corpus: cc}
            - name: deeper
              children: [{name: wk, corpus: wk}, {name: x, corpus: x}]
    - name: other
      children: [{name: y, corpus: y}]
"""
    changes = _compare(OLD, new)
    assert changes.joined == {
        "earth": "world", "deeper": "internet", "x": "internet", "other": "world", "y": "world",
    }  # fmt: skip
    assert changes.moved == {"world": (None, "earth"), "wk": ("internet", "deeper")}
    assert changes.left == {"medical": "world", "pba": "medical", "pbc": "medical"}
    assert changes.parted == [("medical", "world"), ("wk", "internet")]
    assert "moved: world from the top to earth" in list(changes.lines())


def test_a_federation_becomes_the_root() -> None:
    new = """
name: new
root:
  name: medical
  children: [{name: pba, corpus: pba, settings: {num_local_steps: 1}}]
"""
    changes = _compare(OLD, new)
    assert not changes.joined
    assert changes.moved == {"medical": ("world", None)}
    (warning,) = changes.warnings()
    assert warning.startswith("privacy is loosened at medical, pba: privacy.clip_norm 0.5 -> none, privacy.noise_mult")
    assert warning.endswith("privacy.max_epsilon 8 -> none; the ledger keeps the budget spent so far")


def test_a_new_root_above_a_private_world_warns_of_its_earlier_training() -> None:
    old = "name: t\nsettings: {num_local_steps: 1}\nroot: {name: world, children: [{name: a, corpus: a}]}\n"
    below = old.replace("{name: world,", "{name: earth, children: [{name: world, settings: {SETTINGS},") + "x"
    below = below.replace("}\nx", "}]}\n")
    public = _compare(old, below.replace("SETTINGS", ""))
    assert (public.disclosed, list(public.warnings())) == (None, [])
    private = _compare(old, below.replace("SETTINGS", "privacy: {clip_norm: 0.5, noise_multiplier: 1.0}"))
    assert private.disclosed == "world"
    begins, disclosed = private.warnings()
    assert begins.startswith("privacy begins at world, a: ")
    assert disclosed.startswith("the new nodes above world start from its model without noise")


def test_less_noise_loosens_privacy_and_more_does_not() -> None:
    less = _compare(OLD, OLD.replace("noise_multiplier: 1.0", "noise_multiplier: 0.5"))
    assert less.loosened == dict.fromkeys(("medical", "pba", "pbc"), (("privacy.noise_multiplier", 1.0, 0.5),))
    more = _compare(OLD, OLD.replace("noise_multiplier: 1.0, max_epsilon: 8", "noise_multiplier: 2.0, max_epsilon: 4"))
    assert (len(more.settings), more.loosened) == (3, {})


def test_a_node_that_may_have_been_renamed_gets_a_suggestion() -> None:
    changes = _compare(OLD, OLD.replace("{name: pba,", "{name: pbaa,"))
    (warning,) = changes.warnings()
    assert "pbaa is a new node; did you mean 'pba'?" in warning


def test_many_nodes_share_a_line() -> None:
    leaves = (
        "name: t\nsettings: {num_local_steps: %d}\nroot:\n  name: w\n  children: [{name: c, corpus: c, copies: %d}]\n"
    )
    (joined, changed) = _compare(leaves % (1, 12), leaves % (2, 24)).lines()
    assert joined == "joined: " + ", ".join(f"c_{i}" for i in range(13, 23)) + " and 2 more (from w)"
    assert changed == "changed: " + ", ".join(f"c_{i}" for i in range(1, 11)) + " and 2 more num_local_steps 1 -> 2"


def test_removed_protection_of_a_unit_or_a_corpus_is_warned_of() -> None:
    """A federation protected as a unit is removed, and a public node starts to read one of its corpora."""
    new = """
name: new
settings: {num_local_steps: 500}
root:
  name: world
  children:
    - name: internet
      children: [{name: cc, corpus: cc}, {name: clinic, corpus: pbc}]
    - {name: pba, corpus: pba, settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0, max_epsilon: 8}}}
"""
    changes = _compare(OLD, new)
    assert (changes.loosened, changes.dissolved) == ({}, ("medical",))
    assert changes.bared == {"clinic": ("pbc", "privacy", "pbc")}
    assert list(changes.warnings()) == [
        "medical was removed: its descendants are no longer protected together, only each node by itself",
        "clinic reads pbc without privacy, which pbc had when it read pbc",
    ]


def test_looser_rules_on_residuals_are_warned_of_and_tighter_ones_are_not() -> None:
    def with_rules(rules: str) -> str:
        return OLD.replace(
            "{name: cc, corpus: cc}", f"{{name: cc, corpus: cc, settings: {{residuals: {rules}}}}}"
        ).replace("- name: medical\n      settings: {", "- name: medical\n      settings: {jurisdiction: eu, ")

    tight, loose = with_rules("{share: false, accept_from: []}"), with_rules("{accept_from: [eu]}")
    (warning,) = _compare(tight, loose).warnings()
    assert warning == (
        "rules on residuals are loosened at cc: residuals.share False -> True, residuals.accept_from [] -> [eu]"
    )
    assert list(_compare(loose, tight).warnings()) == []
    (warning,) = _compare(loose, with_rules("{}")).warnings()
    assert warning.endswith("residuals.accept_from [eu] -> none")


def test_the_names_of_many_new_nodes_are_compared_with_few_removed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of all pairs of 2,000 new and 2,000 removed nodes would take minutes."""
    searches: list[int] = []
    monkeypatch.setattr(changes_module, "suggest", lambda name, known: searches.append(len(known)) or "")
    left: dict[str, str | None] = {f"old{i}": "w" for i in range(2_000)}
    assert not list(Changes(joined={f"new{i}": "w" for i in range(2_000)}, left=left).warnings())
    assert sum(searches) <= changes_module.MAX_COMPARED
    assert len(searches) == 10
