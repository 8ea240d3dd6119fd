"""Properties of averaging, attention, clipping, epsilon and programs, for any numbers."""

import math
from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldlm.federation.attention import Source, attend
from worldlm.federation.averaging import outer_step_, weighted_mean
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import norm, subtract
from worldlm.federation.privacy import PrivacyLedger, sanitise
from worldlm.federation.residuals import select_residuals
from worldlm.federation.seeds import derive_seed
from worldlm.rounds.program import compile_round, num_visits
from worldlm.topology import Node, Settings, Topology

quick = settings(max_examples=40)
seeds = st.integers(0, 2**32)
shapes = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=4)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)
temperatures = st.floats(1e-3, 1e3)


def draw(shapes: list[tuple[int, ...]], seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"p{i}": scale * torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


# ---------------------------------------------------------------- averaging


@quick
@given(shapes, seeds, st.lists(st.floats(0.01, 100), min_size=1, max_size=5))
def test_the_mean_lies_between_the_models(shapes, seed, weights) -> None:
    models = [draw(shapes, seed + i) for i in range(len(weights))]
    for name, tensor in weighted_mean(models, weights).items():
        stacked = torch.stack([model[name] for model in models])
        assert (tensor >= stacked.amin(0) - 1e-5).all()
        assert (tensor <= stacked.amax(0) + 1e-5).all()


@quick
@given(shapes, seeds, st.lists(st.integers(1, 64), min_size=2, max_size=4), st.integers(-8, 8))
def test_only_the_proportions_of_weights_matter(shapes, seed, weights, power) -> None:
    models = [draw(shapes, seed + i) for i in range(len(weights))]
    scaled = weighted_mean(models, [weight * 2.0**power for weight in weights])
    torch.testing.assert_close(scaled, weighted_mean(models, weights), rtol=0, atol=0)


@quick
@given(shapes, seeds, st.floats(0.1, 1.0), st.floats(0.0, 0.9))
def test_a_first_outer_step_goes_straight_towards_the_mean(shapes, seed, lr, momentum) -> None:
    start, mean = draw(shapes, seed), draw(shapes, seed + 1)
    parameters = {name: tensor.clone() for name, tensor in start.items()}
    outer_step_(parameters, mean, torch.optim.SGD, {"lr": lr, "momentum": momentum})
    expected = {name: tensor + lr * (mean[name] - tensor) for name, tensor in start.items()}
    torch.testing.assert_close(parameters, expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- attention


def draw_source(shapes: list[tuple[int, ...]], seed: int, num_nodes: float = 1.0) -> Source:
    keys = draw(shapes, seed)
    return Source(keys=keys, values=draw(shapes, seed + 1000), num_nodes=num_nodes, scale=norm(keys))


@quick
@given(shapes, seeds, st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5), temperatures, st.randoms())
def test_attention_weights_are_a_distribution_in_the_order_of_sources(shapes, seed, nodes, temperature, random) -> None:
    zero = {name: torch.zeros_like(tensor) for name, tensor in draw(shapes, 0).items()}
    query = draw_source(shapes, seed)
    sources = [draw_source(shapes, seed + 2 + i, number) for i, number in enumerate(nodes)]
    result = attend(query, sources, zero, temperature=temperature)
    assert math.isclose(sum(result.weights), 1.0, rel_tol=1e-9)
    assert all(0.0 <= weight <= 1.0 for weight in (*result.weights, result.own_weight))
    order = random.sample(range(len(nodes)), len(nodes))
    turned = attend(query, [sources[i] for i in order], zero, temperature=temperature)
    expected = [result.weights[i] for i in order]
    assert all(math.isclose(a, b, rel_tol=1e-7, abs_tol=1e-300) for a, b in zip(turned.weights, expected, strict=True))


@quick
@given(shapes, seeds, st.integers(2, 5), temperatures)
def test_the_query_never_has_more_weight_than_the_best_source(shapes, seed, num, temperature) -> None:
    """So a node always learns from others, however unlike it they are."""
    zero = {name: torch.zeros_like(tensor) for name, tensor in draw(shapes, 0).items()}
    sources = [draw_source(shapes, seed + 2 + i) for i in range(num)]
    result = attend(draw_source(shapes, seed), sources, zero, temperature=temperature)
    best = max(result.weights) * (1 - result.own_weight)
    assert math.isclose(result.own_weight, best, rel_tol=1e-9)


# ---------------------------------------------------------------- residuals


@quick
@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(-1, 1)), st.integers(1, 7))
def test_selected_residuals_fit_worst(fits, num_residuals) -> None:
    chosen = select_residuals(fits, num_residuals)
    assert len(chosen) == len(set(chosen)) == min(num_residuals, len(fits))
    rest = [fit for name, fit in fits.items() if name not in chosen]
    assert all(fits[name] <= least + 1e-5 for name in chosen for least in rest)


# ---------------------------------------------------------------- privacy


@quick
@given(shapes, seeds, scales, scales)
def test_a_sanitised_update_is_within_the_bound(shapes, seed, scale, clip_norm) -> None:
    model = draw(shapes, seed, scale)
    zero = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    sanitised = sanitise(
        model, zero, clip_norm=clip_norm, noise_multiplier=0.0, stream=NoiseKey(bytes(32)).stream_for()
    )
    assert norm(sanitised.tensors) <= clip_norm
    assert norm(sanitised.tensors) >= min(norm(model), clip_norm) * (1 - 2e-6)  # and not much shorter than necessary


@quick
@given(shapes, seeds, scales, scales)
def test_the_bound_holds_from_any_start_up_to_its_rounding(shapes, seed, scale, clip_norm) -> None:
    start, update = draw(shapes, seed), draw(shapes, seed + 1, scale)
    model = {name: tensor + update[name] for name, tensor in start.items()}
    sanitised = sanitise(
        model, start, clip_norm=clip_norm, noise_multiplier=0.0, stream=NoiseKey(bytes(32)).stream_for()
    )
    rounding = 2**-22 * norm(sanitised.tensors)
    assert norm(subtract(sanitised.tensors, start)) <= clip_norm + rounding


@quick
@given(shapes, seeds, st.floats(0.1, 10), st.floats(0.1, 3))
def test_noise_is_a_function_of_its_purpose(shapes, seed, clip_norm, noise_multiplier) -> None:
    model, start = draw(shapes, 1), draw(shapes, 0)

    def released(seed: int) -> dict[str, torch.Tensor]:
        stream = NoiseKey(bytes(32)).stream_for(seed)
        return sanitise(model, start, clip_norm=clip_norm, noise_multiplier=noise_multiplier, stream=stream).tensors

    first, again, other = released(seed), released(seed), released(seed + 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@settings(quick, max_examples=5)
@given(st.floats(0.8, 8), st.integers(1, 20))
def test_epsilon_rises_with_steps_and_falls_with_noise(noise_multiplier, num_steps) -> None:
    def epsilon(noise: float, steps: int) -> float:
        return PrivacyLedger([(noise, 1.0, steps)]).epsilon(1e-5)

    spent = epsilon(noise_multiplier, num_steps)
    assert 0 < spent < epsilon(noise_multiplier, num_steps + 1)
    assert epsilon(noise_multiplier * 1.1, num_steps) <= spent


# ---------------------------------------------------------------- programs, seeds


@st.composite
def topologies(draw) -> Topology:
    """Trees of up to four levels, with names n0, n1, ..."""
    names = iter(f"n{i}" for i in range(1000))

    def node(levels: int) -> Node:
        children = [node(levels - 1) for _ in range(draw(st.integers(0, 3)))] if levels else []
        corpus = "text" if not children or draw(st.booleans()) else None
        options = Settings(num_local_steps=1, num_subrounds=draw(st.integers(1, 3)))
        return Node(name=next(names), corpus=corpus, settings=options, children=tuple(children))

    return Topology(name="t", root=node(draw(st.integers(0, 3))))


@quick
@given(topologies())
def test_every_program_is_valid(topology) -> None:
    program = compile_round(topology)
    assert len({(step.kind, step.node, step.subround) for step in program}) == len(program)
    counts = Counter((step.kind, step.node) for step in program)
    for node in topology.root.walk():
        parent = topology.parent(node.name)
        received = counts["open", parent.name] if parent else 1
        assert counts["receive", node.name] == counts["upload", node.name] == (received if parent else 0)
        rounds = received * (node.settings.num_subrounds if node.children or not parent else 1)
        assert counts["fit", node.name] == (rounds if node.holds_data else 0)
        assert counts["aggregate", node.name] == (rounds if node.children else 0)
        assert num_visits(topology).get(node.name, 0) == counts["fit", node.name]


parts = st.lists(st.integers() | st.text("abc019:-_", max_size=4), max_size=4)


@quick
@given(st.integers(), parts, parts)
def test_seeds_differ_if_purposes_differ(seed, first, second) -> None:
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == (first == second)
    assert 0 <= derive_seed(seed, *first) < 2**63
