"""Checks of messages from other organisations, before anything uses them."""

from __future__ import annotations

from typing import Any

from worldlm.federation.messages import Download, Upload, download_from_state, upload_from_state
from worldlm.federation.type_checks import check_fields
from worldlm.rounds.transport import MessageKey
from worldlm.topology import Topology


def why_invalid(key: MessageKey, content: Any, topology: Topology) -> str:
    """Return why a message cannot be what its sender may send; empty if it can.

    Whether its tensors suit the model is checked where they are merged.

    Args:
        key: Identifies the message. The connection has authenticated its sender.
        content: What `read_message` returned.
        topology: The world that all organisations have agreed on.
    """
    if key.kind == "ready":
        return "" if isinstance(content, bool) else "it does not say whether the node takes part"
    if content is None:  # the node takes no part in this sub-round
        return ""
    try:
        message = download_from_state(content) if key.kind == "down" else upload_from_state(content)
        check_fields(message)
    except Exception as error:  # any, for the content may be anything
        return f"its fields are not those of a message: {type(error).__name__}: {str(error)[:200]}"
    if message.round != key.round:
        return f"it belongs to round {message.round + 1}"
    return _wrong_origin(key, message, topology)


def _wrong_origin(key: MessageKey, message: Download | Upload, topology: Topology) -> str:
    """Return which name in a message its sender may not use; empty if there is none."""
    if isinstance(message, Upload) and message.node != key.child:
        return f"it is in the name of {message.node[:100]!r}"
    below = {node.name for node in topology.nodes[key.child].walk()}
    for residual in message.residuals:
        if residual.origin not in below:
            return f"it has a residual of {residual.origin[:100]!r}, which is not below {key.child}"
        if residual.jurisdiction != topology.nodes[residual.origin].settings.jurisdiction:
            return f"it has a residual of {residual.origin} with another jurisdiction than in the topology"
        if residual.federation not in topology.nodes:
            return f"it has a residual from the unknown federation {residual.federation[:100]!r}"
    return ""
