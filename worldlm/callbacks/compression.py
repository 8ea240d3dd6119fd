"""Fewer bytes on every edge: what travels is rounded by chance to bfloat16 or int8."""

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
from worldlm.trainer import FederationCallback, WorldTrainer


class _Memory(TypedDict, total=False):
    sent: dict[str, Tensors]
    error: Tensors


class Compression(FederationCallback):
    """Sends weights in 2 bytes or in one, rounded up or down by chance, without bias.

    Upward it is the difference to what the node was sent that is rounded (for parts that it was not sent, to the common
    initial weights), after all sanitising. With error feedback (Karimireddy et al., arXiv 1901.09847) the node keeps
    what rounding took away, and adds it to its next upload, whenever that is: all updates that ever arrived add up to
    all that were meant, but for the last error. Downward it is the weights, as their difference to the common initial
    ones for keys and values; all children are sent the same rounding. The parent adds the differences to its weights as
    they are, not as they were rounded for the children: no rounding of a download is averaged into a model that the
    children copied, and downloads need no error feedback, unlike those of a server that sends updates alone
    (DoubleSqueeze, Tang et al., arXiv 1905.05957). Residuals are rounded as their difference to the common initial
    keys and values.

    Counts of tokens and figures travel as they are. Error feedback keeps one model more, in float32, per sender in
    memory and in checkpoints.

    Args:
        down: Encoding of downloads: none, bf16, int8.
        up: Encoding of uploads.
        error_feedback: Whether uploads carry what rounding took from the node's last one.

    Raises:
        ValueError: If there is no such encoding, nothing travels, `Compression` is listed twice, or weights that have 2
            bytes would be sent in 2.
    """

    memory_schema = _Memory

    def __init__(self, down: Encoding = "bf16", up: Encoding = "int8", error_feedback: bool = True) -> None:
        for name, encoding in (("down", down), ("up", up)):
            if encoding not in get_args(Encoding):
                raise ValueError(f"{name} must be one of {', '.join(get_args(Encoding))}, got {encoding!r}")
        self.down: Encoding = down
        self.up: Encoding = up
        self.error_feedback = error_feedback

    def check_method(self, callbacks: Sequence[RoundCallback], topology: Topology) -> None:
        if sum(isinstance(other, Compression) for other in callbacks) > 1:
            raise ValueError("Compression is among trainer.callbacks more than once: it would round twice")
        if not topology.root.children:
            raise ValueError(f"Compression has nothing to do: {topology.name} is one node, which sends nothing")
        if not any(other.parts for other in callbacks):
            raise ValueError("Compression has nothing to do: no other callback lets a part of the model travel")

    def on_train_start(self, trainer: WorldTrainer, pl_module: LightningModule) -> None:  # type: ignore[override]
        kinds = {value.dtype for value in pl_module.parameters()}
        for name, encoding in (("down", self.down), ("up", self.up)):
            if encoding == "bf16" and kinds <= {torch.bfloat16, torch.float16}:
                kind = ", ".join(sorted(str(one).removeprefix("torch.") for one in kinds))
                raise ValueError(f"Compression: {name} is bf16, but weights of {kind} have 2 bytes already; use int8")

    def on_topology_change(self, world: World, changes: Changes, states: Mapping[str, NodeState]) -> None:
        for child, parent in changes.parted:
            states[parent].memory.get(self.state_key, {}).get("sent", {}).pop(child, None)
        for name in changes.moved:  # what rounding took from its uploads is owed to its former parent
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
        residuals = tuple(_unpack(context, one, encoding) for one in message.residuals)
        return replace(message, parts=parts, residuals=residuals)

    # ------------------------------------------------------------------ down

    def _sent(self, context: Context, child: Node) -> Tensors:
        """Return, and forget, what a child's upload is the difference to."""
        sent: dict[str, Tensors] = self.memory(context.state).get("sent", {})
        if child.name not in sent:
            raise ValueError(
                f"Compression was not there when {context.node.name} sent its weights to {child.name}: add it to a run "
                "that goes on from a checkpoint of the end of a round"
            )
        return sent.pop(child.name)

    def _send_down(self, context: Context, child: Node, download: Download) -> Download:
        if not child.listens:  # its upload will be the difference to this
            self.memory(context.state).setdefault("sent", {})[child.name] = joined(download.parts)
        if self.down == "none":
            return download
        generator = _generator(context, "download rounding")  # not of the child: all are sent the same
        parts = {
            part: encode(difference(tensors, context.world.reference), self.down, generator)
            for part, tensors in download.parts.items()
        }
        generator = _generator(context, f"residual rounding {child.name}")
        residuals = tuple(_pack(context, one, self.down, generator) for one in download.residuals)
        return replace(download, parts=parts, residuals=residuals)

    # ------------------------------------------------------------------ up

    def packed_bytes(self, context: Context, receiver: Node, message: Upload, num_bytes: int) -> int:
        packed = [
            *message.parts.values(),
            *(one for residual in message.residuals for one in (residual.keys, residual.values)),
        ]
        tensors = [tensor for named in packed for tensor in named.values()]
        return num_bytes - encoded_bytes(tensors, "none") + encoded_bytes(tensors, self.up)

    def on_aggregate(self, context: Context, uploads: list[Upload]) -> None:
        kept = context.state.memory.get(self.state_key, {})
        kept.pop("sent", None)  # whoever has not answered by now missed this sub-round

    def _send_up(self, context: Context, upload: Upload) -> Upload:
        assert context.state.download is not None, "who takes part was sent something"
        known = {**context.world.reference, **joined(context.state.download.parts)}
        generator = _generator(context, "upload rounding")
        parts = {
            part: self._encode_update(context, tensors, known, generator) for part, tensors in upload.parts.items()
        }
        residuals = tuple(_pack(context, one, self.up, generator) for one in upload.residuals)
        return replace(upload, parts=parts, residuals=residuals)

    def _encode_update(self, context: Context, tensors: Tensors, known: Tensors, generator: Generator) -> Tensors:
        update = difference(tensors, known)
        if self.up == "none":
            return {name: tensor.to(tensors[name].dtype) for name, tensor in update.items()}
        if not self.error_feedback:
            return encode(update, self.up, generator)
        errors = self.memory(context.state).setdefault("error", {})
        encoded, left = encode_with_feedback(update, errors, self.up, generator)
        errors.update(left)
        return encoded


def _pack(context: Context, residual: Residual, encoding: Encoding, generator: Generator) -> Residual:
    if encoding == "none":
        return residual
    known = context.world.reference
    keys, values = (encode(difference(one, known), encoding, generator) for one in (residual.keys, residual.values))
    return replace(residual, keys=keys, values=values)


def _unpack(context: Context, residual: Residual, encoding: Encoding) -> Residual:
    if encoding == "none":
        return residual
    known, like = context.world.reference, context.state.parameters
    keys, values = (restore(decode(one), known, like) for one in (residual.keys, residual.values))
    return replace(residual, keys=keys, values=values)


def _generator(context: Context, purpose: str) -> Generator:
    return torch.Generator().manual_seed(context.seed(purpose))
