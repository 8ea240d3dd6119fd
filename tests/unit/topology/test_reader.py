"""The reader, on a file that is not a topology."""

import pickle

import pytest

from worldlm.topology.errors import UserError, suggest
from worldlm.topology.reader import Reader

RECIPE = """\
seed_everything: 1
model:
  optimizer: {lr: 4.0e-4}
trainer:
  callbacks:
    - class_path: a.B
    - class_path: a.C
      init_args:
        temperature: 0.1
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("seed_everything", 1),
        ("model.optimizer.lr", 3),
        ("trainer.callbacks.0.class_path", 6),
        ("trainer.callbacks.1", 7),
        ("trainer.callbacks.1.init_args.temperature", 9),
        ("trainer.callbacks.9.init_args", 5),
        ("model.nothing.here", 2),
        ("nothing", 1),
    ],
)
def test_line_of_a_dotted_key(path: str, line: int) -> None:
    assert Reader(RECIPE, "r.yaml").line(path) == line


def test_mistakes_are_sorted_and_reported_once() -> None:
    reader = Reader(RECIPE, "r.yaml")
    reader.report(3, "second\nline")
    reader.report(1, "first")
    reader.report(1, "first")
    with pytest.raises(UserError) as caught:
        reader.finish()
    assert caught.value.mistakes == ("r.yaml:1: first", "r.yaml:3: second line")
    assert pickle.loads(pickle.dumps(caught.value)).mistakes == caught.value.mistakes


def test_keys_that_are_not_text_are_reported() -> None:
    reader = Reader("[a]: 1\nb: 2", "r.yaml")
    assert list(reader.mapping(reader.root, "a recipe")) == ["b"]
    with pytest.raises(UserError, match="r.yaml:1: a key of a recipe must be text, but is a list"):
        reader.finish()


def test_a_merge_key_without_a_mapping_is_reported() -> None:
    reader = Reader("b: 2\n<<: 3", "r.yaml")
    reader.mapping(reader.root, "a recipe")
    with pytest.raises(UserError, match=r"r.yaml:2: '<<' of a recipe must be a mapping"):
        reader.finish()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Corpsu", "corpus"),
        ("zzz", ""),
        ("model.optimizer.learning_rate", "model.optimizer.lr"),
        ("model.optimizer.learning-rate", "model.optimizer.lr"),
        ("wd", "weight_decay"),
        ("seed", "seed_everything"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("local", "methods/local"),
        ("fedavgg", "methods/fedavg"),
        ("lr", "model.optimizer.lr"),
        ("s", ""),
        ("", ""),
    ],
)
def test_suggestions(name: str, nearest: str) -> None:
    known = ["corpus", "name", "model.optimizer.min_lr_ratio", "model.optimizer.lr", "model.optimizer.warmup_steps"]
    known += ["weight_decay", "seed_everything", "trainer.max_epochs", "methods/fedavg", "methods/local"]
    assert suggest(name, known) == (f"; did you mean {nearest!r}?" if nearest else "")
