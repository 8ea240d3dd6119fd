"""Attack trained models: was this document in the text of the node? Was it in the text behind an upload?

    python tests/benchmarks/membership_inference.py [--models 8] [--steps 60] [--sigmas 0.5 1 2] [--text FILE ...]

For each kind of node `--models` small models are trained by WorldTrainer, each on a random half of the same documents,
so that every document is in half of them. The attacker sees the loss of each document in one model, and knows for all
others which documents they were trained on. Its score is how far the loss is below the mean of the models without the
document; it sets its threshold on the other models (a calibrated attack with shadow models: Carlini et al., arXiv
2112.03570). Documents are of three kinds:

- text: 131 bytes of text, four blocks;
- canary: 32 random bytes, one block;
- repeated canary: 32 other random bytes, eight blocks of them in one document.

The table states AUC and advantage, TPR - FPR, each as a mean over the models with its standard error, and the largest
advantage that (epsilon, delta) allows: (exp(epsilon) - 1 + 2 delta) / (exp(epsilon) + 1), for the best delta. With unit
block the guarantee is for one block, so it says nothing about documents of several blocks.

The second table is about uploads of nodes with update-level privacy. The parent computes the update of the node with
each of two texts, or none, and compares the upload with both: the best attack there is. Text is by default from
Python's standard library. One core, about two minutes.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attacked_worlds import KINDS, Documents, Node, Sent, train
from numpy.typing import NDArray
from torch import Tensor

from worldlm.data import StandardLibrary
from worldlm.federation.gaussian import gaussian_epsilon
from worldlm.federation.noise_key import NoiseKey
from worldlm.federation.parameters import Tensors, norm, subtract
from worldlm.federation.privacy import sanitise

DELTA = 1e-5
DELTAS = (1e-5, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


# ---------------------------------------------------------------------- the attack on models


def scores(losses: NDArray[np.float64], members: NDArray[np.bool_], target: int) -> NDArray[np.float64]:
    """Return how far each document's loss in a model is below its mean in the other models without it.

    The median of all documents is subtracted, because models differ in how well they predict any text.
    """
    others = np.arange(len(losses)) != target
    without = np.where(members[others], np.nan, losses[others])
    result: NDArray[np.float64] = np.nanmean(without, 0) - losses[target]
    return result - np.median(result)


def auc(found: NDArray[np.float64], is_member: NDArray[np.bool_]) -> float:
    """Return the probability that a member's score is above that of another document."""
    above = found[is_member][:, None] - found[~is_member][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def best_threshold(found: NDArray[np.float64], is_member: NDArray[np.bool_]) -> float:
    """Return the threshold with the largest TPR - FPR."""
    order = np.argsort(-found)
    gain = np.cumsum(np.where(is_member[order], 1 / is_member.sum(), -1 / (~is_member).sum()))
    return float(found[order][int(np.argmax(gain))])


def attack(losses: NDArray[np.float64], members: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return AUC and advantage at each model, with the threshold set on all others."""
    found = np.stack([scores(losses, members, target) for target in range(len(losses))])
    aucs, gains = [], []
    for target in range(len(losses)):
        others = np.arange(len(losses)) != target
        threshold = best_threshold(found[others].ravel(), members[others].ravel())
        aucs.append(auc(found[target], members[target]))
        hits = found[target] >= threshold
        gains.append(hits[members[target]].mean() - hits[~members[target]].mean())
    return np.array(aucs), np.array(gains)


def allowed(epsilon_at: Any) -> float:
    """Return the largest advantage that a function from delta to epsilon allows."""
    bounds = []
    for delta in DELTAS:
        epsilon = epsilon_at(delta)
        bounds.append(1.0 if epsilon > 30 else (math.expm1(epsilon) + 2 * delta) / (math.exp(epsilon) + 1))
    return min(1.0, *bounds)


def _with_error(values: NDArray[np.float64]) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def attack_models(documents: Documents, nodes: Sequence[Node], number: int, steps: int, folder: Path) -> None:
    """Print the table of attacks on models."""
    members = documents.halves(number)
    print(f"| node | epsilon at {DELTA:g} | documents | loss in, out | AUC | TPR - FPR | allowed |")
    print("|---|---:|---|---:|---:|---:|---:|")
    for node in nodes:
        trained = [train(documents.corpus(np.flatnonzero(row).tolist()), node, steps, folder) for row in members]
        losses = np.stack([documents.losses(module) for module, _ in trained])
        ledger = trained[0][1]
        epsilon = ledger.epsilon(DELTA) if ledger.history else math.inf
        for kind in KINDS:
            columns = documents.kinds == kind
            aucs, gains = attack(losses[:, columns], members[:, columns])
            inside, outside = losses[:, columns][members[:, columns]], losses[:, columns][~members[:, columns]]
            bound = f"{allowed(ledger.epsilon):.3f}" if kind in node.covered else "-"
            means = f"{inside.mean():.2f}, {outside.mean():.2f}"
            print(
                f"| {node.title} | {epsilon:.2f} | {kind} | {means} | {_with_error(aucs)} | {_with_error(gains)} "
                f"| {bound} |",
                flush=True,
            )


# ---------------------------------------------------------------------- the attack on uploads


def attack_uploads(documents: Documents, sigmas: Sequence[float], steps: int, releases: int, folder: Path) -> None:
    """Print the table of attacks on uploads."""
    half = documents.halves(2)[0]
    canaries = half & (documents.kinds != "text")
    models, start = [], {}
    for which in (half, half & ~canaries):  # the text of the node with and without its canaries
        sent = Sent()
        train(documents.corpus(np.flatnonzero(which).tolist()), Node("recorded"), steps, folder, [sent])
        models.append(sent.model)
        start = sent.start
    clip_norm = norm(subtract(models[0], start)) / 4
    clipped = [
        _flat(subtract(sanitise(m, start, clip_norm=clip_norm, noise_multiplier=0.0, stream=_no_stream).tensors, start))
        for m in (*models, start)
    ]
    print(f"\n| game | sigma | epsilon at {DELTA:g} | TPR - FPR | exact for these updates | allowed |")
    print("|---|---:|---:|---:|---:|---:|")
    for title, there, away, units in (("took part", 0, 2, 1), ("canaries in its text", 0, 1, 2)):
        line = (clipped[there] - clipped[away]).double()
        distance = float(line.norm()) / clip_norm
        for sigma in sigmas:
            results = []
            for which in (there, away):
                model = models[which] if which < 2 else start
                cuts = []
                for _ in range(releases):
                    safe = sanitise(
                        model, start, clip_norm=clip_norm, noise_multiplier=sigma,
                        stream=NoiseKey().stream_for("leaf", 0, 0, "upload noise"),
                    )  # fmt: skip
                    rest = _flat(subtract(safe.tensors, start)).double() - clipped[away].double()
                    cuts.append(float(rest @ line / (line @ line)) > 0.5)
                results.append(np.mean(cuts))
            gain = results[0] - results[1]
            error = math.sqrt(sum(rate * (1 - rate) / releases for rate in results))
            exact = math.erf(distance / sigma / 2 / math.sqrt(2))
            mu = units / sigma
            print(
                f"| {title} | {sigma:g} | {gaussian_epsilon(1 / sigma, DELTA):.2f} | {gain:.3f} ± {error:.3f} "
                f"| {exact:.3f} | {allowed(lambda delta, mu=mu: gaussian_epsilon(mu, delta)):.3f} |",
                flush=True,
            )


def _flat(tensors: Tensors) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def _no_stream(values: Any) -> Any:
    raise AssertionError("without noise no stream is made")


def main() -> None:
    """Run both attacks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--clip-norm", type=float, default=0.5)
    parser.add_argument("--releases", type=int, default=500)
    parser.add_argument("--text", type=Path, nargs="*", help="files in place of the standard library")
    options = parser.parse_args()
    if options.models < 4 or options.models % 2:
        parser.error("--models must be even and at least 4, so that each document has models with and without it")
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "worldlm"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    if options.text:
        text = b"\n".join(path.read_bytes() for path in options.text)
    else:
        text = "\n".join(StandardLibrary(area="docstrings").documents("train")).encode()
    documents = Documents.make(text)
    nodes = [Node("not private")]
    for unit, covered in (("block", ("canary",)), ("document", tuple(KINDS))):
        for sigma in options.sigmas:
            bounds = f"clip_norm: {options.clip_norm}, noise_multiplier: {sigma}, unit: {unit}"
            settings = f", example_privacy: {{{bounds}}}"
            nodes.append(Node(f"unit {unit}, sigma {sigma:g}", settings, unit, covered))
    with tempfile.TemporaryDirectory() as folder:
        attack_models(documents, nodes, options.models, options.steps, Path(folder))
        attack_uploads(documents, options.sigmas, options.steps, options.releases, Path(folder))


if __name__ == "__main__":
    main()
