"""Which certificates a client accepts: the same on every Python; and what it says of one that it refuses."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import task_bridge
from task_bridge.tls import create_client_context, explain_refusal

HOST = "127.0.0.1"
Extensions = Sequence[tuple[x509.ExtensionType, bool]]


def usage(*names: str) -> x509.KeyUsage:
    known = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    every = [*known.split(), "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: name in names for name in every})


IS_CA = (x509.BasicConstraints(ca=True, path_length=None), True)
NO_CA = (x509.BasicConstraints(ca=False, path_length=None), True)
SIGNS = (usage("key_cert_sign", "crl_sign"), True)
NAME = (x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), False)
CLIENT_ONLY = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)


class Issued(NamedTuple):
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def issue(name: str, extensions: Extensions, issuer: Issued | None = None) -> Issued:
    """Issue a certificate with exactly these extensions; self-signed without `issuer`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(
        issuer.certificate.subject if issuer else subject,
        subject,
        key.public_key(),
        x509.random_serial_number(),
        now - day,
        now + day,
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def pem(*issued: Issued) -> bytes:
    return b"".join(one.certificate.public_bytes(serialization.Encoding.PEM) for one in issued)


def shake_hands(directory: Path, chain: Sequence[Issued], trusted: Issued) -> None:
    """Let a client that trusts `trusted` meet a server with this chain, the server's own first, without a network."""
    (served := directory / "served.pem").write_bytes(
        pem(*chain)
        + chain[0].key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    (ca_file := directory / "ca.pem").write_bytes(pem(trusted))
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(served)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = create_client_context(ca_file).wrap_bio(to_client, to_server, server_hostname=HOST)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for side in tuple(waiting):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(side)
        if not waiting:
            return
    raise AssertionError("the handshake doesn't end")


PROPER = issue("proper authority", [IS_CA, SIGNS])
BARE = issue("authority without keyUsage and key identifiers", [IS_CA])
NOT_CRITICAL = issue("authority", [(IS_CA[0], False), SIGNS])
BELOW = issue("authority below", [IS_CA, SIGNS], PROPER)
SELF_SIGNED = issue("server", [NAME])
ACCEPTED = {
    "proper": ([issue("server", [NO_CA, NAME], PROPER)], PROPER),
    "vcenter-like, without keyUsage and key identifiers": ([issue("server", [NAME], BARE)], BARE),
    "basicConstraints not critical": ([issue("server", [NAME], NOT_CRITICAL)], NOT_CRITICAL),
    "the server's own certificate": ([SELF_SIGNED], SELF_SIGNED),
    "an authority below the root": ([issue("server", [NAME], BELOW), BELOW], BELOW),
}


@pytest.mark.parametrize("case", ACCEPTED.values(), ids=ACCEPTED)
def test_a_certificate_is_accepted_on_every_python(case: tuple[list[Issued], Issued], tmp_path: Path) -> None:
    shake_hands(tmp_path, *case)


NOT_CA = issue("no authority", [NO_CA])
NO_SIGNING = issue("authority that may not sign", [IS_CA, (usage("digital_signature"), True)])
SHORT = issue("authority of leaves", [(x509.BasicConstraints(ca=True, path_length=0), True), SIGNS])
ONE_TOO_MANY = issue("one too many", [IS_CA, SIGNS], SHORT)
ELSEWHERE = issue(
    "authority of another network",
    [IS_CA, SIGNS, (x509.NameConstraints([x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))], None), True)],
)
REFUSED = {
    "for clients": ([issue("server", [NAME, CLIENT_ONLY], PROPER)], PROPER, "extendedKeyUsage"),
    "unknown": ([issue("server", [NAME, UNKNOWN], PROPER)], PROPER, "critical extension"),
    "no authority": ([issue("server", [NAME], NOT_CA), NOT_CA], NOT_CA, "basicConstraints must say CA:TRUE"),
    "no signing": ([issue("server", [NAME], NO_SIGNING), NO_SIGNING], NO_SIGNING, "keyCertSign"),
    "path": ([issue("server", [NAME], ONE_TOO_MANY), ONE_TOO_MANY], SHORT, "allows fewer authorities"),
    "name": ([issue("server", [NAME], ELSEWHERE)], ELSEWHERE, "nameConstraints"),
    "stranger": ([issue("server", [NAME], PROPER)], BARE, "unable to get local issuer certificate"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_refusal_names_the_extension(case: tuple[list[Issued], Issued, str], tmp_path: Path) -> None:
    chain, trusted, words = case
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        shake_hands(tmp_path, chain, trusted)
    assert words in explain_refusal(refused.value)


def test_no_other_module_verifies_certificates_its_own_way() -> None:
    package = Path(task_bridge.__file__).parent
    own = re.compile(r"create_default_context|_create_unverified_context|create_ssl_context|\bcertifi\b")
    assert [file.name for file in package.rglob("*.py") if own.search(file.read_text())] == ["tls.py"]
