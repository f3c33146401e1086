"""From a deployment on this machine to a safe one, with the commands of docs/how-to/secure.md, as a new user would."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from plaudit.client import AsyncClient, Client, ClientError
from plaudit.core.host.addresses import reachable
from support.deployment import PLAUDIT, Service, deployed
from support.markdown import ROOT, blocks
from support.shell import run_plaudit

GUIDE = ROOT / "docs/how-to/secure.md"
CONTENT = {"question": "hello"}


class Commands:
    """Commands on one deployment, in this process."""

    def __init__(self, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.config = config
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0, key: str = "") -> str:
        """What the command prints; what it says to stderr where it is to fail."""
        self._monkeypatch.setenv("PLAUDIT_API_KEY", key)
        done = run_plaudit(self._monkeypatch, self._capsys, *arguments, "--config", str(self.config))
        assert done.code == code, done.err
        return done.out if code == 0 else done.err

    def documented(self, beginning: str) -> Sequence[str]:
        """Arguments of the guide's command that begins so."""
        lines = [line for block in blocks(GUIDE) for line in block.text.splitlines()]
        (line,) = [line for line in lines if line.startswith(f"plaudit {beginning}")]
        return line.split()[1:]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Commands:
    return Commands(deployed(tmp_path), monkeypatch, capsys)


@pytest.fixture
def services() -> Iterator[list[Service]]:
    started: list[Service] = []
    yield started
    for service in started:
        service.kill()


def lets_others_in(config: Path, more: str = "") -> None:
    text = config.read_text().replace("[serving]\n", '[serving]\nhost = "0.0.0.0"\nadmin_address = "127.0.0.1:0"\n')
    config.write_text(text + more)


def serve(shell: Commands, services: list[Service]) -> tuple[str, str]:
    """Addresses of the gRPC port and of the admin port of a service that has started."""
    service = Service([*PLAUDIT, "serve", "--config", str(shell.config), "--json"])
    services.append(service)
    event = service.event(event="ready")
    host, port = event["address"].rsplit(":", 1)
    return reachable(host, int(port)), event["admin"]


def test_listening_to_others_without_tls_and_keys_is_refused_with_the_way_out(shell: Commands) -> None:
    lets_others_in(shell.config)
    told = shell("serve", code=2)
    for way_out in ("plaudit tls self-signed", "plaudit keys create", "serving.open", "127.0.0.1"):
        assert way_out in told
    shell("keys", "create", "web")
    told = shell("serve", code=2)
    assert "plaudit tls self-signed" in told
    assert "plaudit keys create" not in told


def test_serving_open_is_for_those_with_a_proxy(shell: Commands, services: list[Service]) -> None:
    lets_others_in(shell.config)
    shell.config.write_text(shell.config.read_text().replace("[serving]\n", "[serving]\nopen = true\n"))
    target, admin = serve(shell, services)
    with Client(target) as client:
        assert client.predict(CONTENT).version == 1
        with pytest.raises(ClientError) as refused:
            client.rollback()
        assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED
    with Client(admin) as client:
        assert client.pin(1).pinned


def test_the_guide_from_loopback_to_safe(shell: Commands, services: list[Service], tmp_path: Path) -> None:
    printed = shell(*shell.documented("tls self-signed"))
    lets_others_in(shell.config, printed)
    certificate = tmp_path / "data/tls/server.crt"
    assert stat.S_IMODE((tmp_path / "data/tls/server.key").stat().st_mode) == 0o600
    web, ada, ops = (shell(*shell.documented(f"keys create {name}")).strip() for name in ("web", "ada", "ops"))
    listed = json.loads(shell("keys", "list", "--json"))
    assert [each["name"] for each in listed] == ["web", "ada", "ops"]
    kept = (tmp_path / "data/keys.json").read_text()
    assert stat.S_IMODE((tmp_path / "data/keys.json").stat().st_mode) == 0o600
    assert not [key for key in (web, ada, ops) if key.rpartition("_")[2] in kept + json.dumps(listed)]
    target, admin = serve(shell, services)

    # The clients of both colours, over TLS with a key.
    content = CONTENT
    with Client(target, api_key=web, tls_ca=certificate) as client:
        asked = client.predict(content, user_id="bob")
        client.thumbs_up(asked)
    asyncio.run(_ask(target, ada, certificate))
    with Client(target, tls_ca=certificate) as client, pytest.raises(ClientError) as refused:
        client.predict(content)
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED

    # Commands: the key from the environment or a file, never an argument.
    remote = ["--target", target, "--tls-ca", str(certificate), "--json"]
    assert json.loads(shell("predict", "--content", "question=hello", *remote, key=ada))["version"] == 1
    (tmp_path / "key").write_text(ops + "\n")
    pinned = shell("pin", "1", "--target", admin, "--api-key-file", str(tmp_path / "key"), "--json")
    assert json.loads(pinned)["pinned"]
    assert "role admin" in shell("unpin", "--target", admin, key=ada, code=1)
    assert "admin port" in shell("unpin", *remote, key=ops, code=1)

    # A key that is revoked opens nothing more.
    shell("keys", "revoke", listed[0]["id"])
    with Client(target, api_key=web, tls_ca=certificate) as client, pytest.raises(ClientError) as refused:
        client.predict(content)
    assert refused.value.code is grpc.StatusCode.UNAUTHENTICATED


async def _ask(target: str, key: str, certificate: Path) -> None:
    async with AsyncClient(target, api_key=key, tls_ca=certificate) as client:
        asked = await client.predict(CONTENT)
        await client.thumbs_up(asked)
        with pytest.raises(ClientError):
            await client.predict(CONTENT, user_id="bob")


@pytest.mark.parametrize("target", ["192.0.2.1:8001", "plaudit.example:8001", "dns:///plaudit.example:8001"])
@pytest.mark.parametrize("secret", ["api_key", "admin_token"])
def test_no_client_sends_a_secret_to_another_machine_in_clear(target: str, secret: str) -> None:
    for colour in (Client, AsyncClient):
        with pytest.raises(ClientError, match=f"{secret}: would be sent to .* in clear"):
            colour(target, **{secret: "hush-hush-hush-hush"})  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x", "ipv4:127.0.0.1:1"])
def test_on_this_machine_a_secret_may_be_in_clear(target: str) -> None:
    Client(target, api_key="hush").close()


def test_a_certificate_is_not_overwritten(shell: Commands) -> None:
    shell("tls", "self-signed")
    assert "is there already" in shell("tls", "self-signed", code=2)
    assert "--host" in shell("tls", "self-signed", "--out", "elsewhere", "--host", "bücher.example", code=2)
