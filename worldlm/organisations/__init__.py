"""One node of a world, run by the organisation that owns its text."""

from worldlm.organisations.mailbox import Mailbox
from worldlm.organisations.organisation import Organisation

__all__ = ["Mailbox", "Organisation"]
