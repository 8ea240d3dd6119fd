"""Settings in a topology file: inheritance and invalid values."""

import pytest

from worldlm.topology import (
    Link,
    OuterOptimizer,
    Privacy,
    Residuals,
    Settings,
    TopologyError,
    parse_topology,
)


def with_settings(settings: str, above: str = "{num_local_steps: 3}") -> str:
    return f"""\
name: t
settings: {above}
root:
  name: world
  children:
    - name: a
      settings: {settings}
      children: [{{name: b, corpus: c}}]
"""


def settings_of(settings: str, above: str = "{num_local_steps: 3}") -> Settings:
    return parse_topology(with_settings(settings, above), "t.yaml").nodes["b"].settings


def mistakes(text: str) -> tuple[str, ...]:
    with pytest.raises(TopologyError) as caught:
        parse_topology(text, "t.yaml")
    return caught.value.mistakes


def test_nearest_wins_field_by_field() -> None:
    got = settings_of(
        "{batch_size: 4, jurisdiction: eu}",
        "{num_local_steps: 3, batch_size: 8, participation: 0.5}",
    )
    assert (got.num_local_steps, got.batch_size, got.participation) == (3, 4, 0.5)
    assert got.jurisdiction == "eu"


def test_nested_values_are_replaced_whole() -> None:
    above = "{num_local_steps: 3, residuals: {share: false}, link: {bandwidth_mbps: 9, latency_ms: 7}}"
    got = settings_of("{residuals: {accept_from: []}, link: {bandwidth_mbps: 2}}", above)
    assert got.residuals == Residuals(share=True, accept_from=())
    assert got.link == Link(bandwidth_mbps=2.0, latency_ms=0.0)
    assert settings_of("{link: null}", above).link is None


def test_outer_optimizer_is_flat() -> None:
    got = settings_of("{outer_optimizer: {name: SGD, lr: 7e-1, nesterov: yes, betas: [0.9, 1]}}")
    arguments = {"lr": 0.7, "nesterov": True, "betas": (0.9, 1)}
    assert got.outer_optimizer == OuterOptimizer(name="SGD", arguments=arguments)


def test_privacy_inherits_missing_fields_and_tightens() -> None:
    above = "{num_local_steps: 3, privacy: {clip_norm: 1, noise_multiplier: 1, max_epsilon: 8}}"
    got = settings_of("{privacy: {clip_norm: 0.5, max_epsilon: 4}}", above)
    assert got.privacy == Privacy(clip_norm=0.5, noise_multiplier=1.0, max_epsilon=4.0)


@pytest.mark.parametrize(
    ("written", "field"),
    [
        ("{clip_norm: 1.1}", "privacy.clip_norm may only be tightened: at most 1 as above"),
        ("{noise_multiplier: 0.9}", "privacy.noise_multiplier may only be tightened: at least 1"),
        ("{delta: 1e-4}", "privacy.delta may only be tightened: at most 1e-05"),
        ("{max_epsilon: 9}", "privacy.max_epsilon may only be tightened: at most 8"),
        ("{max_epsilon: null}", "privacy.max_epsilon may only be tightened: at most 8"),
        ("null", "privacy may only be tightened"),
    ],
)
@pytest.mark.parametrize("kind", ["privacy", "example_privacy"])
def test_privacy_is_never_loosened(written: str, field: str, kind: str) -> None:
    demand = "{clip_norm: 1, noise_multiplier: 1, max_epsilon: 8}"
    text = with_settings(f"{{{kind}: {written}}}", f"{{num_local_steps: 3, {kind}: {demand}}}")
    (message,) = mistakes(text)
    assert message.startswith(f"t.yaml:7: {field.replace('privacy', kind, 1)}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("{num_local_steps: -1}", "num_local_steps must be a finite number at least 0, but is -1"),
        ("{num_local_steps: abc}", "num_local_steps must be a whole number, but is 'abc'"),
        (
            "{num_local_steps: '5'}",
            "num_local_steps must be a whole number, but is the quoted text '5'",
        ),
        ("{batch_size: 1.5}", "batch_size must be a whole number, but is '1.5'"),
        (
            "{participation: 1.5}",
            "participation must be a finite number above 0 and at most 1, but",
        ),
        ("{optimizer_state: keeps}", "optimizer_state must be 'keep' or 'reset', but is 'keeps'"),
        (
            "{jurisdiction: a b}",
            "jurisdiction must be 1 to 100 letters, digits, '_' or '-', but is",
        ),
        (
            "{bach_size: 2}",
            "unknown key 'bach_size' in settings; allowed: num_local_steps, batch_size",
        ),
        ("{privacy: {noise_multiplier: 1}}", "privacy needs the key 'clip_norm'"),
        (
            "{privacy: {clip_norm: -1}}",
            "privacy.clip_norm must be a finite number above 0, but is -1.0",
        ),
        (
            "{privacy: {clip_norm: 1, max_epsilon: 8}}",
            "privacy.max_epsilon needs a noise_multiplier",
        ),
        (
            "{privacy: {clip_norm: 1, delta: 1}}",
            "privacy.delta must be a finite number above 0 and",
        ),
        (
            "{link: {bandwidth_mbps: 0}}",
            "link.bandwidth_mbps must be a finite number above 0, but is 0",
        ),
        ("{link: {bandwidth_mbps: 1, jitter: -1}}", "link.jitter must be a finite number at least 0, but is -1.0"),
        ("{dropout: 1}", "dropout must be a finite number at least 0 and below 1, but is 1.0"),
        ("{deadline_seconds: 0}", "deadline_seconds must be a finite number above 0, but is 0.0"),
        ("{sampling: posson}", "sampling must be 'auto' or 'fixed' or 'poisson', but is 'posson'"),
        ("{residuals: {share: maybe}}", "residuals.share must be true or false, but is 'maybe'"),
        ("{residuals: {accept_from: eu}}", "residuals.accept_from must be a list, but is 'eu'"),
        ("{residuals: null}", "residuals must be a mapping (key: value), but is nothing"),
        ("{outer_optimizer: {lr: 1}}", "outer_optimizer needs the key 'name'"),
        ("{outer_optimizer: SGD}", "outer_optimizer must be a mapping (key: value), but is 'SGD'"),
        ("[1]", "settings must be a mapping (key: value), but is a list"),
        ("{batch_size: 2, batch_size: 3}", "key 'batch_size' of settings is written twice"),
    ],
)
def test_an_invalid_setting_is_reported_once_with_its_line(settings: str, expected: str) -> None:
    (mistake,) = mistakes(with_settings(settings))
    assert mistake.startswith(f"t.yaml:7: {expected}")


def test_nearest_key_is_suggested() -> None:
    (message,) = mistakes(with_settings("{bach_size: 2}"))
    assert message.endswith("; did you mean 'batch_size'?")


def test_an_unknown_jurisdiction_is_warned_of() -> None:
    text = with_settings("{jurisdiction: europe, residuals: {accept_from: [eurpe]}}")
    with pytest.warns(UserWarning, match=r"t.yaml:6: node 'a' .* did you mean 'europe'\?"):
        parse_topology(text, "t.yaml")


def test_settings_without_effect_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"t.yaml:4: sampling has no effect where participation is 1, as at 'world'"):
        parse_topology(with_settings("{}", "{num_local_steps: 3, sampling: poisson}"), "t.yaml")
    with pytest.warns(
        UserWarning, match=r"t.yaml:4: deadline_seconds has no effect at 'world' in a simulation: none of its children"
    ):
        parse_topology(with_settings("{}", "{num_local_steps: 3, deadline_seconds: 9}"), "t.yaml")
    idle = "{num_local_steps: 3, participation: 0.5, sampling: poisson, deadline_seconds: 9}"
    parse_topology(with_settings("{link: {bandwidth_mbps: 1}}", idle), "t.yaml")


def test_a_message_takes_latency_plus_bytes_over_bandwidth() -> None:
    assert Link(bandwidth_mbps=8.0, latency_ms=250.0, jitter=1.0).seconds(3_000_000) == 3.25


def test_a_private_corpus_that_a_public_node_reads_is_warned_of() -> None:
    text = """
name: t
settings: {num_local_steps: 1}
root:
  name: w
  children:
    - {name: a, corpus: text, settings: {KIND: {clip_norm: 1}}}
    - {name: b, corpus: text}
    - {name: c, corpus: text}
    - {name: d, corpus: other}
"""
    for kind in ("privacy", "example_privacy"):
        with pytest.warns(UserWarning, match="does not protect") as warned:
            parse_topology(text.replace("KIND", kind), "t.yaml")
        expected = f"t.yaml:8: {kind} of 'a' does not protect its corpus: 'b' reads 'text' too, without {kind}"
        assert [str(warning.message) for warning in warned] == [expected]
    above = text.replace("num_local_steps: 1}", "num_local_steps: 1, privacy: {clip_norm: 1}}")
    parse_topology(above.replace("KIND", "privacy"), "t.yaml")
    parse_topology(text.replace("KIND", "privacy").replace("corpus: text}", "corpus: other}"), "t.yaml")
