"""A server on this machine that responds like the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest


class FakeHub:
    """What the server holds, by `/OWNER/NAME/resolve/REVISION/FILE`, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.commit = ""  # of all files; by default each file has another
        self.status, self.code = 404, "EntryNotFound"  # of what it does not hold
        self.requests: list[str] = []

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        if path not in self.files:
            return self.status, {"X-Error-Code": self.code}, b""
        content = self.files[path]
        number = sha1(content).hexdigest()
        return 200, {"X-Repo-Commit": self.commit or number, "ETag": f'"{number}"'}, content


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Serve files in place of the Hub."""
    fake = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            fake.requests.append(f"{self.command} {self.path}")
            status, headers, content = fake.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        template = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield fake
        server.shutdown()
        thread.join()
