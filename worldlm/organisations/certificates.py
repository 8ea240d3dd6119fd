"""X.509 certificates of nodes: how they are built, and the names in them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from worldlm.topology.checks import bad_name
from worldlm.topology.errors import UserError

DAYS = 365
"""How long a certificate is valid, in days."""

_MAX_CHARACTERS = 64
"""Length of a name in a certificate, by X.509."""


def fingerprint(certificate: bytes) -> str:
    """Return the SHA-256 fingerprint of a certificate or a request, PEM, which two people can compare by phone."""
    if b"CERTIFICATE REQUEST" in certificate:
        public = x509.load_pem_x509_csr(certificate).public_key()
    else:
        public = x509.load_pem_x509_certificate(certificate).public_key()
    encoded = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(encoded)
    text = digest.finalize().hex()
    return " ".join(text[i : i + 4] for i in range(0, 32, 4))


def sign_for(
    name: str,
    public_key: object,
    authority: x509.Certificate,
    key: ec.EllipticCurvePrivateKey,
    use: x509.ObjectIdentifier,
) -> x509.Certificate:
    """Return a certificate for a node's key, signed by an authority.

    Args:
        name: The node.
        public_key: Of the node.
        authority: The certificate of the authority.
        key: The private key of the authority.
        use: What the certificate may be used for: to call, or to serve.
    """
    return (
        builder(subject_of(name), authority.subject, public_key, DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host_of(name))]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([use]), critical=True)
        .sign(key, hashes.SHA256())
    )


def builder(subject: x509.Name, issuer: x509.Name, public_key: object, days: int) -> x509.CertificateBuilder:
    """Return the beginning of a certificate that is valid from now on, for a number of days."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
    )


def private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_bytes(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def host_of(node: str) -> str:
    """Return the name for which the certificate of a node is valid, whatever the address of its machine."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(node.encode())
    return f"{digest.finalize().hex()[:40]}.worldlm"


def subject_of(text: str) -> x509.Name:
    """Return the subject of the certificate of a node or an authority."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def common_name(subject: x509.Name) -> str:
    """Return the node's name in a certificate or a request.

    Raises:
        UserError: If it is not a name that a node can have.
    """
    found = [str(attribute.value) for attribute in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(found) != 1 or why_no_name(found[0]):
        raise UserError([f"it names {found[:2]}, which no node can be called"])
    return found[0]


def why_no_name(node: str) -> str:
    """Return why a text cannot be the name of a node with a certificate; empty if it can."""
    problem = bad_name(node)
    return problem or ("" if len(node) <= _MAX_CHARACTERS else f"must have at most {_MAX_CHARACTERS} characters")
