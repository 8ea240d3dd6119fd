"""Nodes that exchange messages over gRPC with mutual TLS, and callers who may not."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from identities import admit, create_identities, create_identity, free_port
from in_child import in_child
from organisations_at_home import of_node

from worldlm.callbacks import LastCheckpoint
from worldlm.callbacks.organisation_network import OrganisationNetwork
from worldlm.organisations.agreement import differences
from worldlm.organisations.certificates import host_of
from worldlm.organisations.identity import Identity
from worldlm.organisations.link import Link
from worldlm.organisations.mailbox import Mailbox
from worldlm.organisations.organisation import Organisation
from worldlm.organisations.server import Server
from worldlm.organisations.wire import OPTIONS, SERVICE, pack, pieces
from worldlm.rounds.transport import MessageKey
from worldlm.topology import Topology

Make = Callable[..., Any]


def test_a_tree_over_the_network_equals_one_process(
    busy_tree: Topology,
    at_home: Make,
    one_node: Make,
    fit: Make,
    whole_method: Make,
    snapshot: Make,
    differences: Make,
    tmp_path: Path,
) -> None:
    whole = snapshot(fit(busy_tree, whole_method()))
    identities = create_identities(tmp_path / "identities", busy_tree)
    ports = {name: free_port() for name, node in busy_tree.nodes.items() if node.children}

    def job(organisation: Organisation, folder: Path) -> Any:
        node, parent = busy_tree.nodes[organisation.node], busy_tree.parent(organisation.node)
        network = OrganisationNetwork(
            identities[node.name],
            listen=f"127.0.0.1:{ports[node.name]}" if node.children else None,
            parent=f"127.0.0.1:{ports[parent.name]}" if parent else None,
        )
        return one_node(busy_tree, lambda: [*whole_method(), LastCheckpoint(), network])(organisation, folder)

    apart = at_home(busy_tree, job, carried=False)
    for name, found in apart.items():
        expected = of_node(whole, name)
        for state in (found["state"], expected["state"]):
            state["memory"].pop("NodeMetrics", None)  # a federation has no text of its own to measure
        assert differences(found, expected) == [], name


def test_differences_between_agreements_are_named() -> None:
    ours = {"the number of rounds": "3", "the tokenizer": "x" * 500}
    assert differences(ours, dict(ours), "world", "a") == []
    assert differences(ours, {**ours, "the number of rounds": "4"}, "world", "a") == [
        "world and a differ in the number of rounds: 3 and 4"
    ]
    assert differences(ours, {**ours, "more": "1"}, "world", "a") == ["world and a differ in more: nothing and 1"]
    assert differences(ours, [], "world", "a") == ["a sent no agreement"]
    assert len(differences(ours, {str(i): 1 for i in range(1000)}, "world", "a")) == 20


# ---------------------------------------------------------------------- callers


class Caller:
    """Calls the server of `world` with any certificate."""

    def __init__(self, port: int, authority: bytes, key: bytes | None, certificate: bytes | None) -> None:
        credentials = grpc.ssl_channel_credentials(authority, key, certificate)
        options = (*OPTIONS, ("grpc.ssl_target_name_override", host_of("world")))
        self.channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)

    def hello(self, content: bytes = b"{}") -> str:
        return self._status(lambda: self.channel.unary_unary(f"/{SERVICE}/Hello")(content, timeout=5.0))

    def put(self, sent: Iterator[bytes], timeout: float = 5.0) -> str:
        return self._status(lambda: self.channel.stream_unary(f"/{SERVICE}/Put")(sent, timeout=timeout))

    def call(self, name: str) -> str:
        return self._status(lambda: self.channel.unary_unary(f"/{SERVICE}/{name}")(b"{}", timeout=5.0))

    @staticmethod
    def _status(call: Callable[[], Any]) -> str:
        try:
            call()
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return "OK"


class Scene:
    """The server of `world`, and its children `a` and `b`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.world, self.a, self.b = (create_identity(folder, name) for name in ("world", "a", "b"))
        admit(self.world, self.a)
        admit(self.world, self.b)
        self.mailboxes = {name: Mailbox(folder / "mail" / name, name) for name in ("a", "b")}
        self.server = Server("127.0.0.1:0", self.world, self.mailboxes, {"rounds": "3"}, max_bytes=10_000_000)

    def caller(self, identity: Identity | None, authority: bytes | None = None) -> Caller:
        trusted = authority or self.world.server_certificates()[2]
        if identity is None:
            return Caller(self.server.port, trusted, None, None)
        return Caller(self.server.port, trusted, identity.key, identity.certificates()[0])

    def pieces(self, name: str) -> Iterator[bytes]:
        """Return a message as it travels."""
        path = self.folder / "message"
        torch.save(True, path)
        return pieces(name, path, hashlib.sha256(path.read_bytes()).hexdigest())

    def received(self, child: str) -> list[str]:
        return sorted(path.name for path in (self.folder / "mail" / child / "received").iterdir())


def on_scene(folder: Path, act: Callable[[Scene], Any]) -> Any:
    """Return what a function observes on a scene, in a process of its own."""

    def run() -> Any:
        scene = Scene(folder)
        try:
            return act(scene)
        finally:
            scene.server.stop()

    return in_child(run)


def test_a_child_with_its_certificate(tmp_path: Path) -> None:
    def act(scene: Scene) -> Any:
        caller = scene.caller(scene.a)
        hello, put = caller.hello(), caller.put(scene.pieces("0.0.ready"))
        return hello, put, scene.received("a"), scene.received("b"), list(scene.server.last_seen())

    assert on_scene(tmp_path, act) == ("OK", "OK", ["0.0.ready"], [], ["a"])


def test_callers_without_the_right_certificate(tmp_path: Path) -> None:
    def act(scene: Scene) -> dict[str, str]:
        stranger = create_identity(tmp_path, "stranger")
        other_world = create_identity(tmp_path / "other", "world")
        false_a = create_identity(tmp_path / "other", "a")
        admit(other_world, false_a)
        admit(scene.world, stranger)
        renamed = scene.caller(scene.a)
        old = scene.caller(scene.b)
        found = {
            "no certificate": scene.caller(None).hello(),
            "of another authority": scene.caller(false_a).hello(),
            "no child": scene.caller(stranger).hello(),
            "before": renamed.hello(),
        }
        admit(scene.world, scene.b)
        found["replaced"] = old.hello()
        scene.world.revoke("a")
        found["revoked"] = renamed.hello()
        found["a parent that is no parent"] = scene.caller(scene.b, other_world.server_certificates()[2]).hello()
        return found

    found = on_scene(tmp_path, act)
    assert found["before"] == "OK"
    for case in ("no certificate", "of another authority", "a parent that is no parent"):
        assert found[case].startswith("UNAVAILABLE"), case  # TLS ends the connection
    assert found["no child"] == "PERMISSION_DENIED: 'stranger' is no child of world"
    for case, child in (("replaced", "b"), ("revoked", "a")):
        assert found[case].startswith(f"PERMISSION_DENIED: the certificate of {child} was revoked or replaced"), case


def test_a_child_that_is_revoked_while_it_waits_receives_nothing(tmp_path: Path) -> None:
    def act(scene: Scene) -> list[str]:
        caller, found = scene.caller(scene.a), []

        def fetch() -> None:
            found.append(Caller._status(lambda: [*caller.channel.unary_stream(f"/{SERVICE}/Get")(b"{}", timeout=5.0)]))

        waiting = threading.Thread(target=fetch)
        waiting.start()
        while not scene.server.last_seen():
            time.sleep(0.01)
        scene.world.revoke("a")
        scene.mailboxes["a"].send(MessageKey(child="a", kind="down", round=0, subround=0), {})
        waiting.join()
        return [*found, *scene.mailboxes["a"].undelivered()]

    status, undelivered = on_scene(tmp_path, act)
    assert status.startswith("PERMISSION_DENIED: the certificate of a was revoked or replaced"), status
    assert undelivered == "0.0.down"


def test_an_expired_certificate(tmp_path: Path) -> None:
    def act(scene: Scene) -> str:
        authority, key = scene.world._authority()
        own = x509.load_pem_x509_certificate(scene.a.certificates()[0])
        builder = (
            x509.CertificateBuilder(own.issuer, own.subject, own.public_key(), own.serial_number)
            .not_valid_before(authority.not_valid_before_utc)
            .not_valid_after(authority.not_valid_before_utc.replace(microsecond=1))
        )
        for extension in own.extensions:
            builder = builder.add_extension(extension.value, extension.critical)
        expired = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (scene.world.folder / "admitted" / "a.pem").write_bytes(expired)
        return Caller(scene.server.port, scene.world.server_certificates()[2], scene.a.key, expired).hello()

    assert on_scene(tmp_path, act).startswith("UNAVAILABLE")


def test_a_child_cannot_serve_its_siblings(tmp_path: Path) -> None:
    """A server that shows the certificate of a child is no parent, though the same authority has signed it."""

    def act(scene: Scene) -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        credentials = grpc.ssl_server_credentials([(scene.a.key, scene.a.certificates()[0])])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        try:
            return Caller(port, scene.b.certificates()[1], scene.b.key, scene.b.certificates()[0]).hello()
        finally:
            server.stop(None)

    assert on_scene(tmp_path, act).startswith("UNAVAILABLE")


def test_a_child_does_not_wait_for_a_stranger(tmp_path: Path) -> None:
    """What answers at the parent's address is another program, and will not become the parent."""

    def act(scene: Scene) -> list[str]:
        other = create_identity(tmp_path / "other", "world")
        impostor = Server("127.0.0.1:0", other, {"a": scene.mailboxes["a"]}, {}, max_bytes=10_000)
        web = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
        threading.Thread(target=web.serve_forever, daemon=True).start()
        found = []
        for port, parent in ((impostor.port, "world"), (web.server_port, "world"), (scene.server.port, "north")):
            link = Link(f"127.0.0.1:{port}", parent, scene.a, scene.mailboxes["a"], {}, max_bytes=10_000)
            with pytest.raises(ValueError, match="what answers at") as error:
                link.start(lambda: False)
            found.append(str(error.value).partition(" ")[2].partition(str(port))[2])
        return found

    assert on_scene(tmp_path, act) == [
        " has no certificate of the authority that has admitted this node",
        " is no worldlm serve",
        " is another node than north",
    ]


def test_a_parent_cannot_fill_the_disk_of_a_child(tmp_path: Path) -> None:
    """It sends a model only when the child is ready for it; that nothing is sent to the child may come earlier."""

    def act(scene: Scene) -> list[list[str]]:
        for round, content in ((0, None), (1, torch.zeros(400_000))):
            scene.mailboxes["a"].send(MessageKey(child="a", kind="down", round=round, subround=0), content)
        mailbox = Mailbox(tmp_path / "child", "a")
        link = Link(f"127.0.0.1:{scene.server.port}", "world", scene.a, mailbox, {"rounds": "3"}, max_bytes=10_000_000)
        link.start(lambda: False)
        stored = []
        for ready in (False, True):
            if ready:
                mailbox.send(MessageKey(child="a", kind="ready", round=1, subround=0), True)
            time.sleep(1.0)
            stored.append(sorted(mailbox.stored().received))
        link.stop()
        return stored

    assert on_scene(tmp_path, act) == [["0.0.down"], ["0.0.down", "1.0.down"]]


def test_messages_that_are_not_as_agreed(tmp_path: Path) -> None:
    def act(scene: Scene) -> dict[str, str]:
        caller, good = scene.caller(scene.a), list(scene.pieces("0.0.up"))
        for round in (0, 1):
            scene.mailboxes["a"].send(MessageKey(child="a", kind="down", round=round, subround=0), None)
        head = {"name": "1.0.up", "size": 4, "sha256": "0" * 64}
        cases: dict[str, list[bytes]] = {
            "10 GB": [pack({**head, "size": 10**10})],
            "negative": [pack({**head, "size": -1})],
            "longer than announced": [pack(head), b"12345"],
            "shorter than announced": [pack(head), b"123"],
            "damaged": [pack(head), b"1234"],
            "a download": [pack({**head, "name": "1.0.down"}), b"1234"],
            "another folder": [pack({**head, "name": "../../x"}), b"1234"],
            "no header": [b"\x80\x04evil"],
            "a list": [b"[]"],
            "nested": [b"[" * 100_000],
            "nothing": [],
            "more than yes or no": [pack({**head, "name": "1.0.ready", "size": 9_999_999})],
        }
        found = {case: caller.put(iter(sent)) for case, sent in cases.items()}
        found["hello"] = caller.hello(b"\xff")
        found["no such call"] = caller.call("Execute")
        found["good"] = caller.put(iter(good))
        found["replayed"] = caller.put(iter(good))
        found["too early"] = caller.put(scene.pieces("2.0.up"))
        found["received"] = str(scene.received("a"))
        found["elsewhere"] = str([path.name for path in tmp_path.rglob("x")])
        return found

    found = on_scene(tmp_path, act)
    assert found.pop("received") == "['0.0.up']"
    assert found.pop("elsewhere") == "[]"
    assert found.pop("too early") == "UNAVAILABLE: a sends 2.0.up before it has received 2.0.down"
    assert found.pop("no such call").startswith("UNIMPLEMENTED")
    assert [found.pop("good"), found.pop("replayed")] == ["OK", "OK"]
    for case, status in found.items():
        assert status.startswith("INVALID_ARGUMENT"), (case, status)


def test_a_slow_child_does_not_keep_the_others_out(tmp_path: Path) -> None:
    def act(scene: Scene) -> Any:
        slow, other = scene.caller(scene.a), scene.caller(scene.b)
        scene.mailboxes["a"].send(MessageKey(child="a", kind="down", round=0, subround=0), None)

        def one_byte_at_a_time() -> Iterator[bytes]:
            yield pack({"name": "0.0.up", "size": 5_000, "sha256": "0" * 64})
            while True:
                time.sleep(0.1)
                yield b"x"

        calls = [slow.channel.stream_unary(f"/{SERVICE}/Put").future(one_byte_at_a_time()) for _ in range(20)]
        time.sleep(0.5)
        served = [other.hello() for _ in range(5)]
        refused = [call.code().name for call in calls if call.done()]
        for call in calls:
            call.cancel()
        return served, sorted(set(refused)), len(refused)

    served, refused, number = on_scene(tmp_path, act)
    assert served == ["OK"] * 5
    assert refused == ["RESOURCE_EXHAUSTED"]
    assert number == 16
