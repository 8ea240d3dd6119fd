"""Where nodes are kept while they wait: in memory, on disk, or on the device that trains them."""

from worldlm.storage.paged_store import Paging

__all__ = ["Paging"]
