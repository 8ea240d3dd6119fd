"""What attention and residuals send, computed by hand on trees of five and seven nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from worldlm.callbacks import AttentionAggregation, Averaging, ResidualExchange
from worldlm.federation.messages import residual_from_state
from worldlm.rounds import Context, RoundCallback, World, run_round
from worldlm.topology import parse_topology

T = 0.5
"""Temperature."""

STAR = """
name: five
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - {name: a, corpus: x}
    - {name: b, corpus: x}
    - {name: c, corpus: x}
    - {name: ear, corpus: x, settings: {num_local_steps: 0}}
"""

TREE = """
name: seven
settings: {num_local_steps: 1}
root:
  name: world
  children:
    - {name: A, children: [{name: a1, corpus: x}, {name: a2, corpus: x, settings: {jurisdiction: north}}]}
    - {name: B, children: [{name: b1, corpus: x, settings: {SETTINGS}}, {name: b2, corpus: x}]}
"""

# What the leaves learn, whatever they start from: a direction of their keys. Their values are ten times that.
KEYS = {
    "a": (3.0, 0.0), "b": (0.0, 2.0), "c": (3.0, 4.0),
    "a1": (2.0, 0.0), "a2": (0.0, 1.0), "b1": (0.0, 3.0), "b2": (4.0, 3.0),
}  # fmt: skip


class Receives(RoundCallback):
    """Keeps what each node receives in each round: its keys, and how much weight its own have."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], Any] = {}

    def on_receive(self, context: Context, download: Any) -> None:
        self.seen[context.round, context.node.name] = download


def _run(text: str, num_rounds: int, *callbacks: RoundCallback) -> tuple[World, Receives]:
    receives = Receives()
    partition = {"w": "backbone", "k": "keys", "v": "values"}
    initial = {"w": torch.zeros(1), "k": torch.zeros(2), "v": torch.zeros(2)}
    world = World(parse_topology(text, "tree.yaml"), partition, initial)  # type: ignore[arg-type]

    def fit(context: Context) -> int:
        keys = torch.tensor(KEYS[context.node.name])
        context.state.parameters["k"].copy_(keys)
        context.state.parameters["v"].copy_(10 * keys)
        return 10

    for _ in range(num_rounds):
        run_round(world, [Averaging(), *callbacks, receives], fit)
    return world, receives


Point = Sequence[float]


def _mass(query: Point, keys: Point, centre: Point, scale: float | None = None) -> float:
    """exp(score / T), with the score computed coordinate by coordinate."""
    change, other = ([a - b for a, b in zip(point, centre, strict=True)] for point in (query, keys))
    product = sum(a * b for a, b in zip(change, other, strict=True))
    return math.exp(product / math.hypot(*change) / (scale or math.hypot(*keys)) / T)


def _mean(points: Mapping[tuple[float, ...], float]) -> tuple[float, ...]:
    total = sum(points.values())
    return tuple(sum(weight * point[i] for point, weight in points.items()) / total for i in range(2))


def test_five_nodes() -> None:
    world, receives = _run(STAR, 2, AttentionAggregation(temperature=T))
    first, second = ({name: receives.seen[number, name] for name in ("a", "b", "c", "ear")} for number in (0, 1))
    assert all(download.own_weight == download.num_nodes == 0 for download in first.values())
    average = _mean({KEYS[name]: 1.0 for name in "abc"})
    for name, others in {"a": "bc", "b": "ac", "c": "ab"}.items():
        masses = {KEYS[other]: _mass(KEYS[name], KEYS[other], average) for other in others}
        own = max(masses.values())
        total = own + sum(masses.values())
        mixed = _mean(masses)
        assert second[name].parts["keys"]["k"].tolist() == pytest.approx(mixed)
        assert second[name].parts["values"]["v"].tolist() == pytest.approx([10 * x for x in mixed])
        assert second[name].own_weight == pytest.approx(own / total)
        weights = {other: masses[KEYS[other]] / total for other in others}
        assert world.states["world"].attention[name] == pytest.approx({**weights, name: own / total})
    assert second["ear"].own_weight == 0
    assert world.states["ear"].parameters["k"].tolist() == pytest.approx(average)
    assert world.states["world"].parameters["k"].tolist() == pytest.approx(average)


def test_a_child_moves_by_its_rate_times_the_weight_of_the_mixture() -> None:
    class Before(RoundCallback):
        def on_route(self, context: Context, download: Any) -> Any:
            keys[context.round, context.node.name] = context.state.parameters["k"].clone()
            return download

        def on_merged(self, context: Context) -> None:
            after[context.round, context.node.name] = context.state.parameters["k"].clone()

    keys, after = {}, {}
    attention = AttentionAggregation(temperature=T, leaf_download_rate=0.25)
    _, receives = _run(STAR, 2, attention, Before())
    download = receives.seen[1, "a"]
    expected = torch.lerp(keys[1, "a"], download.parts["keys"]["k"], 0.25 * (1 - download.own_weight))
    assert torch.equal(after[1, "a"], expected)
    assert torch.equal(after[1, "ear"], receives.seen[1, "ear"].parts["keys"]["k"])  # a listener copies


ALL = _mean({KEYS[name]: 1.0 for name in ("a1", "a2", "b1", "b2")})
"""The average keys of the tree of seven nodes."""


def test_seven_nodes() -> None:
    """A and B select the child that is least like its sibling; ties go to the first name: a1 and b1."""
    world, receives = _run(
        TREE.replace("SETTINGS", ""), 2, AttentionAggregation(temperature=T), ResidualExchange(num_residuals=1)
    )
    assert receives.seen[0, "A"].residuals == ()
    for receiver, own, far, climbed in (("A", ("a1", "a2"), "b2", "b1"), ("B", ("b1", "b2"), "a2", "a1")):
        # the root: the residual of the other branch counts on its own, and what is left of its average is its sibling
        query = _mean({KEYS[name]: 1.0 for name in own})
        masses = {KEYS[name]: _mass(query, KEYS[name], ALL) for name in (far, climbed)}
        above = _mean(masses)
        assert receives.seen[1, receiver].parts["keys"]["k"].tolist() == pytest.approx(above, abs=1e-6)
        total = sum(masses.values()) + 2 * max(masses.values())
        expected = {
            climbed: masses[KEYS[climbed]],
            far.upper()[0]: masses[KEYS[far]],
            receiver: 2 * max(masses.values()),
        }
        assert world.states["world"].attention[receiver] == pytest.approx({n: m / total for n, m in expected.items()})
        # its answer to the residual that came from the receiver
        masses = {KEYS[name]: _mass(KEYS[own[0]], KEYS[name], ALL) for name in (far, climbed)}
        answer, scale = _mean(masses), sum(math.hypot(*point) * mass for point, mass in masses.items())
        scale /= sum(masses.values())
        num_nodes = sum(masses.values()) / _mass(KEYS[own[0]], answer, ALL, scale)
        # the federation: the node whose residual was answered attends over its sibling and the answer
        centre = _mean({query: 0.5, above: 0.5})
        first = {
            KEYS[own[1]]: _mass(KEYS[own[0]], KEYS[own[1]], centre),
            answer: num_nodes * _mass(KEYS[own[0]], answer, centre, scale),
        }
        assert receives.seen[1, own[0]].parts["keys"]["k"].tolist() == pytest.approx(_mean(first), abs=1e-6)
    assert ResidualExchange(num_residuals=1).routes(world) == {"a1 > B": 1, "b1 > A": 1}


def test_without_residuals_a_branch_counts_with_its_number_of_nodes() -> None:
    _, receives = _run(TREE.replace("SETTINGS", ""), 2, AttentionAggregation(temperature=T))
    near, other = (_mean({KEYS[name]: 1.0 for name in names}) for names in (("a1", "a2"), ("b1", "b2")))
    assert receives.seen[1, "A"].parts["keys"]["k"].tolist() == pytest.approx(other)
    assert (receives.seen[1, "A"].num_nodes, receives.seen[1, "A"].scale) == pytest.approx((2.0, 4.0))
    centre = _mean({near: 0.5, other: 0.5})
    masses = {
        KEYS["a1"]: _mass(KEYS["a2"], KEYS["a1"], centre),
        other: 2 * _mass(KEYS["a2"], other, centre, 4.0),  # by the mean norm of b1 and b2
    }
    assert receives.seen[1, "a2"].parts["keys"]["k"].tolist() == pytest.approx(_mean(masses))


def test_the_record_of_attention_has_only_the_answers_of_the_last_download() -> None:
    class Stop(RoundCallback):
        """From the second upload on, A sends no residual."""

        def on_upload(self, context: Context, upload: Any) -> Any:
            return replace(upload, residuals=()) if context.node.name == "A" and context.round else upload

    world, _ = _run(
        TREE.replace("SETTINGS", ""), 3, AttentionAggregation(temperature=T), ResidualExchange(num_residuals=1), Stop()
    )
    assert world.states["world"].attention.keys() == {"A", "B", "b1"}


@pytest.mark.parametrize(
    ("settings", "answered", "reason"),
    [
        ("residuals: {share: false}", {"a1", "b2"}, "b1 does not share residuals"),
        ("residuals: {accept_from: [north]}", {"a1", "b1"}, "residual of a1: b1 accepts residuals from north only"),
    ],
)
def test_rules(settings: str, answered: set[str], reason: str) -> None:
    exchange = ResidualExchange(num_residuals=1)
    world, _ = _run(TREE.replace("SETTINGS", settings), 3, AttentionAggregation(temperature=T), exchange)
    attention = world.states["world"].attention
    assert attention.keys() - {"A", "B"} == answered
    assert any(text.startswith(reason) for text in exchange.refusals(world))
    if "accept_from" in settings:  # nothing that reaches b1 contains the residual of a1, also not the mixture for B
        assert "a1" not in attention["B"]
        assert "a1" not in attention["b1"]
        assert "b1" in attention["A"]


# ---------------------------------------------------------------------- embedding rows among the values


class Rows(RoundCallback):
    """Weighs the two rows of the values by how often each leaf read their tokens."""

    part = "values"
    counts = {"a": (9.0, 1.0), "b": (1.0, 1.0), "c": (1.0, 3.0)}  # noqa: RUF012

    def row_shares(self, context: Context, upload: Any) -> dict[str, torch.Tensor]:
        counts = torch.tensor(self.counts[upload.node] if upload else (1.0, 1.0), dtype=torch.float64)
        return {"v": counts / counts.sum()}


def test_the_rows_of_the_values_count_by_their_shares() -> None:
    world, receives = _run(STAR, 2, Rows(), AttentionAggregation(temperature=T, leaf_download_rate=0.5))
    average = _mean({KEYS[name]: 1.0 for name in "abc"})
    shares = {n: [0.99 * c / sum(counts) + 0.01 / 2 for c in counts] for n, counts in Rows.counts.items()}
    masses = {other: _mass(KEYS["a"], KEYS[other], average) for other in "bc"}
    weights = {other: mass / sum(masses.values()) for other, mass in masses.items()}
    download = receives.seen[1, "a"]
    own = download.own_weight
    after = world.states["a"].parameters  # replaced by the second fit
    assert after["v"].tolist() == pytest.approx([10 * x for x in KEYS["a"]])
    for r in range(2):
        mixed = {other: weights[other] * shares[other][r] for other in "bc"}
        value = sum(10 * KEYS[other][r] * part for other, part in mixed.items()) / sum(mixed.values())
        assert float(download.parts["values"]["v"][r]) == pytest.approx(value)
        assert float(download.row_shares["v"][r]) == pytest.approx(sum(mixed.values()))
        own_row = own * shares["a"][r] / (own * shares["a"][r] + (1 - own) * sum(mixed.values()))
        assert float(download.own_row_weights["v"][r]) == pytest.approx(own_row)
    total = [sum(shares[name][r] for name in "abc") for r in range(2)]
    mean = [sum(10 * KEYS[name][r] * shares[name][r] for name in "abc") / total[r] for r in range(2)]
    assert world.states["world"].parameters["v"].tolist() == pytest.approx(mean)


def test_a_child_moves_each_row_by_its_rate_times_the_weight_of_the_mixture() -> None:
    class Before(RoundCallback):
        def on_route(self, context: Context, download: Any) -> Any:
            start[context.round, context.node.name] = context.state.parameters["v"].clone()
            return download

        def on_merged(self, context: Context) -> None:
            after[context.round, context.node.name] = context.state.parameters["v"].clone()

    start, after = {}, {}
    attention = AttentionAggregation(temperature=T, leaf_download_rate=0.25)
    _, receives = _run(STAR, 2, Rows(), attention, Before())
    download = receives.seen[1, "a"]
    rates = 0.25 * (1 - download.own_row_weights["v"])
    expected = start[1, "a"] + rates * (download.parts["values"]["v"] - start[1, "a"])
    torch.testing.assert_close(after[1, "a"], expected)
    assert torch.equal(after[1, "ear"], receives.seen[1, "ear"].parts["values"]["v"])  # a listener copies


def test_residuals_and_answers_carry_their_row_shares() -> None:
    names = ("a1", "a2", "b1", "b2", "A", "B", "world")
    rows = Rows()
    rows.counts = {name: (1.0 + i, 2.0) for i, name in enumerate(names)}
    exchange = ResidualExchange(num_residuals=1)
    world, _ = _run(TREE.replace("SETTINGS", ""), 2, rows, AttentionAggregation(temperature=T), exchange)
    answer = residual_from_state(exchange.memory(world.states["A"])["answers"]["a1"])
    shares = {n: torch.tensor([0.99 * c / sum(counts) + 0.005 for c in counts]) for n, counts in rows.counts.items()}
    masses = {name: _mass(KEYS["a1"], KEYS[name], ALL) for name in ("b1", "b2")}
    # what is left of B without b1 has the row shares of B, less those of b1
    left = 2 * shares["B"] - shares["b1"]
    expected = (masses["b1"] * shares["b1"] + masses["b2"] * left) / sum(masses.values())
    torch.testing.assert_close(answer.row_shares["v"], expected)
    assert answer.num_bytes == 4 * (2 + 2 + 2)


def test_a_large_federation_mixes_the_nearest_one_by_one_and_the_others_as_one() -> None:
    """Of 40 nodes in two groups, all members of the own group but three are among the nearest 16."""
    names = [f"n{i}" for i in range(40)]
    leaves = "\n".join(f"    - {{name: {name}, corpus: x}}" for name in names)
    text = f"name: forty\nsettings: {{num_local_steps: 1}}\nroot:\n  name: world\n  children:\n{leaves}\n"
    angles = {name: 0.02 * i + (2.0 if i >= 20 else 0.0) for i, name in enumerate(names)}
    KEYS.update({name: (math.cos(angle), math.sin(angle)) for name, angle in angles.items()})
    world, receives = _run(text, 2, AttentionAggregation(temperature=T))
    memory = world.states["world"].memory["AttentionAggregation"]
    assert sorted(memory["nearest"]["n0"]) == sorted(names[1:17])
    centre = _mean({KEYS[name]: 1.0 for name in names})
    near = {KEYS[name]: _mass(KEYS["n0"], KEYS[name], centre) for name in names[1:17]}
    rest = _mean({KEYS[name]: 1.0 for name in names[17:]})
    masses = {**near, rest: 23 * _mass(KEYS["n0"], rest, centre, 1.0)}
    mixed = _mean(masses)
    assert receives.seen[1, "n0"].parts["keys"]["k"].tolist() == pytest.approx(mixed, abs=1e-5)
    own = max(near.values())
    assert receives.seen[1, "n0"].own_weight == pytest.approx(own / (own + sum(masses.values())), rel=1e-4)
