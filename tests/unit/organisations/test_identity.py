"""Keys, certificates, and who may connect."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from identities import answer_to, create_identity

from worldlm.organisations.certificates import fingerprint
from worldlm.organisations.identity import Identity
from worldlm.topology.errors import UserError


@pytest.fixture
def world(tmp_path: Path) -> Identity:
    return create_identity(tmp_path, "world")


def test_only_the_owner_can_read_secrets(tmp_path: Path, world: Identity) -> None:
    world.server_certificates()
    assert stat.S_IMODE(world.folder.stat().st_mode) == 0o700
    for name in ("key.pem", "seed", "authority.key.pem"):
        assert stat.S_IMODE((world.folder / name).stat().st_mode) == 0o600
    (world.folder / "seed").chmod(0o644)
    with pytest.raises(UserError, match="other users can read"):
        _ = world.seed


def test_every_node_has_another_seed(tmp_path: Path) -> None:
    seeds = {create_identity(tmp_path, f"node_{i}").seed for i in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_keys_are_not_overwritten(tmp_path: Path, world: Identity) -> None:
    with pytest.raises(UserError, match="has keys already"):
        world.create("world")


@pytest.mark.parametrize("node", ["", "../x", "a b", "a" * 65])
def test_names_that_no_node_can_have(node: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be the name of a node"):
        Identity(tmp_path / "x").create(node)


def test_a_child_is_admitted(tmp_path: Path, world: Identity) -> None:
    child = create_identity(tmp_path, "hospital_a")
    with pytest.raises(UserError, match=r"send .*request\.csr to the parent"):
        child.certificates()
    assert child.accept(answer_to(world, child)) == "authority of world"
    own, authority = child.certificates()
    assert authority == world.server_certificates()[2]
    assert world.admitted() == ["hospital_a"]
    assert world.is_admitted("hospital_a", own)
    assert fingerprint(own) == fingerprint((child.folder / "request.csr").read_bytes())


def test_a_revoked_or_replaced_certificate_is_not_admitted(tmp_path: Path, world: Identity) -> None:
    child = create_identity(tmp_path, "hospital_a")
    child.accept(answer_to(world, child))
    first, _ = child.certificates()
    child.accept(answer_to(world, child))
    second, _ = child.certificates()
    assert not world.is_admitted("hospital_a", first)
    assert world.is_admitted("hospital_a", second)
    assert not world.is_admitted("hospital_b", second)
    assert not world.is_admitted("hospital_a", b"no certificate")
    world.revoke("hospital_a")
    assert not world.is_admitted("hospital_a", second)
    assert world.is_revoked("hospital_a")
    with pytest.raises(UserError, match="was not admitted"):
        world.revoke("hospital_a")
    answer_to(world, child)
    assert not world.is_revoked("hospital_a")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_rejected(world: Identity) -> None:
    os.chown(world.folder / "seed", 12345, -1)
    with pytest.raises(UserError, match="belongs to another user"):
        _ = world.seed


def test_a_child_with_another_key_is_not_admitted_in_its_place(tmp_path: Path, world: Identity) -> None:
    child, false = create_identity(tmp_path, "hospital_a"), create_identity(tmp_path / "other", "hospital_a")
    child.accept(answer_to(world, child))
    with pytest.raises(UserError, match="hospital_a was admitted with another key"):
        answer_to(world, false)
    assert world.is_admitted("hospital_a", child.certificates()[0])
    world.revoke("hospital_a")
    answer_to(world, false)


def test_answers_for_others_are_rejected(tmp_path: Path, world: Identity) -> None:
    child, other = create_identity(tmp_path, "hospital_a"), create_identity(tmp_path, "hospital_b")
    with pytest.raises(UserError, match="for another node"):
        other.accept(answer_to(world, child))
    with pytest.raises(UserError, match="not the answer of a parent"):
        child.accept(child.folder / "request.csr")


def test_a_request_with_an_evil_name_is_rejected(tmp_path: Path, world: Identity) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    for name in ("../../evil", "world"):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        (tmp_path / "evil.csr").write_bytes(request.public_bytes(serialization.Encoding.PEM))
        with pytest.raises(UserError, match="which no node can be called|the request of world itself"):
            world.admit(tmp_path / "evil.csr")


def test_what_is_no_request_is_rejected(tmp_path: Path, world: Identity) -> None:
    (tmp_path / "text.csr").write_text("hello")
    with pytest.raises(UserError, match="is not a certificate request"):
        world.admit(tmp_path / "text.csr")
    (tmp_path / "large.csr").write_bytes(bytes(200_000))
    with pytest.raises(UserError, match="more than 100000 bytes"):
        world.admit(tmp_path / "large.csr")


def test_a_folder_without_keys_says_how_to_create_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="worldlm organisations keys --node NAME creates them"):
        _ = Identity(tmp_path / "nowhere").node
