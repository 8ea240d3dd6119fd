"""Storage of waiting nodes: in host memory, on disk, or on the device that trains them."""

from worldlm.storage.paged_store import Paging

__all__ = ["Paging"]
