"""A certificate of our own, for clients that insist on TLS (boto3 sends a bearer token over nothing else).

    folder/ca.pem      the authority that clients are told to trust (AWS_CA_BUNDLE, NODE_EXTRA_CA_CERTS)
    folder/cert.pem    this server, under its own names and those of AWS's endpoints in the region
    folder/key.pem     the server's key, readable by its owner alone; the authority's is thrown away

With AWS's names in it, a client needs no change at all where those names lead here.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import socket
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFETIME = datetime.timedelta(days=397)
_RENEW_BEFORE = datetime.timedelta(days=30)


class Certificates(msgspec.Struct, frozen=True):
    """Files in PEM form."""

    ca: Path
    cert: Path
    key: Path

    def hint(self) -> str:
        """What a client needs to know."""
        return f"export AWS_CA_BUNDLE={self.ca}\nexport NODE_EXTRA_CA_CERTS={self.ca}"


def aws_names(region: str) -> tuple[str, ...]:
    """The endpoints that AWS's clients call in a region."""
    return (
        f"bedrock-runtime.{region}.amazonaws.com",
        f"bedrock.{region}.amazonaws.com",
        f"bedrock-mantle.{region}.api.aws",
    )


def certificates(folder: Path, host: str, region: str) -> Certificates:
    """The certificates in ``folder``, made anew where they are missing, about to end or for other names."""
    files = Certificates(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    names = ["localhost", "127.0.0.1", "::1", socket.gethostname(), host, *aws_names(region)]
    wanted = {_general_name(name) for name in names if name not in ("0.0.0.0", "::")}  # noqa: S104 - left out
    if not _good(files, wanted):
        _make(files, wanted)
    return files


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _good(files: Certificates, wanted: set[x509.GeneralName]) -> bool:
    if not all(path.exists() for path in (files.ca, files.cert, files.key)):
        return False
    cert = x509.load_pem_x509_certificate(files.cert.read_bytes())
    has = set(cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    return wanted <= has and cert.not_valid_after_utc > datetime.datetime.now(datetime.UTC) + _RENEW_BEFORE


def _make(files: Certificates, names: set[x509.GeneralName]) -> None:
    files.ca.parent.mkdir(parents=True, exist_ok=True)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _builder("Diptych's own authority", authority_key.public_key())
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    authority = authority.add_extension(_usage(signs=True), critical=True)
    ca = _signed(authority, authority_key, "Diptych's own authority")
    server = _builder("Diptych", server_key.public_key())
    server = server.add_extension(x509.SubjectAlternativeName(sorted(names, key=str)), critical=False)
    server = server.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    server = server.add_extension(_usage(signs=False), critical=True)
    server = server.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    cert = _signed(server.add_extension(identifier, critical=False), authority_key, "Diptych's own authority")
    _write(files, ca, cert, server_key)


def _builder(name: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.Certificate:
    return builder.issuer_name(_named(issuer)).sign(key, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _write(files: Certificates, ca: x509.Certificate, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    pem = serialization.Encoding.PEM
    files.ca.write_bytes(ca.public_bytes(pem))
    files.cert.write_bytes(cert.public_bytes(pem) + ca.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os.fdopen(os.open(files.key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(secret)
