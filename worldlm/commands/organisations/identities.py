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
from worldlm.organisations.proposal_files import PROPOSAL, ProposalFiles, digest_of
from worldlm.organisations.status import STATUS, Status
from worldlm.topology import TopologyError, parse_topology
from worldlm.topology.errors import UserError, suggest
from worldlm.topology.reader import read_text

IDENTITY = "identity"
"""Folder of keys and certificates in the folder of a node."""

AUDIT = "sent.jsonl"
"""Record of what the node has sent, in its folder."""

MAIL = "mail"
"""Folder of the messages of all runs, in the folder of a node."""

CHANGES = "changes"
"""Folder of what is proposed, in the folder of the messages of a run."""

LOCK = ".lock"
"""Held by the program that runs the node, in its folder."""

_USAGE = """\
worldlm organisations keys --node NAME                  create the keys of a node, in the folder NAME
       worldlm organisations admit REQUEST --home FOLDER       at the parent: sign a child's request
       worldlm organisations accept CERTIFICATE --home FOLDER  at the child: store the parent's answer
       worldlm organisations revoke CHILD --home FOLDER        at the parent: let a child connect no more
       worldlm organisations show --home FOLDER                print the node's name and whom it has admitted
       worldlm organisations status --home FOLDER              print what the node is doing, and who is connected
       worldlm organisations propose TOPOLOGY --home FOLDER    at the root: propose to change the topology
       worldlm organisations proposal --home FOLDER            print what is proposed, and who has consented
       worldlm organisations consent --home FOLDER             consent to what is proposed
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
    needs = {
        "admit": "the child's request.csr",
        "accept": "the parent's answer",
        "revoke": "a child",
        "propose": "the file of a topology",
    }
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
    totals: dict[tuple[str, str], list[int]] = {}
    for entry in Audit(path).entries():
        if "message" in entry:
            round_, subround, kind = str(entry["message"]).split(".")
            part = f", sub-round {int(subround) + 1}" if subround != "0" else ""
            what = f"round {int(round_) + 1}{part}: {_KINDS.get(kind, kind)} to {entry['to']}, {entry['bytes']:,} bytes"
            total = totals.setdefault((str(entry["run"]), str(entry["to"])), [0, 0])
            total[0] += 1
            total[1] += int(entry["bytes"])
        else:
            spent = ", ".join(f"{kind} {entry[kind]:.2f}" for kind in ("epsilon", "example epsilon") if kind in entry)
            what = f"round {int(entry['round']) + 1}: ends at {spent}"
        print(f"{entry['time']} {entry['run']}, {what}")
    for (run, neighbour), (number, size) in totals.items():
        print(f"{run}: {number:,} messages, {size:,} bytes to {neighbour}")
    print(f"done. all that {node} has sent, with the digest of each message: {path}")


def _propose(identity: Identity, _: str | None, file: str | None) -> None:
    assert file is not None, "checked before"
    text = read_text(Path(file), TopologyError)
    topology, node = parse_topology(text, file), identity.node
    if topology.root.name != node:
        raise UserError([f"{file}: its root is {topology.root.name}; only the root proposes, and {node} is not"])
    files = _proposals(identity)
    files.propose(text)
    files.consent(text)
    print(f"done. {node} proposes {file}: worldlm organisations proposal prints who has consented")


def _proposal(identity: Identity, _: str | None, __: str | None) -> None:
    files = _proposals(identity)
    text, assessment = files.text, files.assessment
    if not text:
        print("done. nothing is proposed")
        return
    for line in assessment["lines"]:
        print(line)
    if assessment["problem"]:
        print(f"it cannot be used: {assessment['problem']}")
    if not assessment["of"]:
        print("it was not compared with the present topology yet: the program that runs the node does this")
    print(f"{identity.node}: {'consents' if files.has_consented(text) else 'has not consented yet'}")
    for child in assessment["children"]:
        agrees = files.of_child(child) == digest_of(text)
        print(f"{child}, and all below it: {'consents' if agrees else 'not yet'}")
    print(f"done. the proposed topology: {files.folder / PROPOSAL}")


def _consent(identity: Identity, _: str | None, __: str | None) -> None:
    files = _proposals(identity)
    if not files.text:
        raise UserError([f"nothing is proposed to {identity.node}"])
    for line in files.assessment["lines"]:
        print(line)
    files.consent(files.text)
    print(f"done. {identity.node} consents; the change is made when all others have consented too")


def _proposals(identity: Identity) -> ProposalFiles:
    """Return the folder of the proposals of a node's last run."""
    mail, node = identity.folder.parent / MAIL, identity.node
    runs = sorted(mail.glob("*/"), key=lambda folder: folder.stat().st_mtime)
    if not runs:
        raise UserError([f"{node} has not run yet: worldlm serve or join runs it"])
    return ProposalFiles(runs[-1] / CHANGES)


_KINDS = {"ready": "whether it takes part", "down": "download", "up": "upload", "change": "change of the topology"}

_ACTIONS = {
    "keys": _keys,
    "admit": _admit,
    "accept": _accept,
    "revoke": _revoke,
    "show": _show,
    "status": _status,
    "propose": _propose,
    "proposal": _proposal,
    "consent": _consent,
    "sent": _sent,
}
