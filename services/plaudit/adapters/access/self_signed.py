"""Self-signed certificates, made with cryptography: a start without an authority. Clients trust the certificate."""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import bare
from plaudit.core.host.os_errors import explain


def make_self_signed(certificate: Path, key: Path, hosts: Sequence[str], days: int) -> None:
    """Write a certificate for ``hosts``, names or addresses, and its key (P-256), which is for its owner alone.

    Raises:
        ConfigError: a file is there already, or cannot be written; a host can be in no certificate.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Plaudit")])
    now = datetime.datetime.now(datetime.UTC)
    try:
        names = x509.SubjectAlternativeName([_general_name(bare(host)) for host in hosts])
    except ValueError as error:
        raise ConfigError(f"--host: {error}; give names such as plaudit.example, or IP addresses") from error
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of clients may be late
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _write(key, pem, 0o600)
    _write(certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)


def expires_at_s(certificate: bytes) -> float:
    """When the first certificate of a PEM file expires, UTC seconds. Raises ValueError: there is none."""
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc.timestamp()


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
    except FileExistsError as error:
        raise ConfigError(f"{path}: is there already; move it away, or choose another folder with --out") from error
    except OSError as error:
        raise ConfigError(explain(error)) from error
