"""Method overlays: each replaces the method of any recipe, and runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_world import BEGINNING, write_toy_world

from worldlm import callbacks
from worldlm.cli import main
from worldlm.cli.recipe import read_recipe
from worldlm.topology import find_file, load_topology, steps_per_round
from worldlm.trainer import FederationCallback
from worldlm.trainer.method_checks import check_settings

BASES = ("quickstart", "pile_tiny")
FOLDER = find_file("recipes", "methods/fedavg").parent
NONE = ("private", "lr_", "compressed_", "lora_")  # overlays on top of a method, and methods of adapters
METHODS = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith(NONE))
PARTS = {"backbone", "keys", "values"}
BACKBONE_ALONE = {"fedper", "fedper_tree", "fedper_fading"}


def combine(cli: Any, *recipes: str, given: tuple[str, ...] = ()) -> Any:
    """Return the settings of several recipes, each of which overrides the ones before it."""
    paths = [find_file("recipes", name) for name in recipes]
    for path in paths:
        read_recipe(path, cli.known)
    arguments = [part for path in paths for part in ("--recipe", str(path))]
    return cli.parser.parse_args(["fit", *arguments, *given]).fit


def build(cli: Any, settings: Any) -> Any:
    """Build a trainer from settings."""
    options = settings.clone()
    options.trainer.logger = False
    options.data.tokenizer = "bytes"  # others may need the network
    with torch.device("meta"):
        built = cli.parser.instantiate_classes({"subcommand": "fit", "fit": options}).fit
    own = built.trainer.pop("callbacks")
    return cli.trainer_class(**built.trainer, callbacks=own)


def ours(trainer: Any) -> list[FederationCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, FederationCallback)]


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_a_method_replaces_that_of_a_recipe(base: str, method: str, reading: Any) -> None:
    """The method replaces the recipe's callbacks; model, text and steps remain the recipe's."""
    plain, combined = combine(reading, base), combine(reading, base, f"methods/{method}")
    recipe = yaml.safe_load((FOLDER / f"{method}.yaml").read_text())
    listed = [callback["class_path"] for callback in recipe["trainer"]["callbacks"]]
    assert [callback.class_path for callback in combined.trainer.callbacks] == listed
    if method.startswith("fedper"):  # it shares the embedding
        assert combined.model.split.pop("backbone") == ("wte\\.",)
        plain.model.split.pop("backbone")
    assert (combined.model, combined.data) == (plain.model, plain.data)
    assert combined.federation.topology == plain.federation.topology
    assert combined.federation.settings == plain.federation.settings
    trainer = build(reading, combined)
    tree = load_topology(combined.federation.topology, combined.federation.settings)
    each = steps_per_round(tree)
    if method.startswith("centralized"):
        total = max(each.values()) if method == "centralized_steps" else sum(each.values())
        assert steps_per_round(trainer.topology) == {trainer.topology.root.name: total} | dict.fromkeys(each, 0)
    else:
        assert steps_per_round(trainer.topology) == each
    parts = frozenset().union(*(callback.parts for callback in ours(trainer)))
    assert parts == (set() if method == "local" else {"backbone"} if method in BACKBONE_ALONE else PARTS)


@pytest.mark.parametrize("method", METHODS)
def test_privacy_can_be_added_to_every_method(method: str, reading: Any) -> None:
    combined = combine(reading, "pile_tiny", f"methods/{method}", "methods/private")
    assert combined.federation.settings == {
        "num_local_steps": 25,
        "privacy": {"clip_norm": 0.5, "noise_multiplier": 1.0},
    }
    if method.startswith("centralized"):
        with pytest.raises(ValueError, match="shape single pools .* but these nodes are private: cc, wk, pba, pbc"):
            build(reading, combined)
        return
    trainer = build(reading, combined)
    assert {node.settings.privacy.clip_norm for node in trainer.topology.data_nodes} == {0.5}
    for kind in ("privacy", "example_privacy"):
        given = (f"--federation.settings.{kind}", json.dumps({"clip_norm": 0.5, "noise_multiplier": 1.0}))
        asking = combine(reading, "pile_tiny", f"methods/{method}", given=given).federation.settings
        assert asking["num_local_steps"] == 25
        check_settings(load_topology("pile_three_level", asking), ours(trainer))


@pytest.mark.parametrize("kind", ["privacy", "example_privacy"])
def test_an_own_method_without_privacy_is_rejected(kind: str, reading: Any, tmp_path: Path) -> None:
    """The trainer of `fit` rejects it, and therefore every run of `compare`."""
    (tmp_path / "mine.yaml").write_text("trainer: {callbacks: [{class_path: worldlm.callbacks.Averaging}]}\n")
    given = (f"--federation.settings.{kind}", "{clip_norm: 0.5}")
    mine = combine(reading, "quickstart", str(tmp_path / "mine.yaml"), given=given)
    with pytest.raises(
        ValueError, match=rf"quickstart asks for {kind} at world, .* add worldlm\.callbacks\..*Privacy to"
    ):
        build(reading, mine)


@pytest.mark.parametrize(
    ("name", "down", "up"), [("compressed_bf16", "bf16", "bf16"), ("compressed_int8", "bf16", "int8")]
)
@pytest.mark.parametrize("method", ["worldlm", "fedavg", "fedamp", "centralized_steps", "local"])
def test_compression_can_be_added_to_a_method(method: str, name: str, down: str, up: str, reading: Any) -> None:
    plain, combined = (combine(reading, "pile_tiny", f"methods/{method}", *more) for more in ((), (f"methods/{name}",)))
    assert combined.trainer.callbacks[:-1] == plain.trainer.callbacks
    assert combined.federation == plain.federation
    trainer = build(reading, combined)
    (added,) = (callback for callback in ours(trainer) if isinstance(callback, callbacks.Compression))
    assert (added.down, added.up, added.error_feedback) == (down, up, True)
    if method != "local":
        trainer.method.check(trainer.topology)
        return
    with pytest.raises(ValueError, match="no effect: no other callback sends a part of the model"):
        trainer.method.check(trainer.topology)


def test_the_order_of_overlays_does_not_matter(reading: Any) -> None:
    expected = combine(reading, "pile_tiny", "methods/fedper", "methods/private")
    other = combine(reading, "pile_tiny", "methods/private", "methods/fedper")
    assert expected.federation == other.federation
    assert expected.trainer == other.trainer


def test_the_command_line_overrides_an_overlay(reading: Any) -> None:
    given = ("--federation.shape", "tree", "--federation.settings.num_local_steps", "7")
    combined = combine(reading, "pile_tiny", "methods/fedavg", "methods/private", given=given).federation
    assert (combined.shape, combined.settings["num_local_steps"], set(combined.settings)) == (
        "tree",
        7,
        {"num_local_steps", "privacy"},
    )


def test_a_method_does_not_inherit_arguments_from_the_recipe(reading: Any, tmp_path: Path) -> None:
    """Not even if it has the same number of callbacks, of the same classes."""
    (recipe := tmp_path / "one.yaml").write_text(
        "trainer:\n  callbacks: [{class_path: Averaging, init_args: {download_rate: 0.5, leaf_download_rate: 0.5}}]\n"
    )
    (method := tmp_path / "two.yaml").write_text("trainer:\n  callbacks: [{class_path: Averaging}]\n")
    rates = [
        combine(reading, "quickstart", *map(str, names)).trainer.callbacks[0].init_args.download_rate
        for names in ([recipe], [recipe, method])
    ]
    assert rates == [0.5, 1.0]
    loaded = combine(reading, "quickstart", str(recipe), "methods/lr_1.5e-3").trainer.callbacks
    assert loaded[0].init_args.download_rate == 0.5
    (more := tmp_path / "more.yaml").write_text("trainer:\n  callbacks+: [{class_path: TokenRows}]\n")
    added = combine(reading, "quickstart", str(recipe), str(more)).trainer.callbacks
    assert [callback.class_path.rpartition(".")[2] for callback in added] == ["Averaging", "TokenRows"]
    assert added[0].init_args.download_rate == 0.5


def test_server_optimizers(reading: Any) -> None:
    """Every server optimizer is the intended one and accepts its arguments as written in the recipe."""

    def server(method: str) -> tuple[str, dict[str, Any]]:
        trainer = build(reading, combine(reading, "quickstart", f"methods/{method}"))
        (averaging,) = (callback for callback in ours(trainer) if isinstance(callback, callbacks.Averaging))
        return averaging.default_optimizer

    assert server("fedavg") == ("SGD", {"lr": 1.0})
    assert server("fedavgm") == ("SGD", {"lr": 1.0, "momentum": 0.3})
    assert server("diloco") == ("SGD", {"lr": 0.7, "momentum": 0.9, "nesterov": True})
    assert server("fedadam") == ("Adam", {"lr": 0.03, "betas": [0.9, 0.99], "eps": 0.001})


# ---------------------------------------------------------------------- run


SHORE = (
    "seed_everything: 7\n"
    + BEGINNING
    + """\
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  callbacks: [{class_path: worldlm.callbacks.ResidualExchange}] # replaced by every method
"""
)

TOPOLOGY = """\
name: shore
settings: {num_local_steps: 5}
root:
  name: world
  children:
    - name: land
      children: [{name: hills, corpus: hills}, {name: woods, corpus: hills}]
    - {name: sea, corpus: sea}
"""


@pytest.fixture
def shore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    write_toy_world(tmp_path, TOPOLOGY, SHORE)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("centralized_tokens", []),
        ("fedadam", ["--recipe", "methods/private"]),
        ("worldlm", ["--recipe", "methods/private"]),
        pytest.param("local", ["--recipe", "methods/private"], marks=pytest.mark.slow),
        *(
            pytest.param(method, [], marks=pytest.mark.slow)
            for method in ("hierfavg", "worldlm_without_attention", "fedavg_fading")
        ),
        ("clustered_fading", ["--recipe", "methods/private"]),
        ("ditto", ["--recipe", "methods/private"]),
    ],
)
def test_a_round_of_a_method(shore: None, method: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--recipe", "tiny.yaml", "--recipe", f"methods/{method}", *more]) == 0
    output = capsys.readouterr()
    name = f"tiny-{method}-private" if more else f"tiny-{method}"
    assert output.out.splitlines()[-1].startswith(f"done. results: runs/{name}/version_0")
    state = torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True)
    world = state["loops"]["fit_loop"]["state_dict"]["world"]
    tokens = {node: state["num_tokens"] // (4 * 16) for node, state in world["states"].items() if state["num_tokens"]}
    assert tokens == ({"world": 15} if method == "centralized_tokens" else {"hills": 5, "woods": 5, "sea": 5})


def test_an_overlay_that_does_not_fit_ends_with_a_one_line_error(
    shore: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_line(*arguments: str) -> str:
        assert main(["fit", "--recipe", "tiny.yaml", *arguments]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("worldlm: ")]
        return line.removeprefix("worldlm: ")

    message = error_line("--recipe", "methods/centralized_steps", "--recipe", "methods/private")
    assert "centralized_steps.yaml:2: shape single pools the text of all nodes, but these nodes are " in message
    assert message.endswith(": hills, woods, sea")
    assert error_line("--recipe", "methods/fedavgs").endswith("did you mean 'methods/fedavg'?")
    message = error_line("--recipe", "methods/hierfavg", "--federation.num_subrounds", "2")
    assert message == "--federation.num_subrounds is 2, which does not divide the local steps: 5 of hills, 5 of woods"
    message = error_line("--recipe", "methods/fedavg", "--federation.num_subrounds", "2")
    assert message == "--federation.num_subrounds is 2: shore has no federation below its root"
    assert "shape" in error_line("--federation.shape", "ring")
