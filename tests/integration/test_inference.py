"""A run that was, taken home: exported, asked and measured, as a user does."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_world import BEGINNING, write_toy_world
from transformers import AutoModelForCausalLM, AutoTokenizer

from worldlm.cli import main
from worldlm.commands.inference.saved_run import SavedRun, open_run
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import weights_digest
from worldlm.storage.noise_key_file import write_key

RECIPE = (
    "seed_everything: 7\n"
    + BEGINNING
    + """\
trainer:
  max_epochs: 2
  accelerator: cpu
  limit_val_batches: 2
  callbacks:
    - class_path: worldlm.callbacks.Averaging
      init_args: {parts: [backbone]}
    - class_path: worldlm.callbacks.AttentionAggregation
    - class_path: worldlm.callbacks.UpdatePrivacy
    - {class_path: worldlm.callbacks.Samples, init_args: {num_new_tokens: 1}}
    - class_path: worldlm.callbacks.LastCheckpoint
      init_args: {keep_every_n_rounds: 1}
"""
)

TOPOLOGY = """
name: shore
settings: {num_local_steps: 3}
root:
  name: world
  children:
    - name: land
      settings: {privacy: {clip_norm: 0.5, noise_multiplier: 1.0}}
      children: [{name: hills, corpus: hills}, {name: woods, corpus: hills, settings: {batch_size: 2}}]
    - {name: sea, corpus: sea}
"""
NODES = ["world", "land", "hills", "woods", "sea"]


@pytest.fixture(scope="module")
def shore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a finished run, to stand in."""
    folder, num_threads = tmp_path_factory.mktemp("shore"), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["worldlm"])
        patch.setenv("OMP_NUM_THREADS", "1")  # so that no fit takes more than it finds
        torch.set_num_threads(1)
        write_toy_world(folder, TOPOLOGY, RECIPE)
        write_key(NoiseKey(bytes(32)), folder / "noise.key")
        assert main(["fit", "--recipe", "tiny.yaml", "--trainer.noise_key", "noise.key"]) == 0
        yield folder
    torch.set_num_threads(num_threads)


@pytest.fixture
def run(shore: Path) -> SavedRun:
    return open_run("runs/tiny")


@pytest.fixture(autouse=True)
def _here(shore: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shore)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(arguments) == 2
    return [line.removeprefix("worldlm: ") for line in capsys.readouterr().err.splitlines()]


def results() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path("runs/tiny/version_0/results.json").read_text())
    return content


# ---------------------------------------------------------------------- export


@pytest.mark.parametrize(("node", "round_"), [("hills", None), ("land", None), ("world", 1), ("sea", 1)])
def test_transformers_opens_it_and_computes_the_same(
    shore: Path, tmp_path: Path, node: str, round_: int | None
) -> None:
    target, which = tmp_path / "new" / node, [] if round_ is None else ["--round", str(round_)]
    assert main(["export", "runs/tiny", "--node", node, "--out", str(target), *which]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(target).eval()
    assert type(theirs).__name__ == "MptForCausalLM"
    run = open_run("runs/tiny", round_)
    module = run.module().cpu()
    run.put(module, node)
    tokens = torch.randint(0, 257, (3, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(theirs(tokens).logits, module(tokens), atol=2e-5)
    tokenizer, text = AutoTokenizer.from_pretrained(target), "a <|endoftext|> \x00 нещо 🙂\n"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode([*text.encode(), 256], skip_special_tokens=True) == text
    assert (tokenizer.eos_token_id, theirs.config.eos_token_id, tokenizer.model_max_length) == (256, 256, 16)


def test_rounds_differ_and_are_those_of_the_run(shore: Path, run: SavedRun) -> None:
    first = open_run("runs/tiny/version_0", 1)
    assert (first.when, run.when) == ("after 1 round", "after 2 rounds")
    assert weights_digest(first.world.parameters("sea")) != weights_digest(run.world.parameters("sea"))
    assert weights_digest(open_run("runs/tiny", 2).world.parameters("sea")) == weights_digest(
        run.world.parameters("sea")
    )


def test_the_card_says_what_it_is(
    shore: Path, tmp_path: Path, run: SavedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "runs/tiny", "--node", "hills", "--out", str(tmp_path / "hills")]) == 0
    captured = capsys.readouterr()
    assert "These are the weights of hills before clipping and noise" in captured.err
    assert captured.out.splitlines()[-1] == f"done. model: {tmp_path / 'hills'}"
    card = (tmp_path / "hills" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "other",
        "license_name": "unknown",
        "tags": ["worldlm", "federated-learning", "mpt"],
    }
    figures = results()["rounds"][-1]["nodes"]
    assert "This model: `world > land > hills`." in text
    assert "privacy C=0.5 σ=1 δ=1e-05" in text
    assert f"| sea | sea | {figures['sea']['tokens']:,} |" in text
    assert f"| after its own steps | {figures['hills']['after_fit']['perplexity']:.2f} |" in text
    assert f"digest of these weights: `{weights_digest(run.world.parameters('hills'))}`" in text
    assert "| hills | **nothing** |" in text
    epsilon = figures["woods"]["epsilon"]
    towards = "for all text at and below the node, towards its parent and all beyond it"
    assert (
        f"| woods | the updates of `woods`: epsilon {epsilon:.2f} at delta 1e-05, {towards}, noise multiplier 1 |"
        in text
    )
    assert "| sea | **nothing** |" in text
    assert "Unknown: none was stated" in text


def test_after_the_topology_changed_the_card_claims_no_more_than_holds(
    shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/tiny", tmp_path / "tiny")
    changed = TOPOLOGY.replace(", {name: woods, corpus: hills, settings: {batch_size: 2}}", "")
    Path("next.yaml").write_text(changed.replace("{name: sea, corpus: sea}", "{name: bay, corpus: sea}"))
    again = ["--federation.topology", "next.yaml", "--trainer.max_epochs", "3", "--ckpt_path", "last"]
    assert main(["fit", "--recipe", "tiny.yaml", "--runs", str(tmp_path), *again]) == 0
    before, now = open_run(tmp_path / "tiny", 2), open_run(tmp_path / "tiny")
    assert (before.topology, before.changes) == (None, [])
    assert now.topology is not None
    assert [change["left"] for change in now.changes] == [["woods", "sea"]]
    cards = {}
    for node, which in (("woods", ["--round", "2"]), ("world", [])):
        out = tmp_path / node
        assert main(["export", str(tmp_path / "tiny"), "--node", node, "--out", str(out), *which]) == 0
        cards[node] = (out / "README.md").read_text()
    assert "Assume that nothing protects the text" in cards["woods"]
    assert "`woods`, `sea` also contributed to this model, before they left the world." in cards["world"]
    assert "**The topology changed after round 2.**" in cards["world"]


def test_a_licence_is_what_was_stated(shore: Path, tmp_path: Path) -> None:
    arguments = ["export", "runs/tiny", "--node", "sea", "--out", str(tmp_path), "--license", "cc-by-4.0"]
    assert main(arguments) == 0
    card = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "cc-by-4.0"


def test_a_folder_that_is_not_empty_stays_unless_forced(
    shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = ["export", "runs/tiny", "--node", "sea", "--out", str(tmp_path)]
    assert "is not empty: choose another folder, or replace its files with --force" in refused(capsys, *arguments)[0]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main([*arguments, "--force"]) == 0
    names = ["README.md", "config.json", "model.safetensors", "notes.txt", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert "is a file: --out takes a folder" in refused(capsys, *arguments[:-1], str(tmp_path / "notes.txt"))[0]


def test_a_run_without_its_topology_and_tokenizer_is_exported_and_says_so(
    shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "moved"
    shutil.copytree("runs/tiny/version_0", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["federation"]["topology"] = "gone.yaml"
    del config["data"]["tokenizer"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "tokenizer.json").unlink()
    assert main(["export", str(folder), "--node", "hills", "--out", str(tmp_path / "out")]) == 0
    assert "the run's tokenizer was not found and is not exported" in capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**No tokenizer**" in card
    assert "The settings of the topology are not known." in card
    assert "hills  corpus hills · 3 steps" in card
    assert re.search(r"\| woods \| the updates of `woods`: epsilon \d+\.\d\d for all text", card)
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_what_transformers_cannot_compute_is_not_exported(
    shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "wide" / "checkpoints"
    folder.mkdir(parents=True)
    checkpoint = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["architecture"] |= {"expansion_ratio": 2, "alibi_bias_max": 4}
    torch.save(checkpoint, folder / "last.ckpt")
    assert refused(capsys, "export", str(folder.parent), "--node", "sea", "--out", str(tmp_path / "out")) == [
        "expansion_ratio is 2: transformers' MPT supports only 4",
        "alibi_bias_max is 4: transformers' MPT supports only 8",
    ]
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- there and back


def test_a_world_starts_from_an_export(shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "runs/tiny", "--node", "hills", "--out", str(tmp_path / "hills")]) == 0
    key = ["--trainer.noise_key", str(tmp_path / "noise.key")]
    arguments = ["fit", "--recipe", "tiny.yaml", "--name", "again", "--trainer.max_epochs", "1", *key]
    assert main([*arguments, "--model.init_from", str(tmp_path / "hills")]) == 0
    assert "init_from" not in capsys.readouterr().err  # the tokenizer is the same
    again = json.loads(Path("runs/again/version_0/results.json").read_text())
    assert again["initial_weights"] == weights_digest(open_run("runs/tiny").world.parameters("hills"))
    before = again["rounds"][0]["nodes"]
    last = results()["rounds"][-1]["nodes"]
    assert before["hills"]["before"] == pytest.approx(last["hills"]["after_fit"], rel=1e-6)
    assert main(["evaluate", "runs/tiny", "--node", "hills", "--corpus", "sea", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "matrix.json").read_text())["nodes"]
    assert before["sea"]["before"]["perplexity"] == pytest.approx(row["scores"]["sea"]["perplexity"], rel=1e-6)
    direct = [*arguments, "--name", "direct", "--model.init_from", "runs/tiny:hills@2"]
    assert main(direct) == 0
    assert json.loads(Path("runs/direct/version_0/results.json").read_text())["rounds"] == again["rounds"]


# ---------------------------------------------------------------------- evaluate


def test_the_matrix_equals_what_the_run_found(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/tiny"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "worldlm: evaluating 5 models on 2 texts\n"
    assert captured.out.splitlines()[-1].startswith(
        "done. table and picture: runs/tiny/version_0/evaluation/matrix.json"
    )
    folder = Path("runs/tiny/version_0/evaluation")
    assert sorted(path.name for path in folder.iterdir()) == [
        f"matrix.{kind}" for kind in ("csv", "json", "png", "svg")
    ]
    matrix = json.loads((folder / "matrix.json").read_text())
    rows = {row["node"]: row["scores"] for row in matrix["nodes"]}
    assert list(rows) == NODES
    assert (matrix["rounds"], list(matrix["texts"])) == (2, ["hills", "sea"])
    last = results()["rounds"][-1]["nodes"]
    for node, corpus in {"hills": "hills", "sea": "sea"}.items():
        for measure in ("perplexity", "bits_per_byte"):
            assert rows[node][corpus][measure] == pytest.approx(last[node]["after_fit"][measure], rel=1e-6)
    hills, sea = (
        rows["world"]["hills"],
        rows["world"]["sea"],
    )  # the root's figure is over hills, woods, of two batches of two, and sea
    with open(folder / "matrix.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 10
    assert (lines[0]["node"], lines[0]["corpus"], float(lines[0]["perplexity"])) == (
        "world",
        "hills",
        hills["perplexity"],
    )
    assert sea["tokens"] == hills["tokens"] == 2 * 4 * 16


def test_a_federations_figure_too(shore: Path, tmp_path: Path) -> None:
    def score(corpus: str, blocks: int) -> tuple[float, int]:
        main(
            [
                "evaluate",
                "runs/tiny",
                "--node",
                "world",
                "--corpus",
                corpus,
                "--limit",
                str(blocks // 4),
                "--out",
                str(tmp_path),
            ]
        )
        (row,) = json.loads((tmp_path / "matrix.json").read_text())["nodes"]
        score = row["scores"][corpus]
        return math.log(score["perplexity"]) * score["tokens"], score["tokens"]

    parts = [score("hills", 8), score("hills", 4), score("sea", 8)]  # hills, woods in batches of two, sea
    pooled = math.exp(sum(nats for nats, _ in parts) / sum(tokens for _, tokens in parts))
    last = results()["rounds"][-1]["nodes"]
    assert pooled == pytest.approx(last["world"]["after_merge"]["perplexity"], rel=1e-6)


def test_any_corpus(shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sky = tmp_path / "sky.jsonl"
    sky.write_text("\n".join(json.dumps({"text": f"cloud number {i} of the sky"}) for i in range(20)))
    (tmp_path / "woods_too.txt").write_text("root and branch, " * 20)
    (tmp_path / "woods.txt").write_text("tree after tree " * 20)
    other = {"class_path": "worldlm.data.TextFiles", "init_args": {"train": "woods.txt", "validation": "woods_too.txt"}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"data": {"root": str(tmp_path), "corpora": {"woods": other}}}))
    arguments = ["evaluate", "runs/tiny", "--node", "sea,hills", "--round", "1", "--out", str(tmp_path)]
    assert main([*arguments, "--corpus", f"sea,{sky},woods,all", "--recipe", str(tmp_path / "other.yaml")]) == 0
    matrix = json.loads((tmp_path / "matrix_round_1.json").read_text())
    assert [row["node"] for row in matrix["nodes"]] == ["sea", "hills"]
    assert list(matrix["texts"]) == ["sea", "sky.jsonl", "woods", "all"]
    num_bytes = sum(len(f"cloud number {i} of the sky") + 1 for i in range(20))
    assert matrix["texts"]["sky.jsonl"]["blocks"] == (num_bytes - 1) // 16
    for row in matrix["nodes"]:  # the run's limit_val_batches of 2 is for its own corpora alone
        assert {name: row["scores"][name]["tokens"] // 16 for name in ("sky.jsonl", "woods", "all")} == {
            name: matrix["texts"][name]["blocks"] for name in ("sky.jsonl", "woods", "all")
        }
        assert row["scores"]["sea"]["tokens"] == 2 * 4 * 16
    assert f"sky.jsonl: measured on all {(num_bytes - 1) // 16 * 16} tokens; " in capsys.readouterr().out
    assert refused(capsys, *arguments, "--corpus", "see") == [
        "'see' is neither a corpus nor a file; there are hills, sea, all; did you mean 'sea'?"
    ]
    (tmp_path / "short.txt").write_text("short")
    assert refused(capsys, *arguments, "--corpus", str(tmp_path / "short.txt"))[-1].endswith(
        "6 tokens are fewer than a block of 16 + 1 tokens"
    )


def test_a_text_that_changed_is_told(shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("sea_too.txt").read_text()
    (tmp_path / "hills.txt").write_text(Path("hills.txt").read_text())
    for name in ("sea", "sea_too", "hills_too"):
        shutil.copy(f"{name}.txt", tmp_path)
    (tmp_path / "sea_too.txt").write_text(text + "and more ")
    arguments = ["evaluate", "runs/tiny", "--node", "sea", "--corpus", "sea", "--out", str(tmp_path)]
    assert main([*arguments, "--root", str(tmp_path)]) == 0
    assert "warning: sea: its files, its settings or the tokenizer changed" in capsys.readouterr().err


# ---------------------------------------------------------------------- generate


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    assert main(["generate", "runs/tiny", *arguments]) == 0
    rows = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    return {name.strip(): text.strip() for name, text in rows}


def test_what_a_node_says_depends_on_nobody_else(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("wave ", "--max_new_tokens", "20", "--temperature", "0.5")
    everybody = said(capsys, *arguments)
    assert [name for name in everybody if name] == NODES  # a text may have line ends
    assert said(capsys, *arguments, "--node", "sea")["sea"] == everybody["sea"]
    assert said(capsys, *arguments, "--node", "sea", "--seed", "1")["sea"] != everybody["sea"]
    assert said(capsys, *arguments, "--node", "sea", "--round", "1")["sea"] != everybody["sea"]
    assert everybody["sea"].startswith("wave ")


def test_the_likeliest_text_is_that_of_transformers(
    shore: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "runs/tiny", "--node", "sea", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    prompt = tokenizer("wav", return_tensors="pt")
    with torch.no_grad():
        (theirs,) = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    ours = said(capsys, "wav", "--node", "sea", "--temperature", "0", "--max_new_tokens", "10")["sea"]
    text = re.sub(r"[\x00-\x1f\x7f]", "\ufffd", tokenizer.decode(theirs, skip_special_tokens=True).strip())
    assert re.sub(r"[\x00-\x1f\x7f]", "\ufffd", ours) == text  # a terminal gets no control characters


def test_mistakes_are_told_in_a_line(shore: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "generate", "runs/tiny", "x", "--node", "see") == [
        "runs/tiny/version_0 has no node 'see'; it has world, land, hills, woods, sea; did you mean 'sea'?"
    ]
    assert (
        "round 9 was not kept; there are 1, 2, and the last one"
        in refused(capsys, "export", "runs/tiny", "--node", "sea", "--out", "x", "--round", "9")[0]
    )
    assert "no run at runs/tine; did you mean 'tiny'" in refused(capsys, "evaluate", "runs/tine")[0]
    lines = refused(capsys, "generate", "runs/tiny", "x", "--temperature", "-1")
    assert lines[0] == "generate: argument --temperature: must be a number of at least 0, but is '-1'"
    assert refused(capsys, "evaluate", "runs/tiny", "--node", "sea", "--out", "sea.txt/there")[-1].startswith(
        "Not a directory: sea.txt/there"
    )
    assert refused(capsys, "export", "runs/tiny", "--node", "sea", "--out", "sea.txt/there")[0].startswith(
        "File exists: sea.txt"
    )
    assert refused(capsys, "export", "runs/tiny")[0] == ("export: the following arguments are required: --node, --out")
