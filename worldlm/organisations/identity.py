"""Keys and certificates: who a node is, and whom it knows.

Each federation is the certificate authority of its own children, and of nobody else. An organisation's folder has

- `key.pem`: the private key, and `seed`: the secret of its random draws; only their owner can read them;
- `request.csr`: what the parent signs;
- `certificate.pem`: what the parent returned: the node's certificate, and then that of the parent's authority;
- `authority.pem` and `authority.key.pem`: the authority of a federation; `admitted/CHILD.pem`: who may connect;
  `admitted/CHILD.revoked`: who no longer may.
"""

from __future__ import annotations

import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from worldlm.files.atomic_write import write_bytes, write_secret
from worldlm.organisations.certificates import (
    DAYS,
    builder,
    common_name,
    fingerprint,
    private_bytes,
    public_bytes,
    sign_for,
    subject_of,
    why_no_name,
)
from worldlm.topology.errors import UserError

_MAX_BYTES = 100_000
"""Size of a file of keys or certificates, which is a few kB."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The folder of an organisation's node, with its keys and certificates."""

    folder: Path

    # ------------------------------------------------------------------ the node

    @property
    def node(self) -> str:
        """Name of the node."""
        return common_name(x509.load_pem_x509_csr(self._read("request.csr")).subject)

    @property
    def key(self) -> bytes:
        """The private key, PEM."""
        return self._read_secret("key.pem")

    @property
    def seed(self) -> int:
        """The secret of all random draws of this node, from 0 to 2**63 - 1."""
        return int(self._read_secret("seed"))

    def create(self, node: str) -> None:
        """Create the keys of a node, and the request for its certificate.

        Raises:
            UserError: If there are keys already.
        """
        if problem := why_no_name(node):
            raise UserError([f"{node!r} cannot be the name of a node: {problem}"])
        if (self.folder / "key.pem").exists():
            raise UserError([f"{self.folder} has keys already: choose another folder, or delete it"])
        self.folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder.parent, self.folder):
            folder.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        request = x509.CertificateSigningRequestBuilder().subject_name(subject_of(node)).sign(key, hashes.SHA256())
        write_bytes(self.folder / "request.csr", request.public_bytes(serialization.Encoding.PEM))
        write_secret(self.folder / "seed", str(secrets.randbits(63)).encode())
        write_secret(self.folder / "key.pem", private_bytes(key))

    def certificates(self) -> tuple[bytes, bytes]:
        """Return the node's certificate and that of the parent's authority, PEM.

        Raises:
            UserError: If the parent has not admitted the node yet.
        """
        path = self.folder / "certificate.pem"
        if not path.exists():
            raise UserError(
                [f"{path} is missing: send {self.folder / 'request.csr'} to the parent, which answers with this file"]
            )
        own, authority = x509.load_pem_x509_certificates(self._read("certificate.pem"))
        return public_bytes(own), public_bytes(authority)

    def accept(self, answer: Path) -> str:
        """Store the answer of the parent, and return the name of its authority.

        Raises:
            UserError: If it does not belong to this node's key.
        """
        content = _read_small(answer)
        try:
            own, authority = x509.load_pem_x509_certificates(content)
        except ValueError as error:
            raise UserError([f"{answer} is not the answer of a parent: it must hold two certificates"]) from error
        request = x509.load_pem_x509_csr(self._read("request.csr"))
        if own.public_key() != request.public_key() or common_name(own.subject) != self.node:
            raise UserError([f"{answer} is for another node or another key than {self.node} in {self.folder}"])
        own.verify_directly_issued_by(authority)
        write_bytes(self.folder / "certificate.pem", content)
        return str(authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    # ------------------------------------------------------------------ a federation's authority

    def admit(self, request: Path) -> tuple[str, bytes]:
        """Sign the request of a child, which may connect from now on.

        Args:
            request: The child's `request.csr`.

        Returns:
            The child's name, and its `certificate.pem`.

        Raises:
            UserError: If the file is no valid request, has the name of this node, or a child of its name was admitted
                with another key.
        """
        try:
            signed = x509.load_pem_x509_csr(_read_small(request))
        except ValueError as error:
            is_answer = b"BEGIN CERTIFICATE-----" in _read_small(request)
            hint = "; it is the answer to one: accept it" if is_answer else ""
            raise UserError([f"{request} is not a certificate request{hint}"]) from error
        if not signed.is_signature_valid:
            raise UserError([f"{request} is not signed with its own key"])
        child = common_name(signed.subject)
        if child == self.node:
            raise UserError([f"{request} is the request of {child} itself: the parent of {child} admits it"])
        self._check_same_key(child, signed)
        authority, key = self._authority()
        certificate = sign_for(child, signed.public_key(), authority, key, ExtendedKeyUsageOID.CLIENT_AUTH)
        write_bytes(self.folder / "admitted" / f"{child}.pem", public_bytes(certificate))
        self._revoked(child).unlink(missing_ok=True)
        return child, public_bytes(certificate) + public_bytes(authority)

    def _check_same_key(self, child: str, request: x509.CertificateSigningRequest) -> None:
        if child not in self.admitted():
            return
        known = self._read(f"admitted/{child}.pem")
        if x509.load_pem_x509_certificate(known).public_key() != request.public_key():
            raise UserError(
                [f"{child} was admitted with another key ({fingerprint(known)}): if it has new keys, revoke it first"]
            )

    def revoke(self, child: str) -> None:
        """Forget a child, which can no longer connect.

        Raises:
            UserError: If it was not admitted.
        """
        path = self.folder / "admitted" / f"{child}.pem"
        if child not in self.admitted():
            raise UserError([f"{child} was not admitted; admitted are {', '.join(self.admitted()) or 'none'}"])
        self._revoked(child).touch()
        path.unlink()

    def is_revoked(self, child: str) -> bool:
        """Return whether a child was revoked, and not admitted again."""
        return self._revoked(child).exists()

    def _revoked(self, child: str) -> Path:
        return self.folder / "admitted" / f"{child}.revoked"

    def admitted(self) -> list[str]:
        """Return the names of the children that may connect."""
        return sorted(path.stem for path in (self.folder / "admitted").glob("*.pem"))

    def is_admitted(self, child: str, certificate: bytes) -> bool:
        """Return whether a child may connect with a certificate, PEM: only with the last one that it was given."""
        if child not in self.admitted():
            return False
        try:
            shown = x509.load_pem_x509_certificate(certificate)
        except ValueError:
            return False
        return shown == x509.load_pem_x509_certificate(self._read(f"admitted/{child}.pem"))

    def server_certificates(self) -> tuple[bytes, bytes, bytes]:
        """Return a new key, its certificate for the server of this node, and the authority's certificate, PEM."""
        authority, authority_key = self._authority()
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign_for(self.node, key.public_key(), authority, authority_key, ExtendedKeyUsageOID.SERVER_AUTH)
        return private_bytes(key), public_bytes(certificate), public_bytes(authority)

    def _authority(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        """Return the certificate and the key of this node's authority, which is created when it is first needed."""
        if not (self.folder / "authority.pem").exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = subject_of(f"authority of {self.node}")
            certificate = (
                builder(name, name, key.public_key(), 10 * DAYS)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .sign(key, hashes.SHA256())
            )
            write_secret(self.folder / "authority.key.pem", private_bytes(key))
            write_bytes(self.folder / "authority.pem", public_bytes(certificate))
        loaded = serialization.load_pem_private_key(self._read_secret("authority.key.pem"), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(self._read("authority.pem")), loaded

    # ------------------------------------------------------------------ files

    def _read(self, name: str) -> bytes:
        if not (self.folder / "key.pem").exists():
            raise UserError([f"{self.folder} has no keys: worldlm organisations keys --node NAME creates them"])
        return _read_small(self.folder / name)

    def _read_secret(self, name: str) -> bytes:
        content, facts = self._read(name), (self.folder / name).stat()
        if stat.S_IMODE(facts.st_mode) & 0o077:
            raise UserError([f"other users can read {self.folder / name}: chmod 600 it"])
        if os.name == "posix" and facts.st_uid != os.geteuid():
            raise UserError([f"{self.folder / name} belongs to another user, who can read it: chown it"])
        return content


def _read_small(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise UserError([f"{path} has more than {_MAX_BYTES} bytes, so it holds no certificate"])
    return content
