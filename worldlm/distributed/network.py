"""The network between the machines of a run: which interface they use, and how a lost machine is detected."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator

SECONDS_TO_FIRST_PROBE, SECONDS_BETWEEN_PROBES, NUM_PROBES = 60, 20, 6
"""A machine that answers none of these probes is lost: three minutes after its last answer."""

_OPEN_FILES = "/proc/self/fd"
_READ_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
_ANY_PORT = 9  # nothing is sent there


def interface_towards(address: str) -> str | None:
    """Name the network interface through which this machine reaches another, or is reached by the others.

    By default gloo uses the interface that belongs to the machine's own name, which is often the loopback.

    Args:
        address: Name or address of the other machine, or of this one.

    Returns:
        None if the interface is unknown: on systems other than Linux, without IPv4, or with several candidates.
    """
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _ANY_PORT))
            local, addresses = probe.getsockname()[0], _addresses(probe)
    except OSError:
        return None
    outward = [name for name, ip in addresses.items() if not ip.startswith("127.")]
    if local.startswith("127."):  # this machine's name resolves to a loopback address
        return outward[0] if len(outward) == 1 else None
    return next((name for name in outward if addresses[name] == local), None)


def loopback_interface() -> str | None:
    """Name the network interface that reaches only this machine; None on systems other than Linux."""
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            return next((name for name, ip in _addresses(probe).items() if ip == "127.0.0.1"), None)
    except OSError:
        return None


def _addresses(probe: socket.socket) -> dict[str, str]:
    """Return the IPv4 address of every interface that has one."""
    import fcntl

    addresses = {}
    for _, name in socket.if_nameindex():
        try:
            answer = fcntl.ioctl(probe.fileno(), _READ_ADDRESS, struct.pack("256s", name.encode()[:15]))
        except OSError:
            continue
        addresses[name] = socket.inet_ntoa(answer[20:24])
    return addresses


def probe_connections() -> int:
    """Enable TCP keepalive probes on all connections of this process.

    A machine that loses its power or its network does not close its connections, and a process that waits for it would
    wait for ever. The operating system of the other machine answers probes even if its process is busy.

    Returns:
        The number of probed connections; 0 on systems other than Linux.
    """
    number = 0
    for connection in _connections():
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SECONDS_TO_FIRST_PROBE)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SECONDS_BETWEEN_PROBES)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, NUM_PROBES)
            number += 1
    return number


def _connections() -> Iterator[socket.socket]:
    """Yield the TCP connections of this process, whichever library opened them. The caller closes these duplicates."""
    for name in os.listdir(_OPEN_FILES) if os.path.isdir(_OPEN_FILES) else ():
        try:
            if not stat.S_ISSOCK(os.stat(f"{_OPEN_FILES}/{name}").st_mode):
                continue
            duplicate = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        try:
            is_tcp = duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM
            duplicate.getpeername()
        except OSError:  # a listening socket
            is_tcp = False
        if is_tcp:
            yield duplicate
        else:
            duplicate.close()
