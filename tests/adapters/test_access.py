"""Keys and tokens at rest and when they are checked: forged, expired, revoked, damaged, swapped."""

from __future__ import annotations

import hashlib
import json
import stat
import subprocess
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from plaudit.adapters.access.certificates import CertificateFiles
from plaudit.adapters.access.credentials import Credentials
from plaudit.adapters.access.jwt import JwtAuthenticator
from plaudit.adapters.access.keys import KeyAuthenticator, KeyFile
from plaudit.adapters.access.self_signed import expires_at_s, make_self_signed
from plaudit.core.access import CallerRole
from plaudit.core.errors import ConfigError, InvalidInput, Unavailable, UnknownCredentials
from plaudit.core.settings import JwtSettings, TlsSettings

NOW_S = 1_800_000_000.0
ISSUER = "https://login.example/"
PREDICT = [CallerRole.PREDICT]

# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_nowhere_but_in_the_hand_of_its_owner(path: Path) -> None:
    entry, key = KeyFile(path).create("web", PREDICT, speaks_for_others=True)
    text = path.read_text()
    assert key not in text
    assert key.rpartition("_")[2] not in text
    assert hashlib.sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KeyAuthenticator(path).principal(key) == entry.principal()


def test_keys_are_256_random_bits(path: Path) -> None:
    secrets = {KeyFile(path).create(f"k{n}", PREDICT)[1].split("_", 2)[2] for n in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {43}  # base64url of 32 bytes


def test_no_key_is_lost_where_many_are_made_at_once(path: Path) -> None:
    def make(number: int) -> None:
        for n in range(5):
            KeyFile(path).create(f"k{number}-{n}", PREDICT)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(KeyFile(path).entries()) == 30
    assert [each.name for each in path.parent.iterdir()] == ["keys.json"]


def test_keys_are_asked_for_from_the_first_one_on_and_ever_after(path: Path) -> None:
    authenticator = KeyAuthenticator(path)
    assert not authenticator.asks()
    entry, key = KeyFile(path).create("web", PREDICT)
    assert authenticator.asks()
    authenticator.principal(key)
    KeyFile(path).revoke(entry.id)
    path.unlink()
    assert authenticator.asks()
    with pytest.raises(UnknownCredentials):
        authenticator.principal(key)


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"format": 2, "keys": []}', '{"format": 1, "keys": [{}]}', '{"format": 1, "keys": 3}', "[" * 9999],
)
def test_a_damaged_file_changes_nothing_for_who_runs_and_stops_who_starts(path: Path, damage: str) -> None:
    _, key = KeyFile(path).create("web", PREDICT)
    authenticator = KeyAuthenticator(path)
    path.write_text(damage)
    authenticator.principal(key)
    with pytest.raises(ConfigError, match="put it back from a backup"):
        KeyAuthenticator(path)
    with pytest.raises(ConfigError):
        KeyFile(path).create("other", PREDICT)
    assert path.read_text() == damage


def test_revoking_what_is_no_key_says_where_the_ids_are(path: Path) -> None:
    with pytest.raises(ConfigError, match="plaudit keys list"):
        KeyFile(path).revoke("none")


@pytest.mark.parametrize("name", ["", "a" * 129, "a\x1b[31m", "a\u202eb"])
def test_a_name_that_acts_on_a_terminal_is_refused(path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        KeyFile(path).create(name, PREDICT)


# --- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def provider() -> dict[str, Any]:
    """Keys of an identity provider, by id, and one that it never published."""
    return {
        "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "ec": ec.generate_private_key(ec.SECP256R1()),
        "stolen": ec.generate_private_key(ec.SECP256R1()),
    }


def jwks(provider: Mapping[str, Any], *ids: str) -> str:
    keys = []
    for id_ in ids:
        public = provider[id_].public_key()
        algorithm: Any = jwt.algorithms.RSAAlgorithm if id_ == "rsa" else jwt.algorithms.ECAlgorithm
        keys.append({**json.loads(algorithm.to_jwk(public)), "kid": id_, "use": "sig"})
    return json.dumps({"keys": keys})


def a_token(provider: Mapping[str, Any], id_: str = "ec", **changes: Any) -> str:
    import time

    claims = {"iss": ISSUER, "aud": "plaudit", "sub": "ada", "exp": time.time() + 600.0} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, provider[id_], algorithm="RS256" if id_ == "rsa" else "ES256", headers={"kid": id_})


@pytest.fixture
def published(tmp_path: Path, provider: Mapping[str, Any]) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(jwks(provider, "rsa", "ec"))
    return path


def settings(source: object) -> JwtSettings:
    return JwtSettings(jwks=str(source), issuer=ISSUER, audience="plaudit")


@pytest.mark.parametrize("id_", ["rsa", "ec"])
def test_a_caller_is_the_tokens_subject_and_nobody_else(published: Path, provider: Mapping[str, Any], id_: str) -> None:
    principal = JwtAuthenticator(settings(published)).principal(a_token(provider, id_))
    assert (principal.user_id, principal.speaks_for_others) == ("ada", False)
    assert principal.roles == {CallerRole.PREDICT, CallerRole.FEEDBACK}


@pytest.mark.parametrize(
    ("claim", "roles"),
    [
        (["admin"], {"admin"}),
        ("predict openid", {"predict"}),
        ([], set()),
        ("", set()),
        (7, set()),
        ({"admin": 1}, set()),
    ],
)
def test_roles_are_those_of_the_claim(
    published: Path, provider: Mapping[str, Any], claim: object, roles: set[str]
) -> None:
    principal = JwtAuthenticator(settings(published)).principal(a_token(provider, plaudit_roles=claim))
    assert principal.roles == roles


def _none(provider: Mapping[str, Any]) -> str:
    return jwt.encode({"iss": ISSUER, "aud": "plaudit", "sub": "ada", "exp": 9e9}, "", algorithm="none")


def _hmac_with_the_public_key(provider: Mapping[str, Any]) -> str:
    """HS256 keyed with the bytes of the public key, which everybody has (CVE-2015-9235 and its kin)."""
    pem = (
        provider["rsa"]
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    parts = [
        jwt.utils.base64url_encode(json.dumps(part).encode())
        for part in (
            {"alg": "HS256", "typ": "JWT", "kid": "rsa"},
            {"iss": ISSUER, "aud": "plaudit", "sub": "ada", "exp": 9e9},
        )
    ]
    import hmac

    tag = jwt.utils.base64url_encode(hmac.digest(pem, b".".join(parts), "sha256"))
    return b".".join([*parts, tag]).decode()


def _own_key_in_the_header(provider: Mapping[str, Any]) -> str:
    claims = {"iss": ISSUER, "aud": "plaudit", "sub": "ada", "exp": 9e9}
    key = json.loads(jwks(provider, "stolen"))["keys"][0]
    return jwt.encode(claims, provider["stolen"], algorithm="ES256", headers={"kid": "stolen", "jwk": key})


FORGERIES: list[Callable[[Mapping[str, Any]], str]] = [
    _none,
    _hmac_with_the_public_key,
    _own_key_in_the_header,
    lambda keys: jwt.encode(
        {"iss": ISSUER, "aud": "plaudit", "sub": "ada", "exp": 9e9},
        keys["stolen"],
        algorithm="ES256",
        headers={"kid": "ec"},
    ),
    lambda keys: a_token(keys, exp=NOW_S - 9e8),
    lambda keys: a_token(keys, exp=None),
    lambda keys: a_token(keys, aud="another"),
    lambda keys: a_token(keys, aud=None),
    lambda keys: a_token(keys, iss="https://evil.example/"),
    lambda keys: a_token(keys, iss=None),
    lambda keys: a_token(keys, sub=None),
    lambda keys: a_token(keys, sub=""),
    lambda keys: a_token(keys, sub="a" * 200),
    lambda keys: a_token(keys, sub="a\x1b[31m"),
    lambda keys: a_token(keys, nbf=9e9),
    lambda keys: a_token(keys)[:-2],
    lambda keys: "a.b.c",
    lambda keys: "....",
    lambda keys: "eyJhbGciOiJFUzI1NiJ9.e30.",
    lambda keys: "plk_0_0",
]


@pytest.mark.parametrize("forge", FORGERIES)
def test_no_forged_token_opens_anything(
    published: Path, provider: Mapping[str, Any], path: Path, forge: Callable[[Mapping[str, Any]], str]
) -> None:
    credentials = Credentials(KeyAuthenticator(path), JwtAuthenticator(settings(published)))
    token = forge(provider)
    with pytest.raises(UnknownCredentials) as refused:
        credentials.principal(token)
    assert token[-20:] not in str(refused.value)


def test_a_remembered_token_ends_when_it_expires_or_its_key_is_withdrawn(
    published: Path, provider: Mapping[str, Any]
) -> None:
    import time

    now_s = [time.time()]
    authenticator = JwtAuthenticator(settings(published), clock=lambda: now_s[0])
    short, lasting = a_token(provider, exp=now_s[0] - 1.0 + 61.0), a_token(provider, "rsa")
    authenticator.principal(short)
    authenticator.principal(lasting)
    assert len(authenticator._remembered) == 2
    now_s[0] += 61.0
    remembered = authenticator._remembered.copy()
    assert [entry[1] > now_s[0] for entry in remembered.values()] == [False, True]
    published.write_text(jwks(provider, "ec") + " ")
    with pytest.raises(UnknownCredentials, match="does not publish"):
        authenticator.principal(lasting)


def test_keys_of_the_provider_that_are_damaged_leave_the_old_ones(published: Path, provider: Mapping[str, Any]) -> None:
    authenticator = JwtAuthenticator(settings(published))
    published.write_text("{")
    authenticator.principal(a_token(provider))
    with pytest.raises(ConfigError, match=r"serving\.jwt\.jwks"):
        JwtAuthenticator(settings(published))


def test_a_url_is_asked_once_whatever_keys_tokens_name(provider: Mapping[str, Any]) -> None:
    asked = []

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = jwks(provider, "ec").encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Provider) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            authenticator = JwtAuthenticator(settings(f"http://127.0.0.1:{server.server_port}/jwks"))
            authenticator.principal(a_token(provider))
            for number in range(5):
                with pytest.raises(UnknownCredentials):
                    authenticator.principal(
                        jwt.encode({"sub": "x"}, provider["stolen"], algorithm="ES256", headers={"kid": f"k{number}"})
                    )
            authenticator.principal(a_token(provider, sub="bob"))
        finally:
            server.shutdown()
            thread.join()
    assert asked == ["/jwks"]


def test_a_url_that_does_not_answer_is_no_verdict_on_the_token(provider: Mapping[str, Any]) -> None:
    authenticator = JwtAuthenticator(settings("http://127.0.0.1:9/jwks"))
    with pytest.raises(Unavailable):
        authenticator.principal(a_token(provider))


# --- certificates ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tls(tmp_path: Path) -> TlsSettings:
    made = TlsSettings(certificate=tmp_path / "s.crt", key=tmp_path / "s.key")
    assert made.certificate is not None
    assert made.key is not None
    make_self_signed(made.certificate, made.key, ["localhost", "127.0.0.1", "::1"], 30)
    return made


def test_openssl_takes_a_self_signed_certificate_for_what_it_says(tls: TlsSettings) -> None:
    shown = subprocess.run(
        ["openssl", "verify", "-CAfile", str(tls.certificate), "-verify_hostname", "localhost", str(tls.certificate)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert stat.S_IMODE(tls.key.stat().st_mode) == 0o600 if tls.key else False
    assert expires_at_s(CertificateFiles(tls).current().chain) > NOW_S - 9e8


@pytest.mark.parametrize("name", ["s.crt", "s.key"])
@pytest.mark.parametrize("damage", [None, b"", b"no PEM", "other"])
def test_a_pair_that_does_not_fit_is_refused_at_the_start_and_ignored_later(
    tls: TlsSettings, tmp_path: Path, name: str, damage: bytes | str | None
) -> None:
    running = CertificateFiles(tls)
    before = running.current()
    path = tmp_path / name
    if damage is None:
        path.unlink()
    elif isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        make_self_signed(tmp_path / "o.crt", tmp_path / "o.key", ["localhost"], 30)
        (tmp_path / f"o{path.suffix}").replace(path)
    assert running.current() == before
    with pytest.raises(ConfigError, match=r"serving\.tls"):
        CertificateFiles(tls)


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tls: TlsSettings, tmp_path: Path) -> None:
    assert tls.key is not None
    locked = subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", str(tls.key), "-passout", "pass:secret"], capture_output=True, check=True
    )
    tls.key.write_bytes(locked.stdout)
    with pytest.raises(ConfigError, match="without a password"):
        CertificateFiles(tls)
