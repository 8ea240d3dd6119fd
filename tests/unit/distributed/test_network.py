"""The choice of the network interface, and the probes of connections."""

from __future__ import annotations

import socket
import sys

import pytest

from worldlm.distributed import network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


@pytest.mark.parametrize(
    ("addresses", "interface"),
    [
        ({"lo": "127.0.0.1", "eth0": "10.0.0.5"}, "eth0"),
        ({"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"}, None),
        ({"lo": "127.0.0.1"}, None),
    ],
)
def test_a_machine_name_that_resolves_to_the_loopback(
    addresses: dict[str, str], interface: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian gives a machine's own name the address 127.0.1.1, where no other machine can reach it."""
    monkeypatch.setattr(network, "_addresses", lambda probe: addresses)
    assert network.interface_towards("127.0.1.1") == interface


def test_the_interface_that_has_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Probe(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return "10.1.0.5", 1

    monkeypatch.setattr(network.socket, "socket", Probe)
    addresses = {"lo": "127.0.0.1", "eth0": "10.0.0.5", "ib0": "10.1.0.5"}
    monkeypatch.setattr(network, "_addresses", lambda probe: addresses)
    assert network.interface_towards("127.0.0.1") == "ib0"
    addresses.pop("ib0")
    assert network.interface_towards("127.0.0.1") is None


def test_the_loopback_is_found() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        assert "127.0.0.1" in network._addresses(probe).values()


def test_only_connections_are_probed() -> None:
    before = network.probe_connections()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        other, _ = server.accept()
        with other:
            assert network.probe_connections() == before + 2
            for probed in (client, other):
                assert probed.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
                assert [probed.getsockopt(socket.IPPROTO_TCP, name) for name in options] == [60, 20, 6]
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
            client.sendall(b"still open")
            assert other.recv(10) == b"still open"
    assert network.probe_connections() == before
