"""Made-up credentials for the tests: certificates, NKeys, and the JWTs of a NATS in operator mode."""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import ipaddress
import json
import os
import ssl
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nkeys  # type: ignore[import-untyped] # it has no types
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


class Pair(NamedTuple):
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority; `file` holds its own certificate."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        certificate = self._built(self._name, self._key, is_authority=True)
        self.file = directory / "ca.pem"
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def pair(self, name: str, host: str = "127.0.0.1", *, only_for_clients: bool = False) -> Pair:
        """A certificate with this common name, for `host`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._built(subject, key, host=host, only_for_clients=only_for_clients)
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair

    def server(self, host: str = "127.0.0.1") -> ssl.SSLContext:
        """The TLS of a server with a certificate for `host`."""
        pair, context = self.pair(f"server of {host}", host), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate, pair.key)
        return context

    def _built(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        is_authority: bool = False,
        host: str = "127.0.0.1",
        only_for_clients: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        names = x509.SubjectAlternativeName([name])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if only_for_clients:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


suite_directory = tempfile.TemporaryDirectory(prefix="test-authority-")


@functools.cache
def suite_authority() -> Authority:
    """The one authority that the simulated vCenters of all tests have their certificates from."""
    return Authority(Path(suite_directory.name))


@functools.cache
def suite_server() -> ssl.SSLContext:
    """The TLS of every simulated vCenter that is served on 127.0.0.1 by https."""
    return suite_authority().server()


class NKey(NamedTuple):
    """An NKey: its public half as text, its seed, and what signs."""

    public: str
    seed: str
    pair: nkeys.KeyPair


def nkey(prefix: int = nkeys.PREFIX_BYTE_USER) -> NKey:
    """A new one, of a user unless told otherwise."""
    seed = nkeys.encode_seed(os.urandom(32), prefix)
    pair = nkeys.from_seed(bytearray(seed))
    return NKey(bytes(pair.public_key).decode(), bytes(seed).decode(), pair)


def _jwt(issuer: NKey, subject: str, name: str, claims: dict[str, Any], more: dict[str, Any] | None = None) -> str:
    """A NATS JWT, version 2."""
    body = {**(more or {}), "iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject}
    body["nats"] = {"version": 2, **claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(body)}"
    return f"{signed}.{_base64(issuer.pair.sign(signed.encode()))}"


def _part(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")


class Operated(NamedTuple):
    """A NATS in operator mode: its configuration, a user's credentials file as text, that user, its account."""

    config: str
    credentials: str
    account: NKey
    user: NKey

    def expiring(self, lives_s: int) -> str:
        """The same user's credentials file, good for so many seconds."""
        return _credentials(self.account, self.user, {"exp": int(time.time()) + lives_s})


def _credentials(account: NKey, user: NKey, more: dict[str, Any]) -> str:
    claims = {"type": "user", "subs": -1, "data": -1, "payload": -1}
    return (
        f"-----BEGIN NATS USER JWT-----\n{_jwt(account, user.public, 'bridge', claims, more)}\n"
        "------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )


def operated() -> Operated:
    """One account with JetStream and one user in it."""
    operator, account, system = (
        nkey(nkeys.PREFIX_BYTE_OPERATOR),
        nkey(nkeys.PREFIX_BYTE_ACCOUNT),
        nkey(nkeys.PREFIX_BYTE_ACCOUNT),
    )
    user = nkey()
    unlimited = {
        **dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1),
        **dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1),
        "wildcards": True,
    }
    operators = _jwt(operator, operator.public, "operator", {"type": "operator", "system_account": system.public})
    accounts = _jwt(operator, account.public, "tasks", {"type": "account", "limits": unlimited})
    systems = _jwt(operator, system.public, "system", {"type": "account", "limits": {"conn": -1, "subs": -1}})
    config = (
        f"operator: {operators}\nsystem_account: {system.public}\nresolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {accounts}, {system.public}: {systems} }}\n"
    )
    return Operated(config, _credentials(account, user, {}), account, user)
