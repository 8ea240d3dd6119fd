"""The network between the machines of a run: by which interface they talk, and how one that is lost is noticed."""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator

SECONDS_TO_FIRST_PROBE, SECONDS_BETWEEN_PROBES, NUM_PROBES = 60, 20, 6
"""A machine that answers none of so many probes is lost, three minutes after it was last heard of."""

_OPEN_FILES = "/proc/self/fd"
_READ_ADDRESS = 0x8915  # SIOCGIFADDR of Linux
_ANY_PORT = 9  # nothing is sent there


def interface_towards(address: str) -> str | None:
    """Name the network interface by which this machine reaches another, or is reached if it is meant itself.

    gloo takes the one that the machine's own name belongs to, which is often the loopback alone.

    Args:
        address: Name or address of the other machine.

    Returns:
        None where it is not known: on another system than Linux, without IPv4, or with several to choose from.
    """
    if sys.platform != "linux":
        return None
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, _ANY_PORT))
            own, addresses = probe.getsockname()[0], _addresses(probe)
    except OSError:
        return None
    outward = [name for name, one in addresses.items() if not one.startswith("127.")]
    if own.startswith("127."):  # the machine's own name, written down as its loopback's
        return outward[0] if len(outward) == 1 else None
    return next((name for name in outward if addresses[name] == own), None)


def _addresses(probe: socket.socket) -> dict[str, str]:
    """Return the IPv4 address of every interface that has one."""
    import fcntl

    found = {}
    for _, name in socket.if_nameindex():
        try:
            answer = fcntl.ioctl(probe.fileno(), _READ_ADDRESS, struct.pack("256s", name.encode()[:15]))
        except OSError:
            continue
        found[name] = socket.inet_ntoa(answer[20:24])
    return found


def probe_connections() -> int:
    """Let the system probe whether the machines at the other ends of this process's connections are still there.

    A machine that lost its power or its network closes nothing: who waits for it would wait for ever. The other system
    answers probes by itself, however busy a process is.

    Returns:
        How many connections are probed; none on another system than Linux.
    """
    number = 0
    for one in _connections():
        with one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SECONDS_TO_FIRST_PROBE)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SECONDS_BETWEEN_PROBES)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, NUM_PROBES)
            number += 1
    return number


def _connections() -> Iterator[socket.socket]:
    """Find the TCP connections of this process, whichever library opened them; each is a duplicate, to be closed."""
    for name in os.listdir(_OPEN_FILES) if os.path.isdir(_OPEN_FILES) else ():
        try:
            if not stat.S_ISSOCK(os.stat(f"{_OPEN_FILES}/{name}").st_mode):
                continue
            one = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # closed meanwhile
            continue
        try:
            is_internet = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
            one.getpeername()
        except OSError:  # it listens
            is_internet = False
        if is_internet:
            yield one
        else:
            one.close()
