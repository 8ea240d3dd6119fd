"""What commands import before the first step, so that nothing slows the start down unnoticed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from toy_world import BEGINNING, write_toy_world

from worldlm.cli import lazy_imports

LATER = {
    "datasets": "reads corpora from the Hub",
    "huggingface_hub": "reads corpora and tokenizers from the Hub",
    "opacus": "trains nodes that ask for example_privacy; it imports scipy",
    "pandas": "is imported by datasets",
    "pyarrow": "reads Parquet files, and is imported by datasets",
    "safetensors.torch": "reads weights for init_from, and writes exports",
    "scipy": "is imported by opacus and torchmetrics",
    "torchmetrics": "worldlm.cli.lazy_imports keeps its __init__ from running",
    "torchmetrics.functional": "as torchmetrics",
    "torchvision": "is imported by torchmetrics where it is installed",
    "transformers": "is imported by torchmetrics",
}
"""Modules that must not be imported before the first step is done, and what needs them."""

AT_START = {
    "matplotlib.pyplot": "torchmetrics.metric imports it, and Lightning imports that",
    "sympy": "torch._dynamo imports it",
    "tensorboard": "the logger of the run",
    "tokenizers": "KeepTokenizer keeps the tokenizer in the run's folder before training",
    "torch._dynamo": "Lightning imports it, and so does every step of an optimizer of torch",
    "torch.distributed.fsdp": "torch._dynamo imports it",
    "torch.distributed.tensor": "torch._dynamo imports it",
    "torchmetrics.metric": "Lightning's results are metrics",
}
"""Modules that take time and are imported, and why they cannot be imported later."""

TOPOLOGY = """
name: shore
settings: {num_local_steps: 1}
root:
  name: world
  children: [{name: hills, corpus: hills}, {name: sea, corpus: sea}]
"""

RECIPE = (
    BEGINNING
    + """
trainer:
  max_epochs: 1
  callbacks:
    - {class_path: worldlm.callbacks.Averaging, init_args: {parts: [backbone]}}
    - {class_path: worldlm.callbacks.TokenRows}
    - {class_path: worldlm.callbacks.AttentionAggregation}
    - {class_path: worldlm.callbacks.ResidualExchange}
    - {class_path: worldlm.callbacks.UpdatePrivacy}
    - {class_path: worldlm.callbacks.ExamplePrivacy}
    - {class_path: probe.Probe}
"""
)

PROBE = """
import json
import sys

from lightning.pytorch import Callback


class Probe(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 1:
            with open("modules.json", "w") as file:
                json.dump(sorted(sys.modules), file)

    def on_train_end(self, *_):
        from torchmetrics.text import Perplexity
        import torchmetrics
        from lightning.pytorch.core.module import Metric

        assert torchmetrics.metric.Metric is torchmetrics.Metric is Metric
        assert issubclass(Perplexity, Metric)
        assert torchmetrics.text.Perplexity is torchmetrics.text.perplexity.Perplexity is Perplexity
        print("torchmetrics is whole")
"""


@pytest.mark.slow
def test_fit_has_imported_no_more_than_it_needs_at_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = write_toy_world(tmp_path, TOPOLOGY, RECIPE)
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, "-m", "worldlm", "fit", "--recipe", recipe.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "torchmetrics is whole" in done.stdout
    imported = set(json.loads((tmp_path / "modules.json").read_text()))
    assert sorted(imported & (set(LATER) | set(AT_START))) == sorted(AT_START)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "join"])
def test_a_node_of_its_own_imports_no_more_than_fit(command: str) -> None:
    script = f"import sys; from worldlm.cli import main; main(['{command}', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(set(done.stdout.splitlines()[-1].split()) & set(LATER)) == []


FILES = {
    "__init__": "_logger = None\nfrom metrics.alone import Accuracy\nfrom metrics.metric import Metric",
    "metric": "from metrics import _logger\nclass Metric: pass",
    "alone": "from metrics.metric import Metric\nclass Accuracy(Metric): pass",
    "circular": "from metrics import Accuracy\nMetric = Accuracy",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[lazy_imports._Package]:
    """A package whose module `metric` can be imported before its `__init__` has run, and `circular` cannot."""
    (tmp_path / "metrics").mkdir()
    for name, text in FILES.items():
        (tmp_path / "metrics" / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(lazy_imports, "_NAME", "metrics")
    monkeypatch.setattr(lazy_imports, "_USED", {"metric": "Metric"})
    spec = find_spec("metrics")
    assert spec is not None
    yield lazy_imports._Package(spec)
    for name in [name for name in sys.modules if name.partition(".")[0] == "metrics"]:
        del sys.modules[name]


def test_a_package_is_completed_when_it_is_imported_again(package: lazy_imports._Package) -> None:
    package.import_used()
    used = import_module("metrics").Metric
    package.leave()
    assert "metrics.alone" not in sys.modules
    assert find_spec("metrics") is not None  # asking whether it is installed does not import it
    assert "metrics.alone" not in sys.modules
    whole = import_module("metrics")
    assert whole is package.module
    assert whole.Metric is whole.metric.Metric is used
    assert issubclass(whole.alone.Accuracy, used)
    assert package not in sys.meta_path


def test_a_package_is_completed_when_more_is_asked_of_it(package: lazy_imports._Package) -> None:
    package.import_used()
    used = import_module("metrics").Metric
    assert issubclass(import_module("metrics").Accuracy, used)
    package.leave()
    assert import_module("metrics") is package.module


def test_a_package_that_needs_its_init_is_imported_as_usual(
    package: lazy_imports._Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_imports, "_USED", {"metric": "Metric", "circular": "Metric"})
    package.import_used()
    package.leave()
    assert "metrics" not in sys.modules
    assert import_module("metrics") is not package.module
    assert import_module("metrics.circular").Metric is import_module("metrics").Accuracy
