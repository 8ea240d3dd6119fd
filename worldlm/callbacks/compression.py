"""Compressed messages: weights are rounded stochastically to bfloat16 or int8."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict, get_args

import torch
from lightning.pytorch import LightningModule
from torch import Generator

from worldlm.federation.compression import (
    Encoding,
    decode,
    difference,
    encode,
    encode_with_feedback,
    encoded_bytes,
    restore,
)
from worldlm.federation.messages import Download, MessageT, Residual, Upload, joined
from worldlm.federation.parameters import Tensors
from worldlm.federation.state import NodeState
from worldlm.rounds import Context, RoundCallback, World
from worldlm.topology import Node, Topology
from worldlm.topology.changes import Changes
from worldlm.topology.errors import check_choice
from worldlm.trainer import FederationCallback, WorldTrainer


class _Memory(TypedDict, total=False):
    sent: dict[str, Tensors]
    error: Tensors


class Compression(FederationCallback):
    """Sends each weight in two bytes or one, by unbiased stochastic rounding.

    Uploads: after sanitising, the node encodes the difference from its last download, or from the common initial
    weights for parts that the download did not contain. With error feedback (Karimireddy et al., arXiv 1901.09847) the
    node keeps the rounding error and adds it to its next upload, however much later. The sum of all received updates
    then equals the sum of the exact ones, except for the last error.

    Downloads: the parent encodes the weights as the difference from the common initial weights. What all children
    receive alike, such as the backbone, is rounded alike. It adds the received differences to the exact weights that it
    sent, not to the rounded ones. Download rounding is therefore never averaged into the model, and downloads need no
    error feedback, unlike those of a server that sends only updates (DoubleSqueeze, Tang et al., arXiv 1905.05957).

    Residuals are encoded as the difference from the common initial keys and values. Token counts and metrics are not
    compressed. Error feedback keeps one more model per sender, in float32, in memory and in checkpoints.

    Args:
        down: Encoding of downloads: `none`, `bf16` or `int8`.
        up: Encoding of uploads: the same choices.
        error_feedback: Whether each upload includes the rounding error of the node's previous one.

    Raises:
        ValueError: If an encoding does not exist, no part of the model travels, `Compression` is listed twice, or
            weights that already have 2 bytes would be sent in 2.
    """

    memory_schema = _Memory

    def __init__(self, down: Encoding = "bf16", up: Encoding = "int8", error_feedback: bool = True) -> None:
        for name, encoding in (("down", down), ("up", up)):
            check_choice(name, encoding, get_args(Encoding))
        self.down: Encoding = down
        self.up: Encoding = up
        self.error_feedback = error_feedback

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if sum(isinstance(other, Compression) for other in callbacks) > 1:
            raise ValueError("trainer.callbacks lists Compression more than once; weights would be rounded twice")
        if not topology.root.children:
            raise ValueError(f"Compression has no effect: {topology.name} has one node, which sends no messages")
        if not any(other.parts for other in callbacks):
            raise ValueError("Compression has no effect: no other callback sends a part of the model")

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        dtypes = {value.dtype for value in pl_module.parameters()}
        for name, encoding in (("down", self.down), ("up", self.up)):
            if encoding == "bf16" and dtypes <= {torch.bfloat16, torch.float16}:
                names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
                raise ValueError(f"Compression: {name} is bf16, but {names} weights already have 2 bytes; use int8")

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for child, parent in changes.parted:
            states[parent].memory.get(self.state_key, {}).get("sent", {}).pop(child, None)
        for name in changes.moved:  # the error belongs to uploads to the former parent
            states[name].memory.get(self.state_key, {}).pop("error", None)

    # ------------------------------------------------------------------ both ways

    def on_send(self, context: Context, receiver: Node, message: MessageT) -> MessageT:
        if self.down == self.up == "none":
            return message
        if isinstance(message, Upload):
            return self._send_up(context, message)
        return self._send_down(context, receiver, message)

    def on_unpack(self, context: Context, sender: Node, message: MessageT) -> MessageT:
        is_upload, known = isinstance(message, Upload), dict(context.world.reference)
        if self.down == self.up == "none" or (self.down == "none" and not is_upload):
            return message
        if is_upload:
            known |= self._sent(context, sender)
        like = context.state.parameters
        parts = {part: restore(decode(tensors), known, like) for part, tensors in message.parts.items()}
        encoding = self.up if is_upload else self.down
        residuals = tuple(_unpack(context, residual, encoding) for residual in message.residuals)
        return replace(message, parts=parts, residuals=residuals)

    # ------------------------------------------------------------------ down

    def _sent(self, context: Context, child: Node) -> Tensors:
        """Remove and return the weights that a child's upload is the difference from."""
        sent: dict[str, Tensors] = self.memory(context.state).get("sent", {})
        if child.name not in sent:
            raise ValueError(
                f"{context.node.name} sent its weights to {child.name} without Compression; add Compression only when "
                "you resume from a checkpoint of the end of a round"
            )
        return sent.pop(child.name)

    def _send_down(self, context: Context, child: Node, download: Download) -> Download:
        if not child.listens:  # the child's upload will be the difference from these weights
            self.memory(context.state).setdefault("sent", {})[child.name] = joined(download.parts)
        if self.down == "none":
            return download
        generator = _generator(context, "download rounding")  # not of the child: equal weights get equal rounding
        parts = {
            part: encode(difference(tensors, context.world.reference), self.down, generator)
            for part, tensors in download.parts.items()
        }
        generator = _generator(context, f"residual rounding {child.name}")
        residuals = tuple(_pack(context, residual, self.down, generator) for residual in download.residuals)
        return replace(download, parts=parts, residuals=residuals)

    # ------------------------------------------------------------------ up

    def packed_bytes(self, context: Context, receiver: Node, message: Upload, num_bytes: int) -> int:
        packed = [
            *message.parts.values(),
            *(part for residual in message.residuals for part in (residual.keys, residual.values)),
        ]
        tensors = [tensor for named in packed for tensor in named.values()]
        return num_bytes - encoded_bytes(tensors, "none") + encoded_bytes(tensors, self.up)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        memory = context.state.memory.get(self.state_key, {})
        memory.pop("sent", None)  # children without an upload missed this sub-round

    def _send_up(self, context: Context, upload: Upload) -> Upload:
        assert context.state.download is not None, "a participant has received a download"
        known = {**context.world.reference, **joined(context.state.download.parts)}
        generator = _generator(context, "upload rounding")
        parts = {
            part: self._encode_update(context, tensors, known, generator) for part, tensors in upload.parts.items()
        }
        residuals = tuple(_pack(context, residual, self.up, generator) for residual in upload.residuals)
        return replace(upload, parts=parts, residuals=residuals)

    def _encode_update(self, context: Context, tensors: Tensors, known: Tensors, generator: Generator) -> Tensors:
        update = difference(tensors, known)
        if self.up == "none":
            return {name: tensor.to(tensors[name].dtype) for name, tensor in update.items()}
        if not self.error_feedback:
            return encode(update, self.up, generator)
        errors = self.memory(context.state).setdefault("error", {})
        encoded, new_errors = encode_with_feedback(update, errors, self.up, generator)
        errors.update(new_errors)
        return encoded


def _pack(context: Context, residual: Residual, encoding: Encoding, generator: Generator) -> Residual:
    if encoding == "none":
        return residual
    known = context.world.reference
    keys, values = (encode(difference(part, known), encoding, generator) for part in (residual.keys, residual.values))
    return replace(residual, keys=keys, values=values)


def _unpack(context: Context, residual: Residual, encoding: Encoding) -> Residual:
    if encoding == "none":
        return residual
    known, like = context.world.reference, context.state.parameters
    keys, values = (restore(decode(part), known, like) for part in (residual.keys, residual.values))
    return replace(residual, keys=keys, values=values)


def _generator(context: Context, purpose: str) -> Generator:
    return torch.Generator().manual_seed(context.seed(purpose))
