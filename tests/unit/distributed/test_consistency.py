"""The check that all processes were started with the same settings."""

from __future__ import annotations

import re

import pytest

from worldlm.distributed.consistency import _ADVICE, check_consistent, digest_of
from worldlm.topology import parse_topology

FIRST = ("process 0 on east", {"worldlm": "0.1.0", "model.optimizer.lr": "0.1", "seed": "3"})


def test_equal_settings_pass() -> None:
    check_consistent([FIRST, ("process 1 on west", dict(FIRST[1]))])
    check_consistent([FIRST])


def test_the_error_names_the_difference_of_every_process() -> None:
    second = ("process 1 on west", {**FIRST[1], "model.optimizer.lr": "0.2", "seed": "4"})
    third = ("process 2 on west", {name: value for name, value in FIRST[1].items() if name != "seed"})
    start = "was not started as process 0 on east was"
    message = (
        f"process 1 on west {start}: model.optimizer.lr is 0.2 there and 0.1 at process 0 on east; seed differs too\n"
        f"process 2 on west {start}: seed is missing there and 3 at process 0 on east\n"
        f"{_ADVICE}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_consistent([FIRST, second, ("process 3 on east", FIRST[1]), third])


def test_the_digest_of_a_topology_depends_only_on_its_content() -> None:
    root = "{name: world, children: [{name: a, corpus: a}, {name: b, corpus: b}]}"
    text = f"name: t\nroot: {root}\nsettings: {{num_local_steps: 2}}"
    digest = digest_of(parse_topology(text, "first.yaml"))
    assert digest_of(parse_topology(f"# moved\n{text}", "second.yaml")) == digest
    for before, after in (("corpus: b", "corpus: a"), ("steps: 2", "steps: 3"), ("name: b,", "name: b, weight: 2,")):
        assert digest_of(parse_topology(text.replace(before, after), "first.yaml")) != digest
