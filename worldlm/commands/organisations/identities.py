"""`worldlm organisations`: the keys and certificates of a node, and who may connect to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from worldlm.cli.parser import Parser
from worldlm.files.atomic_write import write_bytes
from worldlm.organisations.audit import Audit
from worldlm.organisations.certificates import fingerprint
from worldlm.organisations.identity import Identity
from worldlm.organisations.status import STATUS, Status
from worldlm.topology.errors import UserError, suggest

IDENTITY = "identity"
"""Folder of keys and certificates in the folder of a node."""

AUDIT = "sent.jsonl"
"""Record of what the node has sent, in its folder."""

LOCK = ".lock"
"""Held by the program that runs the node, in its folder."""

_USAGE = """\
worldlm organisations keys --node NAME                  create the keys of a node, in the folder NAME
       worldlm organisations admit REQUEST --home FOLDER       at the parent: sign a child's request
       worldlm organisations accept CERTIFICATE --home FOLDER  at the child: store the parent's answer
       worldlm organisations revoke CHILD --home FOLDER        at the parent: let a child connect no more
       worldlm organisations show --home FOLDER                print the node's name and whom it has admitted
       worldlm organisations status --home FOLDER              print what the node is doing, and who is connected
       worldlm organisations sent --home FOLDER                print what the node has sent, and to whom"""


def organisations(arguments: Sequence[str]) -> int:
    """Run `worldlm organisations`.

    Args:
        arguments: The words after the command.

    Returns:
        The exit status.

    Raises:
        UserError: If the arguments are wrong, or a file is not what it should be.
    """
    if arguments and arguments[0] not in (*_ACTIONS, "-h", "--help"):
        hint = suggest(arguments[0], list(_ACTIONS))
        raise UserError([f"organisations: no action {arguments[0]!r}; there are {', '.join(_ACTIONS)}{hint}"])
    given = _parser().parse_args(arguments)
    needs = {"admit": "the child's request.csr", "accept": "the parent's answer", "revoke": "a child"}
    if given.action in needs and given.what is None:
        raise UserError([f"organisations {given.action} needs {needs[given.action]}"])
    if given.home is None and given.node is None:
        option = "--node NAME" if given.action == "keys" else "--home FOLDER"
        raise UserError([f"organisations {given.action} needs {option}"])
    home: Path = given.home or Path(given.node)
    _ACTIONS[given.action](Identity(home / IDENTITY), given.node, given.what)
    return 0


def _parser() -> Parser:
    parser = Parser("worldlm organisations", usage=_USAGE)
    parser.add_argument("action", choices=[*_ACTIONS])
    parser.add_argument("what", nargs="?", metavar="FILE_OR_NODE", help="a request, a certificate, or a child")
    parser.add_argument("--node", help="name of the node in the topology")
    parser.add_argument("--home", type=Path, help="folder of the node; by default its name")
    return parser


def _keys(identity: Identity, node: str | None, _: str | None) -> None:
    if node is None:
        raise UserError(["organisations keys needs --node NAME, the name of the node in the topology"])
    identity.create(node)
    request = identity.folder / "request.csr"
    print(f"created the keys of {node} in {identity.folder}; keep this folder to yourself")
    print(f"fingerprint of the request: {fingerprint(request.read_bytes())}")
    print(f"done. unless {node} is the root, send {request} to its parent")


def _admit(identity: Identity, _: str | None, request: str | None) -> None:
    assert request is not None, "checked before"
    child, answer = identity.admit(Path(request))
    path = identity.folder.parent / f"{child}.pem"
    write_bytes(path, answer)
    print(f"fingerprint of the request: {fingerprint(Path(request).read_bytes())}")
    print(f"compare it with what {child} sees, by phone for example, before {child} sends anything that matters")
    print(f"done. {identity.node} has admitted {child}: send {path} back to it")


def _accept(identity: Identity, _: str | None, certificate: str | None) -> None:
    assert certificate is not None, "checked before"
    authority = identity.accept(Path(certificate))
    print(f"done. {identity.node} was admitted by the {authority}")


def _revoke(identity: Identity, _: str | None, child: str | None) -> None:
    assert child is not None, "checked before"
    identity.revoke(child)
    print(f"done. {child} can no longer connect to {identity.node}; a running server rejects its next call")


def _show(identity: Identity, _: str | None, __: str | None) -> None:
    print(f"node: {identity.node}")
    for child in identity.admitted():
        print(f"admitted: {child}, {fingerprint((identity.folder / 'admitted' / f'{child}.pem').read_bytes())}")
    if not identity.admitted():
        print("admitted: none")
    print(f"done. keys and certificates: {identity.folder}")


def _status(identity: Identity, _: str | None, __: str | None) -> None:
    home, node = identity.folder.parent, identity.node
    status, lock = Status.read(home / STATUS), FileLock(home / LOCK)
    try:
        lock.acquire(timeout=0)
        lock.release()
        print(f"{node} is not running{'' if status is None else '; when it stopped:'}")
    except Timeout:
        pass
    for line in () if status is None else status.lines(time.time()):
        print(line)
    print(f"done. this is from {home / STATUS}")


def _sent(identity: Identity, _: str | None, __: str | None) -> None:
    path, node = identity.folder.parent / AUDIT, identity.node  # which fails where there is no such folder
    totals: dict[str, list[int]] = {}
    for entry in Audit(path).entries():
        if "message" in entry:
            round_, subround, kind = str(entry["message"]).split(".")
            part = f", sub-round {int(subround) + 1}" if subround != "0" else ""
            what = f"round {int(round_) + 1}{part}: {_KINDS.get(kind, kind)} to {entry['to']}, {entry['bytes']:,} bytes"
            total = totals.setdefault(str(entry["to"]), [0, 0])
            total[0] += 1
            total[1] += int(entry["bytes"])
        else:
            spent = ", ".join(f"{kind} {entry[kind]:.2f}" for kind in ("epsilon", "example epsilon") if kind in entry)
            what = f"round {int(entry['round']) + 1}: ends at {spent}"
        print(f"{entry['time']} {what}")
    for neighbour, (number, size) in totals.items():
        print(f"{number:,} messages, {size:,} bytes to {neighbour}")
    print(f"done. all that {node} has sent, with the digest of each message: {path}")


_KINDS = {"ready": "whether it takes part", "down": "download", "up": "upload"}

_ACTIONS = {"keys": _keys, "admit": _admit, "accept": _accept, "revoke": _revoke, "show": _show, "status": _status,
            "sent": _sent}  # fmt: skip
