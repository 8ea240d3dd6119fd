"""Loss, schedule, evaluation and checkpoint of the LightningModule."""

import io
import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.text import Perplexity

from worldlm.models import (
    Architecture,
    Evaluation,
    LanguageModule,
    OptimizerSettings,
    Split,
    warmup_cosine,
)

# these trainers have no held-out text
pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")

SIZES = Architecture(num_blocks=2, d_model=16, num_heads=4, max_seq_len=8, vocab_size=30)
SPLIT = Split(keys=(r"blocks\.1\.(norm_1|attn)\.",), values=(r"blocks\.1\.", r"norm_f\."))


def build(optimizer: OptimizerSettings | None = None) -> LanguageModule:
    torch.manual_seed(0)
    return LanguageModule(SIZES, SPLIT, optimizer or OptimizerSettings())


def some_batch(batch: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, SIZES.vocab_size, (batch, 9), generator=generator)


def by_hand(module: LanguageModule, batch: Tensor) -> list[float]:
    """Negative log likelihood of each target, one at a time, in float64."""
    with torch.no_grad():
        logs = module(batch[:, :-1]).double().log_softmax(-1)
    rows, length = batch.shape
    return [-logs[i, t, batch[i, t + 1]].item() for i in range(rows) for t in range(length - 1)]


def fit(path: Path, optimizer: OptimizerSettings, **arguments: int) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **arguments,
    )
    loader = DataLoader(list(some_batch(6)), batch_size=2)
    trainer.fit(build(optimizer), loader)
    return trainer


def test_loss_is_the_mean_over_the_shifted_targets() -> None:
    module, batch = build(), some_batch()
    nats = by_hand(module, batch)
    assert module.training_step(batch, 0).item() == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_loss_is_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert build().loss(some_batch()).dtype == torch.float32


def test_an_empty_batch_gives_zero_loss_and_gradients_of_zero() -> None:
    module = build()
    loss = module.training_step(some_batch(0), 0)
    loss.backward()
    assert loss.item() == 0
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_warmup_and_cosine_by_hand() -> None:
    values = [warmup_cosine(step, 4, 12, 0.1) for step in (0, 1, 3, 4, 6, 8, 10, 12, 99)]
    root = math.sqrt(0.5)
    cosine = [1, 0.1 + 0.45 * (1 + root), 0.55, 0.1 + 0.45 * (1 - root), 0.1, 0.1]
    assert values == pytest.approx([0.25, 0.5, 1, *cosine])


def test_without_a_number_of_steps_the_rate_stays_at_its_peak() -> None:
    assert [warmup_cosine(step, 2, None, 0.1) for step in (0, 1, 2, 10**6)] == [0.5, 1, 1, 1]


def test_the_trainer_drives_the_schedule_every_step(tmp_path: Path) -> None:
    trainer = fit(tmp_path, OptimizerSettings(lr=0.5, warmup_steps=2), max_epochs=2)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert trainer.global_step == 6
    assert scheduler.get_last_lr() == [pytest.approx(0.05)]
    group = trainer.optimizers[0].param_groups[0]
    assert (group["fused"], group["betas"], group["weight_decay"]) == (True, (0.9, 0.95), 0.0)


def test_an_unlimited_run_does_not_decay() -> None:
    module = build(OptimizerSettings(lr=0.5, warmup_steps=2))
    module.trainer = type("Endless", (), {"estimated_stepping_batches": math.inf})()
    scheduler = module.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert scheduler.lr_lambdas[0](10**6) == 1.0


def test_a_warmup_longer_than_the_run_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="warmup_steps is 100, but a node trains only 3 steps"):
        fit(tmp_path, OptimizerSettings(), max_epochs=1)


def test_a_warmup_longer_than_the_run_is_warned_of_once() -> None:
    """`configure_optimizers` is called for every node, and nodes may train different numbers of steps."""
    module = build(OptimizerSettings(warmup_steps=100))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for steps in (3, 3, 2):
            module.trainer = type("Short", (), {"estimated_stepping_batches": steps})()
            module.configure_optimizers()
    assert [str(one.message)[:21] for one in seen] == ["warmup_steps is 100, "]


def test_the_schedule_s_state_is_plain(tmp_path: Path) -> None:
    trainer = fit(tmp_path, OptimizerSettings(warmup_steps=1), max_epochs=1)
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    state, buffer = scheduler.state_dict(), io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == state
    assert pickle.loads(pickle.dumps(scheduler)).get_last_lr() == scheduler.get_last_lr()


def test_a_checkpoint_loads_with_weights_only_and_rebuilds_the_module(tmp_path: Path) -> None:
    optimizer = OptimizerSettings(lr=1e-2, warmup_steps=1)
    trainer = fit(tmp_path, optimizer, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    module = LanguageModule.from_hyper_parameters(checkpoint["hyper_parameters"])
    module.load_state_dict(checkpoint["state_dict"])
    trained = trainer.lightning_module
    assert (module.architecture, module.optimizer_settings) == (SIZES, optimizer)
    assert module.partition() == trained.partition()
    assert torch.equal(module(some_batch()[:, 1:]), trained(some_batch()[:, 1:]))


@pytest.mark.parametrize(
    ("sizes", "split", "message"),
    [
        (
            {"num_heads": 2, "vocab_size": 31},
            SPLIT,
            "num_heads is 4 in the saved model, but 2 in this one, vocab_size is 30 in the saved model, but 31",
        ),
        (
            {},
            replace(SPLIT, keys=("norm_1",)),
            r"0\.norm_1\.weight is in backbone in the saved model, but in keys in this one",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_rejected(sizes: dict[str, int], split: Split, message: str) -> None:
    module = LanguageModule(replace(SIZES, **sizes), split, OptimizerSettings())
    with pytest.raises(ValueError, match=message):
        module.on_load_checkpoint({"hyper_parameters": build().hparams})


def test_a_checkpoint_with_another_sequence_length_or_rate_is_accepted() -> None:
    patterns = replace(SPLIT, keys=(r"1\.norm_1\.", r"1\.attn\."))  # other words for the same parts
    module = LanguageModule(replace(SIZES, max_seq_len=16), patterns, OptimizerSettings(lr=1.0))
    module.on_load_checkpoint({"hyper_parameters": build().hparams})


def test_every_parameter_has_one_part_and_the_tied_head_is_named_once() -> None:
    module = build()
    parts = module.partition()
    assert list(parts) == [name for name, _ in module.named_parameters()]
    assert parts["model.transformer.wte.weight"] == "backbone"
    assert "model.lm_head.weight" not in parts
    assert parts["model.transformer.blocks.1.norm_1.weight"] == "keys"
    assert parts["model.transformer.blocks.1.norm_2.weight"] == "values"
    assert parts["model.transformer.blocks.0.attn.Wqkv.weight"] == "backbone"


def test_a_split_that_does_not_match_is_rejected_when_the_module_is_built() -> None:
    with pytest.raises(ValueError, match="matches no parameter"):
        LanguageModule(SIZES, Split(keys=(r"blocks\.7\.",), values=("norm_f",)), OptimizerSettings())


def test_perplexity_is_that_of_all_tokens_together() -> None:
    module, batches = build(), [some_batch(4), some_batch(1, seed=2), some_batch(0)]
    nats = [value for batch in batches for value in by_hand(module, batch)]
    evaluation = module.evaluate(batches)
    assert evaluation.num_tokens == len(nats) == 40
    assert evaluation.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)
    metric = Perplexity()
    for batch in batches[:2]:
        metric.update(module(batch[:, :-1]), batch[:, 1:])
    assert evaluation.perplexity == pytest.approx(metric.compute().item(), rel=1e-5)


def test_evaluation_does_not_change_the_mode_or_the_gradients() -> None:
    module, modes = build(), []
    module.model.register_forward_hook(
        lambda model, _inputs, logits: modes.append((model.training, logits.requires_grad))
    )
    module.train()
    module.evaluate([some_batch()])
    assert modes == [(False, False)]
    assert module.training
    assert module.model.training
    module.eval()
    module.evaluate([some_batch()])
    assert not module.training


def test_evaluating_an_empty_text_is_rejected_and_restores_the_mode() -> None:
    module = build().train()
    with pytest.raises(ValueError, match="no token"):
        module.evaluate([])
    assert module.training


def test_the_perplexity_of_a_diverged_model_is_infinite() -> None:
    module = build()
    with torch.no_grad():
        module.model.lm_head.weight.mul_(1e4)
    evaluation = module.evaluate([some_batch()])
    assert evaluation.nats == math.inf
    assert evaluation.perplexity == math.inf


def test_bits_per_byte_by_hand() -> None:
    evaluation = Evaluation(nats=math.log(8), num_tokens=10)
    assert evaluation.bits_per_byte(1.5) == pytest.approx(2.0)
    assert evaluation.perplexity == pytest.approx(8.0)


def test_perplexity_beyond_a_float_is_infinite() -> None:
    assert Evaluation(nats=1e4, num_tokens=1).perplexity == math.inf


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("betas", (0.9, 1.0)),
        ("weight_decay", -1.0),
        ("warmup_steps", -1),
        ("min_lr_ratio", 1.5),
        ("eps", 0.0),
    ],
)
def test_optimizer_settings_out_of_range_are_rejected(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*: it must be"):
        OptimizerSettings(**{name: value})


def test_the_loss_equals_a_bare_loop_s_over_some_steps() -> None:
    module, batch = build(), some_batch()
    bare = build().model
    ours = torch.optim.AdamW(module.parameters(), lr=1e-2)
    theirs = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    for _ in range(3):
        loss = module.training_step(batch, 0)
        expected = F.cross_entropy(bare(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        for optimizer, value in ((ours, loss), (theirs, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
