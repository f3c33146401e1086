"""Who may call what: the role matrix over every method, keys, TLS and the admin port, on a real service."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from plaudit.adapters.access.certificates import CertificateFiles
from plaudit.adapters.access.credentials import Credentials
from plaudit.adapters.access.keys import KeyAuthenticator, KeyFile
from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.core.access import CallerRole
from plaudit.core.settings import TlsSettings
from plaudit.inference import open_inference_pb2
from plaudit.serving.grpc.roles import ROLES, declared
from plaudit.serving.server import Guard
from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2
from support.serving_harness import Running, Serve, a_request, a_thumb, decisions, feedback, refusal

ADMIN_METHODS: Final = {method for method, role in ROLES.items() if role is CallerRole.ADMIN}
PLAUDIT: Final = [
    prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
    feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"],
    model_pb2.DESCRIPTOR.services_by_name["ModelService"],
]
SERVICES: Final = [
    *PLAUDIT,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
]
METHODS: Final = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
"""Every method that the service offers, from the descriptors."""
DENIED: Final = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


@pytest.fixture
def keys(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def guarded(keys: KeyFile, tls: TlsSettings | None = None) -> Guard:
    return Guard(Credentials(KeyAuthenticator(keys._path), None), None if tls is None else CertificateFiles(tls))


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def code_of(
    running: Running | int, method: str, metadata: Any = None, credentials: grpc.ChannelCredentials | None = None
) -> tuple[grpc.StatusCode, str]:
    """Status of a call of a server, or of a port, with an empty message; OK also where a stream goes on.

    The client for threads: that for asyncio may say INTERNAL where a stream is refused while it writes.
    """
    port = running if isinstance(running, int) else running.server.port
    return await asyncio.to_thread(_code_of, f"127.0.0.1:{port}", method, metadata, credentials)


def _code_of(
    target: str, method: str, metadata: Any, credentials: grpc.ChannelCredentials | None
) -> tuple[grpc.StatusCode, str]:
    descriptor = METHODS[method]
    message = descriptor.input_type._concrete_class().SerializeToString()
    kind = f"{_arity(descriptor.client_streaming)}_{_arity(descriptor.server_streaming)}"
    with grpc.insecure_channel(target) if credentials is None else grpc.secure_channel(target, credentials) as channel:
        call: Any = getattr(channel, kind)(method)
        sent = iter([message]) if descriptor.client_streaming else message
        try:
            answer = call(sent, metadata=metadata, timeout=20)
            if descriptor.server_streaming:
                next(answer, None)
                answer.cancel()
        except grpc.RpcError as error:
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


# --- roles -----------------------------------------------------------------------------------------------------------


def test_every_method_that_is_served_has_a_role_or_is_for_anybody() -> None:
    assert METHODS.keys() == ROLES.keys()


@pytest.mark.parametrize("service", PLAUDIT, ids=lambda service: service.name)
def test_our_own_methods_declare_their_roles_in_the_proto(service: Any) -> None:
    assert declared(service).keys() == {f"/{service.full_name}/{method.name}" for method in service.methods}


def test_what_needs_no_role_tells_nothing_but_health() -> None:
    assert {method.rpartition("/")[2] for method, role in ROLES.items() if role is None} == {
        "Check",
        "Watch",
        "ServerLive",
        "ServerReady",
    }


@pytest.mark.parametrize("held", [None, *CallerRole], ids=str)
async def test_the_role_matrix(serve: Serve, keys: KeyFile, held: CallerRole | None) -> None:
    """Each method with a key of each role and without any: let in exactly where the method needs that role, or none."""
    metadata = None if held is None else bearer(keys.create("caller", [held])[1])
    keys.create("other", list(CallerRole))
    running = await serve(guard=guarded(keys))
    wrong = []
    for method, role in ROLES.items():
        code, _ = await code_of(running, method, metadata)
        expected = (
            None
            if role in (None, held)
            else grpc.StatusCode.UNAUTHENTICATED
            if held is None
            else grpc.StatusCode.PERMISSION_DENIED
        )
        if (code if code in DENIED else None) != expected:
            wrong.append((method, code, expected))
    assert wrong == []


async def test_a_method_without_a_role_is_refused_to_everybody(
    serve: Serve, keys: KeyFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "/plaudit.v1.PredictionService/Predict"
    admin = bearer(keys.create("admin", list(CallerRole))[1])
    running = await serve(guard=guarded(keys))
    monkeypatch.delitem(ROLES, method)
    code, text = await code_of(running, method, admin)
    assert (code, "names no role" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forged",
    ["plk_", "plk_0_0", "", "plk_{id}_", "plk_{id}_{secret}x", "{secret}", "plk_{id}_" + "A" * 6000],
)
async def test_no_forged_key_opens_anything_and_none_is_told(serve: Serve, keys: KeyFile, forged: str) -> None:
    _, key = keys.create("ada", [CallerRole.PREDICT])
    _, id_, secret = key.split("_", 2)
    running = await serve(guard=guarded(keys))
    code, text = await code_of(
        running,
        "/plaudit.v1.PredictionService/Predict",
        bearer(forged.format(id=id_, secret=secret)),
    )
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert secret not in text


async def test_two_keys_in_one_call_are_refused(serve: Serve, keys: KeyFile) -> None:
    _, key = keys.create("ada", [CallerRole.PREDICT])
    running = await serve(guard=guarded(keys))
    code, _ = await code_of(running, "/plaudit.v1.PredictionService/Predict", bearer(key) * 2)
    assert code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_key_made_or_revoked_counts_from_the_next_call_on(serve: Serve, keys: KeyFile) -> None:
    running = await serve(guard=guarded(keys))
    await running.predict()  # nobody has a key yet
    entry, key = keys.create("ada", [CallerRole.PREDICT])
    assert (await code_of(running, "/plaudit.v1.PredictionService/Predict"))[0] in DENIED
    await running.predictions.Predict(a_request(), metadata=bearer(key))
    keys.revoke(entry.id)
    assert (await code_of(running, "/plaudit.v1.PredictionService/Predict", bearer(key)))[0] in DENIED
    keys._path.unlink()
    assert (await code_of(running, "/plaudit.v1.PredictionService/Predict"))[0] in DENIED


async def test_health_needs_no_key(serve: Serve, keys: KeyFile) -> None:
    keys.create("ada", [CallerRole.PREDICT])
    running = await serve(guard=guarded(keys))
    assert (await code_of(running, "/grpc.health.v1.Health/Check"))[0] is grpc.StatusCode.OK
    assert (await code_of(running, "/grpc.health.v1.Health/Watch"))[0] is grpc.StatusCode.OK


async def test_a_call_without_a_key_is_refused_before_its_message_arrives(serve: Serve, keys: KeyFile) -> None:
    """A caller who sends headers and no message: the answer comes all the same."""
    keys.create("ada", [CallerRole.PREDICT])
    running = await serve(guard=guarded(keys))
    call: Any = running.channel.stream_unary("/plaudit.v1.PredictionService/Predict")()
    assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_manifests_are_whole_for_admins_alone(serve: Serve, keys: KeyFile) -> None:
    _, plain = keys.create("ada", [CallerRole.PREDICT])
    _, admin = keys.create("ops", [CallerRole.PREDICT, CallerRole.ADMIN])
    running = await serve(guard=guarded(keys))
    request = model_pb2.GetVersionRequest(version=2)
    seen = (await running.models.GetVersion(request, metadata=bearer(plain))).version
    assert '"spec"' in seen.manifest_json
    assert "parent" not in seen.manifest_json
    assert seen.reason == ""
    whole = (await running.models.GetVersion(request, metadata=bearer(admin))).version
    assert len(whole.manifest_json) > len(seen.manifest_json)


# --- the admin port --------------------------------------------------------------------------------------------------


async def test_calls_of_admins_are_answered_on_the_admin_port_alone(serve: Serve, keys: KeyFile) -> None:
    _, key = keys.create("ops", list(CallerRole))
    running = await serve(guard=guarded(keys), admin_address="127.0.0.1:0")
    assert running.server.admin_port != running.server.port
    admin = running.server.admin_port
    for method in sorted(ADMIN_METHODS):
        code, text = await code_of(running, method, bearer(key))
        assert (code, "admin port" in text) == (grpc.StatusCode.PERMISSION_DENIED, True), method
        assert (await code_of(admin, method, bearer(key)))[0] not in DENIED, method
        assert (await code_of(admin, method))[0] is grpc.StatusCode.UNAUTHENTICATED, method
    seen = await running.models.GetVersion(model_pb2.GetVersionRequest(version=2), metadata=bearer(key))
    assert "parent" not in seen.version.manifest_json


async def test_on_loopback_one_port_answers_everything_without_a_key(running: Running) -> None:
    assert running.server.admin_port == running.server.port
    assert [method for method in ROLES if (await code_of(running, method))[0] in DENIED] == []


@pytest.fixture
async def running(serve: Serve) -> Running:
    return await serve()


# --- TLS, with certificates that openssl made ------------------------------------------------------------------------


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def a_certificate(folder: Path, name: str, authority: str | None = None) -> tuple[Path, Path]:
    """Certificate and key of ``name``, signed by the authority of that name, or by itself."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    arguments: list[str | Path] = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    arguments += ["-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    if authority is not None:
        arguments += ["-CA", folder / f"{authority}.crt", "-CAkey", folder / f"{authority}.key"]
    openssl(*arguments, "-keyout", key, "-out", certificate)
    return certificate, key


def shown_certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


async def over_tls(port: int, ca: Path, pair: tuple[Path, Path] | None = None) -> grpc.StatusCode:
    own = (pair[1].read_bytes(), pair[0].read_bytes()) if pair else (None, None)
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), *own)  # noqa: ASYNC240  # small files
    return (await code_of(port, "/grpc.health.v1.Health/Check", credentials=credentials))[0]


async def test_tls_shows_the_certificate_and_takes_no_plain_text(serve: Serve, keys: KeyFile, tmp_path: Path) -> None:
    certificate, key = a_certificate(tmp_path, "server")
    running = await serve(guard=guarded(keys, TlsSettings(certificate=certificate, key=key)))
    assert await over_tls(running.server.port, certificate) is grpc.StatusCode.OK
    assert shown_certificate(running.server.port).split() == certificate.read_text().split()
    assert (await code_of(running, "/grpc.health.v1.Health/Check"))[0] is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_trusts_another_authority_does_not_connect(
    serve: Serve, keys: KeyFile, tmp_path: Path
) -> None:
    certificate, key = a_certificate(tmp_path, "server")
    other, _ = a_certificate(tmp_path, "other")
    running = await serve(guard=guarded(keys, TlsSettings(certificate=certificate, key=key)))
    assert await over_tls(running.server.port, other) is grpc.StatusCode.UNAVAILABLE


async def test_mutual_tls_lets_in_whom_the_authority_signed_alone(serve: Serve, keys: KeyFile, tmp_path: Path) -> None:
    certificate, key = a_certificate(tmp_path, "server")
    authority, _ = a_certificate(tmp_path, "authority")
    a_certificate(tmp_path, "impostor")
    tls = TlsSettings(certificate=certificate, key=key, client_ca=authority)
    running = await serve(guard=guarded(keys, tls))
    port = running.server.port
    assert await over_tls(port, certificate, a_certificate(tmp_path, "client", "authority")) is grpc.StatusCode.OK
    assert await over_tls(port, certificate) is grpc.StatusCode.UNAVAILABLE
    for stranger in (a_certificate(tmp_path, "self"), a_certificate(tmp_path, "foe", "impostor")):
        assert await over_tls(port, certificate, stranger) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_is_swapped_under_load_and_half_a_swap_changes_nothing(
    serve: Serve, keys: KeyFile, tmp_path: Path
) -> None:
    certificate, key = a_certificate(tmp_path, "server")
    running = await serve(guard=guarded(keys, TlsSettings(certificate=certificate, key=key)))
    port, first = running.server.port, certificate.read_text()
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    fresh, fresh_key = a_certificate(tmp_path, "fresh")
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
        method: Any = channel.unary_unary("/plaudit.v1.PredictionService/Predict")
        for step in (None, fresh, fresh_key):
            if step is fresh:
                fresh.replace(certificate)
            elif step is fresh_key:
                assert shown_certificate(port).split() == first.split()  # the new one without its key
                fresh_key.replace(key)
            await method(a_request().SerializeToString())
        assert shown_certificate(port).split() == certificate.read_text().split()
        await method(a_request().SerializeToString())  # connections that were there go on
    assert await over_tls(port, certificate) is grpc.StatusCode.OK


# --- whose requests they are -----------------------------------------------------------------------------------------


async def test_a_request_is_of_the_user_that_the_key_belongs_to(serve: Serve, keys: KeyFile, log: SqliteLog) -> None:
    _, ada = keys.create("ada", [CallerRole.PREDICT])
    _, web = keys.create("web", [CallerRole.PREDICT], speaks_for_others=True)
    running = await serve(guard=guarded(keys))
    for key, claimed in ((ada, ""), (ada, "ada"), (web, "bob"), (web, "")):
        await running.predictions.Predict(a_request(user_id=claimed), metadata=bearer(key))
    code, text = await refusal(running.predictions.Predict(a_request(user_id="bob"), metadata=bearer(ada)))
    assert (code, text.partition(":")[0]) == (grpc.StatusCode.PERMISSION_DENIED, "user_id")
    await asyncio.to_thread(running.server.stop)
    assert [decision.user_id for decision in decisions(log)] == ["ada", "ada", "bob", ""]


async def test_nobody_rates_or_retracts_in_the_name_of_another(serve: Serve, keys: KeyFile, log: SqliteLog) -> None:
    both = [CallerRole.PREDICT, CallerRole.FEEDBACK]
    _, ada = keys.create("ada", both)
    _, mallory = keys.create("mallory", both)
    running = await serve(guard=guarded(keys))
    asked = await running.predictions.Predict(a_request(), metadata=bearer(ada))
    as_ada = [
        a_thumb(asked.prediction_id, "m1"),
        a_thumb(asked.prediction_id, "m2", retract=feedback_pb2.Retract()),
    ]
    for piece in as_ada:
        code, _ = await refusal(running.feedback.SendFeedback(piece, metadata=bearer(mallory)))
        assert code is grpc.StatusCode.PERMISSION_DENIED
    answers = [a async for a in running.feedback.StreamFeedback(iter(as_ada), metadata=bearer(mallory))]
    assert [answer.error.code for answer in answers] == [grpc.StatusCode.PERMISSION_DENIED.value[0]] * 2
    assert feedback(log) == []


async def test_a_model_infer_request_is_of_the_keys_user_too(serve: Serve, keys: KeyFile) -> None:
    _, ada = keys.create("ada", [CallerRole.PREDICT])
    running = await serve(guard=guarded(keys))
    message = open_inference_pb2.ModelInferRequest(model_name="tiny")
    message.parameters["user_id"].string_param = "bob"
    infer: Any = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    code, text = await refusal(infer(message.SerializeToString(), metadata=bearer(ada)))
    assert (code, "bob" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


async def test_a_quota_that_is_spent_says_when_to_try_again(serve: Serve, keys: KeyFile) -> None:
    _, ada = keys.create("ada", [CallerRole.PREDICT], calls_per_minute=3)
    _, bob = keys.create("bob", [CallerRole.PREDICT])
    running = await serve(guard=guarded(keys))
    for _ in range(3):
        await running.predictions.Predict(a_request(), metadata=bearer(ada))
    code, text = await refusal(running.predictions.Predict(a_request(), metadata=bearer(ada)))
    assert (code, "3 calls a minute" in text) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    await running.predictions.Predict(a_request(), metadata=bearer(bob))


async def test_messages_on_a_stream_count_as_calls_do(serve: Serve, keys: KeyFile) -> None:
    _, ada = keys.create("ada", [CallerRole.FEEDBACK], calls_per_minute=3)
    running = await serve(guard=guarded(keys))
    pieces = [a_thumb("no id", f"f{n}") for n in range(9)]

    def send() -> grpc.StatusCode:
        with grpc.insecure_channel(f"127.0.0.1:{running.server.port}") as channel:
            call: Any = channel.stream_stream(
                "/plaudit.v1.FeedbackService/StreamFeedback", feedback_pb2.SendFeedbackRequest.SerializeToString
            )
            try:
                list(call(iter(pieces), metadata=bearer(ada), timeout=20))
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    assert await asyncio.to_thread(send) is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert running.metric("plaudit_serving_requests_total", code="RESOURCE_EXHAUSTED") == 1
