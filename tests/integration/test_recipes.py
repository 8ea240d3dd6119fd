"""Every recipe and topology that comes with WorldLM, without a network: read, built on the meta device, counted."""

import gzip
import json
import random
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
import zstandard

from worldlm.cli import main
from worldlm.cli.recipe import read_recipe
from worldlm.cli.recipe_cli import RecipeCLI
from worldlm.cli.recipe_parser import RecipeParser
from worldlm.data import Corpus, HubDataset, Mixture, TextFiles
from worldlm.topology import find_file, load_topology
from worldlm.trainer import FederationCallback
from worldlm.trainer.method_checks import check_settings

RECIPES = {path.stem: path for path in sorted(find_file("recipes", "quickstart").parent.glob("*.yaml"))}
TOPOLOGIES = [
    path
    for path in sorted(find_file("topologies", "quickstart").parent.glob("*.yaml"))
    if path.stem != "hundred_thousand"  # which tests/unit/topology/test_copies.py loads
]
LARGE = {  # as rounded in millions
    "pile_75m": 74.0,
    "pile_125m": 123.6,
    "pile_400m": 417.1,
    "mc4_250m": 277.0,
}
NUM_TOKENS = {"bytes": 257, "EleutherAI/gpt-neox-20b": 50_277, "FacebookAI/xlm-roberta-base": 250_002}


class Built:
    """What a recipe comes to: its settings, model, corpora and trainer."""

    def __init__(self, cli: RecipeCLI, name: str) -> None:
        read_recipe(RECIPES[name], cli.known)
        config = cli.parser.parse_args(["fit", "--recipe", str(RECIPES[name])])
        self.settings = config.fit
        self.tokenizer = config.fit.data.tokenizer
        config.fit.data.tokenizer = "bytes"  # others may need the network
        config.fit.trainer.logger = False
        with torch.device("meta"):
            built = cli.parser.instantiate_classes(config).fit
        self.model, self.data = built.model, built.data
        callbacks = built.trainer.pop("callbacks")
        self.trainer = cli.trainer_class(**built.trainer, callbacks=callbacks)

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def tokens_per_node(self) -> int:
        """Tokens that a node with the topology's own settings reads in the whole run."""
        (steps,) = {node.settings.num_local_steps for node in self.trainer.topology.data_nodes}
        batches = steps * self.trainer.accumulate_grad_batches
        if isinstance(self.trainer.limit_train_batches, int):
            batches = min(batches, self.trainer.limit_train_batches)
        sequences = batches * self.data.batch_size * self.trainer.max_epochs
        return int(sequences * self.model.architecture.max_seq_len)


@pytest.fixture(scope="module")
def recipes(reading: Any) -> dict[str, Any]:
    """All recipes, built through one parser."""
    return {name: Built(reading, name) for name in RECIPES}


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_topologies_load_and_are_named_as_their_files(path: Path) -> None:
    assert load_topology(path).name == path.stem.replace("_", "-")


@pytest.mark.parametrize("name", RECIPES)
class TestEveryRecipe:
    def test_its_size_is_that_of_the_closed_formula(self, name: str, recipes: dict[str, Built]) -> None:
        size = recipes[name].model.architecture
        width = size.d_model
        block = 12 * width**2 + 2 * width  # attention 4, feed-forward 8, two norms
        assert recipes[name].num_parameters == size.vocab_size * width + size.num_blocks * block + width

    def test_it_has_the_corpora_of_its_topology_and_no_other(self, name: str, recipes: dict[str, Built]) -> None:
        used = {node.corpus for node in recipes[name].trainer.topology.data_nodes}
        assert set(recipes[name].data.corpora) == used

    def test_keys_are_attention_and_values_the_rest_of_the_last_blocks_and_the_embedding(
        self, name: str, recipes: dict[str, Built]
    ) -> None:
        model = recipes[name].model
        parts = model.partition()
        assert set(parts.values()) == {"backbone", "keys", "values"}
        last = model.architecture.num_blocks - 1
        for parameter, part in parts.items():
            block = int(parameter.split("blocks.")[1].split(".")[0]) if "blocks." in parameter else None
            if part == "keys":
                assert "attn" in parameter or "norm_1" in parameter
            if block == last:
                assert part != "backbone"
            if "norm_f" in parameter or "wte" in parameter:
                assert part == "values"
            if block == 0:
                assert part == "backbone"

    def test_the_model_knows_all_tokens(self, name: str, recipes: dict[str, Built]) -> None:
        tokenizer = recipes[name].tokenizer
        trained = getattr(tokenizer, "init_args", None)
        num_tokens = trained.vocab_size if trained else NUM_TOKENS[tokenizer.split("@")[0]]
        assert num_tokens <= recipes[name].model.architecture.vocab_size < 1.01 * num_tokens + 1

    def test_hub_data_sets_are_pinned_and_held_out_by_their_own_split(
        self, name: str, recipes: dict[str, Built]
    ) -> None:
        for corpus in recipes[name].data.corpora.values():
            if isinstance(corpus, HubDataset):
                assert corpus.revision is not None
                assert len(corpus.revision) == 40
                assert corpus.validation is not None


@pytest.mark.parametrize(("name", "millions"), LARGE.items())
def test_sizes_of_the_paper(name: str, millions: float, recipes: dict[str, Built]) -> None:
    built = recipes[name]
    assert round(built.num_parameters / 1e6, 1) == millions
    settings = built.model.optimizer_settings
    assert settings.betas == (0.9, 0.95)
    assert settings.weight_decay == 0
    assert settings.min_lr_ratio == 0.1
    assert built.trainer.gradient_clip_val == 1.0
    batch = built.data.batch_size * built.trainer.accumulate_grad_batches
    expected = {
        "pile_75m": (4e-4, 1000, 512, 1024),
        "pile_125m": (6e-4, 100, 256, 2048),
        "pile_400m": (4e-4, 1000, 512, 1024),
        "mc4_250m": (6e-4, 100, 256, 2048),
    }[name]
    assert (settings.lr, settings.warmup_steps, batch, built.model.architecture.max_seq_len) == expected
    assert {node.settings.num_local_steps for node in built.trainer.topology.data_nodes} == {500}


@pytest.mark.parametrize("name", [*LARGE, "pile_tiny", "mc4_tiny"])
def test_no_more_text_is_kept_than_a_run_reads(name: str, recipes: dict[str, Built]) -> None:
    """Nor less, but where the Pile has no more of it."""
    limits = {key: corpus.max_tokens for key, corpus in recipes[name].data.corpora.items()}
    read = recipes[name].tokens_per_node
    slack = 1.0 if name in LARGE else 1.25
    scarce = {"wikipedia": 1.5e9, "pubmed_abstracts": 4.3e9} if name.startswith("pile_") and name in LARGE else {}
    assert {key: scarce.get(key, limit) for key, limit in limits.items()} == limits
    assert all(read <= limit <= slack * read for key, limit in limits.items() if key not in scarce)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("pile_")])
def test_the_pile_is_read_once_for_all_its_corpora(name: str, recipes: dict[str, Built]) -> None:
    corpora = recipes[name].data.corpora
    assert {key: corpus.where for key, corpus in corpora.items()} == {
        "pile_cc": {"meta.pile_set_name": "Pile-CC"},
        "wikipedia": {"meta.pile_set_name": "Wikipedia (en)"},
        "pubmed_abstracts": {"meta.pile_set_name": "PubMed Abstracts"},
        "pubmed_central": {"meta.pile_set_name": "PubMed Central"},
    }
    for split in ("train", "validation"):
        assert len({corpus.source(split) for corpus in corpora.values()}) == 1


@pytest.mark.parametrize("tree", ["pile_three_level_swapped", "pile_three_level_private"])
@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("pile_")])
def test_the_pile_has_three_trees(name: str, tree: str, recipes: dict[str, Built]) -> None:
    built, topology = recipes[name], load_topology(tree)
    assert {node.corpus for node in topology.data_nodes} == set(built.data.corpora)
    check_settings(
        topology, [callback for callback in built.trainer.callbacks if isinstance(callback, FederationCallback)]
    )


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("mc4_")])
def test_mc4_corpora_are_their_languages(name: str, recipes: dict[str, Built]) -> None:
    assert all(corpus.name == key for key, corpus in recipes[name].data.corpora.items())


def test_the_swapped_tree_exchanges_the_smaller_corpora() -> None:
    def federations(name: str) -> dict[str, set[str | None]]:
        root = load_topology(name).root
        return {child.name: {leaf.corpus for leaf in child.children} for child in root.children}

    assert federations("pile_three_level") == {
        "internet": {"pile_cc", "wikipedia"},
        "medical": {"pubmed_abstracts", "pubmed_central"},
    }
    assert federations("pile_three_level_private") == federations("pile_three_level")
    assert federations("pile_three_level_swapped") == {
        "internet": {"pile_cc", "pubmed_abstracts"},
        "medical": {"wikipedia", "pubmed_central"},
    }


def test_only_the_private_tree_asks_for_privacy() -> None:
    asks = {
        path.stem
        for path in TOPOLOGIES
        if any(node.settings.privacy or node.settings.example_privacy for node in load_topology(path).nodes.values())
    }
    assert asks == {"pile_three_level_private"}


def test_corpora_of_the_documentation_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    page = find_file("recipes", "quickstart").parents[1] / "docs" / "how-to" / "read_your_own_text.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    shown = [yaml.safe_load(textwrap.dedent(block)) for block in blocks]
    shown = [block["data"]["corpora"] if "data" in block else block for block in shown if "root" not in block]
    parser = RecipeParser()
    parser.add_argument("--corpora", type=dict[str, Corpus])
    settings = parser.parse_object({"corpora": {name: value for block in shown for name, value in block.items()}})
    corpora = parser.instantiate_classes(settings).corpora
    kinds = {"letters": TextFiles, "reports": TextFiles, "it": HubDataset, "wikipedia": HubDataset, "text": Mixture}
    kinds |= {"one": TextFiles, "two": TextFiles}
    assert {name: type(corpus) for name, corpus in corpora.items()} == kinds


# ---------------------------------------------------------------------- run on text of one's own

SHRUNK = """
model:
  architecture: {d_model: 16, num_heads: 2, max_seq_len: 16, vocab_size: 257}
  optimizer: {warmup_steps: 1}
data: {tokenizer: bytes, batch_size: 2, cache_dir: cache}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 4
  accumulate_grad_batches: 2
  limit_val_batches: 1
  logger: false
"""


def write_pile(folder: Path) -> dict[str, str]:
    """Write files like the Pile's, in two splits, and return a pattern for each corpus."""
    rng = random.Random(0)
    names = {
        "pile_cc": "Pile-CC",
        "wikipedia": "Wikipedia (en)",
        "pubmed_abstracts": "PubMed Abstracts",
        "pubmed_central": "PubMed Central",
    }
    for key, name in names.items():
        for split, number in (("train", 12), ("validation", 3)):
            texts = [" ".join(rng.choices([*name.split(), "and", "so", "on"], k=20)) for _ in range(number)]
            lines = [json.dumps({"text": text, "meta": {"pile_set_name": name}}) + "\n" for text in texts]
            (folder / split).mkdir(exist_ok=True)
            (folder / split / f"{key}.jsonl.zst").write_bytes(zstandard.compress("".join(lines).encode()))
    return {key: f"{{split}}/{key}.jsonl.zst" for key in names}


def write_mc4(folder: Path) -> dict[str, str]:
    """Write files like mC4's, in one split, and return the file of each corpus."""
    rng = random.Random(0)
    words = {"it": "la casa sul monte", "fr": "la maison sur la colline", "uk": "дім на горі", "bg": "къща на хълма"}
    for key, some in words.items():
        texts = [" ".join(rng.choices(some.split(), k=20)) for _ in range(60)]
        rows = [{"text": text, "timestamp": "2020-01-01T00:00:00Z", "url": "https://example.org"} for text in texts]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"c4-{key}.json.gz").write_bytes(gzip.compress("".join(lines).encode()))
    return {key: f"c4-{key}.json.gz" for key in words}


@pytest.mark.parametrize(
    ("name", "write"), [("pile_75m", write_pile), pytest.param("mc4_250m", write_mc4, marks=pytest.mark.slow)]
)
def test_a_large_recipe_shrunk_runs_on_local_files(
    name: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["worldlm"])
    local = [part for key, pattern in write(tmp_path).items() for part in (f"--data.local.{key}", pattern)]
    Path("shrunk.yaml").write_text(SHRUNK)
    assert main(["fit", "--recipe", name, "--recipe", "shrunk.yaml", *local]) == 0
    captured = capsys.readouterr()
    assert "round 1/1: mean perplexity after fit" in captured.err
    assert captured.out.splitlines()[-1].startswith(f"done. results: runs/{name}-shrunk/version_0")
