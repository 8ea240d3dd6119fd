"""The place that the error of a value names: the recipe or the option that gave it, not one that was overridden."""

import pytest

from worldlm.cli.explain import explain
from worldlm.topology.reader import Reader

KNOWN = {"trainer.max_epochs", "trainer.callbacks", "data.corpora", "data.batch_size", "model.architecture.num_heads"}
KNOWN |= {"model.architecture.d_model", "model.optimizer.lr", "federation.settings", "federation.topology"}
FIRST = """\
model:
  architecture: {d_model: 32,
    num_heads: 4}
  optimizer: {lr: 2.0e-3}
data:
  batch_size: 4
  corpora:
    a: {class_path: TextFiles, init_args: {train: a.txt, max_tokens: 7}}
trainer:
  max_epochs: 3
  callbacks:
    - class_path: Averaging
    - class_path: Averaging
      init_args: {parts: [keys]}
federation: {topology: tree.yaml}
"""
NOT_AN_INT = """Parser key "trainer.max_epochs":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'NoneType'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'NoneType'>
  Given value type: <class 'str'>
  Given value: ten"""
NO_PART = """Parser key "trainer.callbacks":
    Does not validate against any of the Union subtypes
    Errors:
      - Parser key "parts":
          Expected a typing.Literal['backbone', 'keys', 'values']. Got value: nothing
      - Not a valid subclass of Callback
    Given value type: <class 'list'>"""
NO_CLASS = """Parser key "trainer.callbacks":
    Does not validate against any of the Union subtypes
    Errors:
      - Problem with given class_path 'my.Nothing':
          module 'my' has no attribute 'Nothing'
      - Expected a <class 'NoneType'>
    Given value: my.Nothing"""
NO_PARTS = "trainer:\n  callbacks:\n    - class_path: Averaging\n      init_args: {parts: [nothing]}\n"


def explained(message: str, second: str = "", *options: str) -> str:
    """Explain a message about FIRST, a second recipe laid over it, and options after both."""
    readers = [Reader(text, name) for name, text in (("first.yaml", FIRST), ("second.yaml", second)) if text]
    return explain(message, readers, KNOWN, [*(f"--recipe={reader.source}" for reader in readers), *options])


@pytest.mark.parametrize(
    ("message", "second", "options", "line"),
    [
        (
            NOT_AN_INT,
            "trainer:\n  max_epochs: ten",
            [],
            "second.yaml:2: trainer.max_epochs: must be int or nothing, but is ten",
        ),
        (NOT_AN_INT, "", ["--trainer.max_epochs", "ten"], "--trainer.max_epochs: must be int or nothing, but is ten"),
        (NOT_AN_INT, "trainer: {max_epochs: 2}", ["--trainer.max_epochs=ten"], "--trainer.max_epochs: must be int"),
        (NOT_AN_INT, "trainer: {max_epochs: ten}", ["--trainer.max_epochs", "2"], "second.yaml:1: trainer.max_epochs:"),
        (NO_PART, NO_PARTS, [], "second.yaml:4: parts: must be one of 'backbone', 'keys', 'values', but is nothing"),
        (NO_PART, NO_PARTS.replace("callbacks:", "callbacks+:"), [], "second.yaml:4: parts: must be one of"),
        (NO_PART, "", ["--trainer.callbacks.parts", "[nothing]"], "--trainer.callbacks.parts: must be one of"),
        (
            NO_CLASS,
            "",
            ["--trainer.callbacks+", "my.Nothing"],
            "--trainer.callbacks+: Problem with given class_path 'my.Nothing': module 'my' has no attribute 'Nothing'",
        ),
        ("batch_size is -1; it must be at least 1", "data: {batch_size: -1}", [], "second.yaml:1: batch_size is -1"),
        ("lr is -0.002: it must be above 0", "model:\n  optimizer: {lr: -2.0e-3}", [], "second.yaml:2: lr is -0.002"),
        ("lr is -1.0: it must be above 0", "", ["--model.optimizer", "{lr: -1}"], "--model.optimizer: lr is -1.0"),
        (
            "d_model is 32: not a multiple of num_heads, 5",
            "",
            ["--model.architecture.num_heads", "5"],
            "--model.architecture.num_heads: d_model is 32",
        ),
        ("d_model is 32: not a multiple of num_heads, 4", "", [], "first.yaml:2: d_model is 32"),
        ("lr is -1.0: it must be above 0", "", ["--model.optimizer.lr=-1"], "--model.optimizer.lr is -1.0: it must"),
        ("invalid value 0.5 for batch_size", "data: {batch_size: 5e-1}", [], "second.yaml:1: invalid value 0.5"),
        (
            "no file 'oak.yaml'; known: tree.yaml",
            "federation: {topology: oak.yaml}",
            [],
            "second.yaml:1: no file 'oak.yaml'",
        ),
        (
            "federation.settings: num_local_steps is x",
            "federation:\n  settings:\n    num_local_steps: x",
            [],
            "second.yaml:3: ",
        ),
        ("node 'n', corpus 'a': no such file: a.txt", "", [], "first.yaml:8: node 'n'"),
        ("node 'n', corpus 'a': b.txt:7: is not JSON", "", [], "node 'n'"),
        ("tree.yaml:7: max_epochs is 3", "", [], "tree.yaml:7: max_epochs is 3"),
        ("something else is wrong", "", [], "something else is wrong"),
    ],
)
def test_the_place_is_that_of_the_value(message: str, second: str, options: list[str], line: str) -> None:
    assert explained(message, second, *options).startswith(line)


def test_no_place_is_named_if_several_values_may_be_meant() -> None:
    both = "trainer:\n  callbacks:\n    - init_args: {rate: 2}\n    - init_args: {rate: 2}\n"
    assert explained("rate is 2: it must be below 1", both) == "rate is 2: it must be below 1"
    other = both.replace("rate: 2", "rate: 0.5", 1)
    assert explained("rate is 2: it must be below 1", other) == "second.yaml:4: rate is 2: it must be below 1"
