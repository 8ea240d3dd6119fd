"""How messages travel between nodes, and what they weigh."""

from collections import Counter
from typing import Any, Protocol

from worldlm.federation.messages import (
    Download,
    Upload,
    download_from_state,
    message_state,
    upload_from_state,
)


class Exchange(Protocol):
    """Carries messages over the edges of the tree. An edge is named by its child."""

    bytes_down: Counter[str]
    """Bytes sent from parent to child, by child, since the run began."""
    bytes_up: Counter[str]
    """Bytes sent from child to parent, by child, since the run began."""

    def send_download(self, child: str, download: Download) -> None:
        """Send what a parent hands to a child."""

    def receive_download(self, child: str) -> Download:
        """Return the last download of a child; it stays until `receive_uploads` of the parent clears it."""

    def drop_download(self, child: str) -> None:
        """Forget the download of a child that sends nothing back."""

    def send_upload(self, parent: str, upload: Upload) -> None:
        """Send what a child hands to its parent."""

    def receive_uploads(self, parent: str) -> list[Upload]:
        """Take the uploads that wait at a parent, ordered by sender."""

    def state_dict(self) -> dict[str, Any]:
        """Return messages in flight and counters, as plain containers and tensors."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""


class InProcessExchange:
    """All nodes live in one process: a message is handed over, its tensors are not copied."""

    def __init__(self) -> None:
        self.bytes_down: Counter[str] = Counter()
        self.bytes_up: Counter[str] = Counter()
        self._downloads: dict[str, Download] = {}
        self._uploads: dict[str, dict[str, Upload]] = {}

    def send_download(self, child: str, download: Download) -> None:
        self.bytes_down[child] += download.num_bytes
        self._downloads[child] = download

    def receive_download(self, child: str) -> Download:
        return self._downloads[child]

    def drop_download(self, child: str) -> None:
        del self._downloads[child]

    def send_upload(self, parent: str, upload: Upload) -> None:
        self.bytes_up[upload.node] += upload.num_bytes
        self._uploads.setdefault(parent, {})[upload.node] = upload

    def receive_uploads(self, parent: str) -> list[Upload]:
        uploads = self._uploads.pop(parent, {})
        for child in uploads:
            self._downloads.pop(child, None)
        return [uploads[child] for child in sorted(uploads)]

    def state_dict(self) -> dict[str, Any]:
        return {
            "bytes_down": dict(self.bytes_down),
            "bytes_up": dict(self.bytes_up),
            "downloads": {child: message_state(one) for child, one in self._downloads.items()},
            "uploads": {
                parent: [message_state(one) for one in uploads.values()] for parent, uploads in self._uploads.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.bytes_down = Counter(state["bytes_down"])
        self.bytes_up = Counter(state["bytes_up"])
        self._downloads = {child: download_from_state(one) for child, one in state["downloads"].items()}
        self._uploads = {
            parent: {one["node"]: upload_from_state(one) for one in uploads}
            for parent, uploads in state["uploads"].items()
        }
