"""Training a LightningModule and dataloaders that know nothing of WorldLM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from own_module import Bigrams, as_dicts, loader, shuffled, texts
from torch import nn
from torch.utils.data import TensorDataset

from worldlm.callbacks import AttentionAggregation, Averaging, ExamplePrivacy, NodeMetrics, Summary
from worldlm.data import CorpusDataModule, TextFiles
from worldlm.topology import Topology

Make = Callable[..., Any]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize(
    "options", [{}, {"collate_fn": as_dicts}, {"drop_last": True}], ids=["plain", "dicts", "drop_last"]
)
def test_one_node_gives_the_result_of_lightnings_trainer(
    options: dict[str, Any], single: Topology, trainer_for: Make, differences: Make
) -> None:
    ours = trainer_for(single, [NodeMetrics()], max_epochs=3, limit_train_batches=2 if options.get("drop_last") else 3)
    ours.fit(Bigrams(), loader(1, **options), loader(2))
    theirs = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    module = Bigrams()
    theirs.fit(module, loader(1, **options), loader(2))

    assert differences(ours.world.states["alone"].parameters, weights(module)) == []
    assert not torch.equal(module.head.weight, Bigrams().head.weight)
    state = ours.fit_loop.slot.state_dict()["alone"]
    assert differences(state["optimizer"], theirs.optimizers[0].state_dict()) == []
    assert differences(state["schedulers"][0], theirs.lr_scheduler_configs[0].scheduler.state_dict()) == []
    assert float(ours.callback_metrics["val_loss"]) == float(theirs.callback_metrics["val_loss"])
    assert ours.world.states["alone"].num_tokens == ours.global_step * 4  # examples


def test_averaging_of_two_nodes_is_fedavg(star: Make, trainer_for: Make) -> None:
    trainer = trainer_for(star("ab"), [Averaging(), NodeMetrics()])
    trainer.fit(Bigrams(), {"a": loader(1, 4), "b": [texts(2)[:3], texts(3)[:3]]}, loader(4))

    world, optimizers = Bigrams(), {}
    nodes = {"a": Bigrams(), "b": Bigrams()}
    batches = {
        "a": [texts(1)[:4], texts(1)[4:8], texts(1)[8:], texts(1)[:4]],  # two steps in each of two rounds
        "b": [texts(2)[:3], texts(3)[:3]] * 2,
    }
    for round_ in range(2):
        for name, module in nodes.items():
            module.load_state_dict(world.state_dict())
            if name not in optimizers:  # a node keeps its moments
                [optimizer], [scheduler] = module.configure_optimizers()
                optimizers[name] = optimizer, scheduler
            for batch in batches[name][2 * round_ : 2 * round_ + 2]:
                optimizers[name][0].zero_grad()
                module.loss(batch).backward()
                optimizers[name][0].step()
            optimizers[name][1].step()
        share = 4 / (4 + 1)  # examples of a batch; a list of batches counts as one each
        mean = {k: share * a + (1 - share) * nodes["b"].state_dict()[k] for k, a in nodes["a"].state_dict().items()}
        world.load_state_dict(mean)
    for name, value in weights(world).items():
        torch.testing.assert_close(trainer.world.states["world"].parameters[name], value)
    assert float(trainer.callback_metrics["val_loss_after_merge"]) > 0
    root = trainer.find_callback(NodeMetrics).own_metrics(trainer.world.states["world"])["val_loss_after_merge"]
    assert root == pytest.approx(
        sum(float(world.loss(batch).detach()) * len(batch) for batch in texts(4).split(4)) / 11, rel=1e-6
    )


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_train_epoch_end"])
def test_a_run_resumes_bit_for_bit(
    hook: str, star: Make, trainer_for: Make, save_everywhere: Make, snapshot: Make, differences: Make
) -> None:
    saver, method = save_everywhere(hook), lambda: [Averaging(), NodeMetrics()]
    whole = trainer_for(star("ab"), [*method(), saver])
    whole.fit(Bigrams(), shuffled(), loader(4))
    for path in saver.saved[:: 3 if hook == "on_train_batch_end" else 1]:
        resumed = trainer_for(star("ab"), method())
        resumed.fit(Bigrams(), shuffled(), loader(4), ckpt_path=path)
        assert differences(snapshot(resumed), snapshot(whole)) == []


def test_metrics_of_the_module_can_be_monitored(
    star: Make, trainer_for: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], recorder: Any
) -> None:
    saving = ModelCheckpoint(tmp_path / "best", "{epoch}-{val_loss:.2f}", monitor="val_loss")
    stopping = EarlyStopping(monitor="val_loss_after_merge", patience=9)
    trainer = trainer_for(star("ab"), [Averaging(), NodeMetrics(), Summary(), saving, stopping], logger=recorder)
    trainer.fit(Bigrams(), shuffled(), {"a": loader(4), "b": loader(5)})
    mean = (trainer.callback_metrics["a/val_loss_after_fit"] + trainer.callback_metrics["b/val_loss_after_fit"]) / 2
    assert float(trainer.callback_metrics["val_loss"]) == pytest.approx(float(mean))
    assert Path(saving.best_model_path).is_file()
    assert stopping.best_score < float("inf")
    assert "val_loss_after_fit" in capsys.readouterr().out
    tags = {tag for tag, _, _ in recorder.scalars}
    assert {"a/val_loss_after_fit", "world/val_loss_before"} <= tags
    assert "val_loss" not in tags  # of which node would it be?


def test_a_validation_without_metrics_is_warned_of(
    star: Make, trainer_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    class Silent(Bigrams):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.loss(batch)

    trainer_for(star("ab"), [Averaging(), NodeMetrics()], max_epochs=1).fit(Silent(), shuffled(), loader(4))
    assert "validation_step of Silent logs no metric" in caplog.text


class Manual(Bigrams):
    automatic_optimization = False  # type: ignore[assignment]


class WithoutOptimizer(Bigrams):
    def configure_optimizers(self) -> Any:
        return None


class Plateau(Bigrams):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}}


class Misnamed(Bigrams):
    def partition(self) -> dict[str, str]:
        return {"embedding.weight": "backbone", "head.weight": "key", "head.bias": "keys"}


class Incomplete(Bigrams):
    def partition(self) -> dict[str, str]:
        return {"embedding.weight": "backbone", "head.weights": "keys"}


class Configured(Bigrams):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 4, "settings": Path})


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize(
    ("module", "callbacks", "reason"),
    [
        (Manual, [Averaging()], "Manual sets automatic_optimization to False"),
        (WithoutOptimizer, [Averaging()], r"WithoutOptimizer.configure_optimizers\(\) returned no optimizer"),
        (Plateau, [Averaging()], "returned ReduceLROnPlateau, which waits for a metric"),
        (lambda: Bigrams(extra=nn.BatchNorm1d(3)), [Averaging()], "Bigrams: extra keeps running statistics"),
        (
            Bigrams,
            [AttentionAggregation()],
            "AttentionAggregation merges none .* has no keys and no values: .* partition",
        ),
        (Bigrams, [Averaging(["keys"])], "Averaging merges none of the parameters of Bigrams"),
        (Misnamed, [Averaging()], "Misnamed.partition.. has the part 'key'; .* did you mean 'keys'"),
        (Incomplete, [Averaging()], "Incomplete.partition.. lacks the parameters head.weight, head.bias"),
    ],
)
def test_what_a_module_lacks_is_said_before_training(
    module: Make, callbacks: list[Any], reason: str, star: Make, trainer_for: Make
) -> None:
    with pytest.raises(ValueError, match=reason):
        trainer_for(star("ab"), callbacks).fit(module(), shuffled(), loader(4))


def test_a_private_node_needs_the_layers_in_one_model(star: Make, trainer_for: Make) -> None:
    trainer = trainer_for(star("ab", "example_privacy: {clip_norm: 1.0}"), [Averaging(), ExamplePrivacy()])
    with pytest.raises(ValueError, match="example_privacy at a, b needs .* `model` .* and Bigrams has none"):
        trainer.fit(Bigrams(), shuffled(), loader(4))


def test_text_is_cut_to_the_sizes_that_a_module_states(star: Make, trainer_for: Make, tmp_path: Path) -> None:
    for name, text in (("train", "abba "), ("held_out", "bab ")):
        (tmp_path / f"{name}.txt").write_text(text * 99)
    corpora = dict.fromkeys("ab", TextFiles(train=f"{tmp_path}/train.txt", validation=f"{tmp_path}/held_out.txt"))
    data, module = CorpusDataModule(corpora, cache_dir=str(tmp_path / "cache")), Bigrams(vocab_size=257)
    with pytest.raises(ValueError, match="Bigrams does not say its sizes: .* `vocab_size` and `max_seq_len`"):
        trainer_for(star("ab"), [Averaging()]).fit(module, datamodule=data)
    module.architecture = SimpleNamespace(vocab_size=257, max_seq_len=8)
    trainer = trainer_for(star("ab"), [Averaging(), NodeMetrics()], max_epochs=1)
    trainer.fit(module, datamodule=data)
    assert float(trainer.callback_metrics["val_loss"]) < 6
    assert trainer.world.states["a"].num_tokens == 2 * 2 * 8


def test_hyperparameters_must_fit_into_a_checkpoint(star: Make, trainer_for: Make, tmp_path: Path) -> None:
    callbacks = [Averaging(), ModelCheckpoint(tmp_path / "best")]
    with pytest.raises(ValueError, match=r"hyperparameter settings of Configured is a type.*ignore=\['settings'\]"):
        trainer_for(star("ab"), callbacks).fit(Configured(), shuffled(), loader(4))
    trainer_for(star("ab"), [Averaging()], max_epochs=1).fit(Configured(), shuffled(), loader(4))  # saves no checkpoint


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ([loader(1)], "the training loaders must be a dict with one loader for each of a, b, got DataLoader"),
        ([[loader(1), loader(2)]], "the training loaders must be a dict .* got list"),
        ([{"a": loader(1), "B": loader(2)}], "one loader for each of a, b, got a, B; did you mean 'b'"),
        ([{"a": loader(1), "b": TensorDataset(texts(1))}], "the training loader of b is a TensorDataset"),
        (
            [shuffled(), {"a": loader(1)}],
            "the validation loaders must be a dict with one loader for each of a, b, got a",
        ),
    ],
)
def test_loaders_are_checked_before_training(data: list[Any], reason: str, star: Make, trainer_for: Make) -> None:
    with pytest.raises(ValueError, match=reason):
        trainer_for(star("ab"), [Averaging()]).fit(Bigrams(), *data, *([] if len(data) > 1 else [loader(4)]))
