"""Traces, from the client through batch and log to the version that learned: real exporters, a real collector."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from plaudit.adapters.tracing.otel import OtelTracing, otlp_tracing
from plaudit.client import AsyncClient, Client, ClientError
from plaudit.client.feedback import thumbs_up
from plaudit.compose.log import serving_log
from plaudit.compose.serving import inference_server
from plaudit.compose.settings import load_settings
from plaudit.compose.tracing import service_tracing
from plaudit.core.errors import ConfigError
from plaudit.core.events import Decision, Feedback, Thumb, Topic
from plaudit.core.settings import Settings, TracingSettings
from plaudit.core.tracing import NO_TRACING, Attributes, NoTracing
from plaudit.core.wire import decode_event, encode_event
from plaudit.serving.server import InferenceServer
from support import builders
from support.deployment import PLAUDIT, Service, deployed
from support.otlp_receiver import Received, Receiver, over_grpc, over_http
from support.shell import run_plaudit

SECRET = "what does Ada Lovelace ask"
USER = "ada.lovelace@example.org"
PREDICT = "plaudit.v1.PredictionService/Predict"
SEND = "plaudit.v1.FeedbackService/SendFeedback"


class Recorded:
    """A provider whose spans stay in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def all(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name in ("", span.name)]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.all(name)
        return span


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


@pytest.fixture
def server(tmp_path: Path, recorded: Recorded) -> Iterator[InferenceServer]:
    """A server whose spans stay in memory, without processes."""
    settings = load_settings(deployed(tmp_path))
    log = serving_log(settings)
    running = inference_server(settings, log, tracing=OtelTracing(recorded.provider))
    running.start()
    yield running
    running.stop()
    log.close()


@pytest.fixture
def client(server: InferenceServer, recorded: Recorded) -> Iterator[Client]:
    with Client(f"127.0.0.1:{server.port}", tracer_provider=recorded.provider) as client:
        yield client


def _until(condition: Callable[[], Any]) -> Any:
    """What the condition gives once it holds; the test's own timeout ends waiting in vain."""
    while not (found := condition()):
        pass
    return found


def _id(span: ReadableSpan) -> int:
    return int(span.context.span_id)


def _parent_id(span: ReadableSpan) -> int:
    """Id of the parent span; 0 if there is none."""
    return span.parent.span_id if span.parent is not None else 0


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def _links(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


# --- one process -----------------------------------------------------------------------------------------------------


def test_a_prediction_is_a_trace_from_the_client_to_the_batch(client: Client, recorded: Recorded) -> None:
    answer = client.predict({"question": SECRET}, user_id=USER, request_id="r7")
    batch = _until(lambda: recorded.all("batch"))[0]
    called, served = recorded.all(PREDICT)[::-1]
    assert (called.kind.name, served.kind.name) == ("CLIENT", "SERVER")
    assert (_parent_id(served), served.context.trace_id) == (_id(called), called.context.trace_id)
    assert {
        "plaudit.model": "tiny",
        "plaudit.version": 1,
        "plaudit.prediction_id": answer.prediction_id,
        "plaudit.request_id": "r7",
        "rpc.grpc.status_code": 0,
    }.items() <= _attributes(served).items()
    decode, wait = recorded.one("decode"), recorded.one("wait for the model")
    assert _parent_id(decode) == _parent_id(wait) == _id(served)
    assert batch.parent is None
    assert _links(batch) == {_id(wait)}
    assert (_attributes(batch)["plaudit.version"], _attributes(batch)["plaudit.requests"]) == (1, 1)


def test_a_decision_and_feedback_carry_their_trace_into_the_log(
    client: Client, recorded: Recorded, tmp_path: Path
) -> None:
    answer = client.predict({"question": SECRET}, user_id=USER)
    client.thumbs_up(answer, feedback_id="f1")
    appends = _until(lambda: len(recorded.all("append")) == 2 and recorded.all("append"))
    served = {span.name: _id(span) for span in recorded.all() if span.kind.name == "SERVER"}
    assert {frozenset(_links(append)) for append in appends} == {
        frozenset({served[PREDICT]}),
        frozenset({served[SEND]}),
    }
    sent = next(span for span in recorded.all(SEND) if span.kind.name == "SERVER")
    assert _attributes(sent)["plaudit.feedback_id"] == "f1"
    assert _attributes(sent)["plaudit.prediction_id"] == answer.prediction_id


def test_what_is_refused_says_so_without_saying_what_was_sent(client: Client, recorded: Recorded) -> None:
    with pytest.raises(ClientError):
        client.predict({"smell": SECRET}, user_id=USER)
    called, served = recorded.all(PREDICT)[::-1]
    for span in (called, served):
        assert span.status.status_code.name == "ERROR"
        assert _attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert not any(SECRET in span.to_json() or USER in span.to_json() for span in recorded.all())


def test_streams_are_traced_too(client: Client, recorded: Recorded, server: InferenceServer) -> None:
    answers = [client.predict({"question": SECRET}) for _ in range(2)]
    recorded.exporter.clear()
    list(client.stream_feedback([thumbs_up(answer) for answer in answers]))
    stream = _until(lambda: recorded.all("plaudit.v1.FeedbackService/StreamFeedback"))[0]
    assert any(_id(stream) in _links(append) for append in recorded.all("append"))


async def test_the_client_of_asyncio_is_traced_too(server: InferenceServer, recorded: Recorded) -> None:
    async with AsyncClient(f"127.0.0.1:{server.port}", tracer_provider=recorded.provider) as client:
        await client.predict({"question": SECRET})
    called, served = recorded.all(PREDICT)[::-1]
    assert (called.kind.name, served.kind.name) == ("CLIENT", "SERVER")
    assert _parent_id(served) == _id(called)


async def test_a_batch_links_to_every_request_that_it_answers(server: InferenceServer, recorded: Recorded) -> None:
    async with AsyncClient(f"127.0.0.1:{server.port}") as client:
        await asyncio.gather(*(client.predict({"question": f"{SECRET} {n}"}) for n in range(30)))
    waits = {_id(span) for span in recorded.all("wait for the model")}
    _until(lambda: sum(_attributes(span)["plaudit.requests"] for span in recorded.all("batch")) == 30)
    linked = [link for span in recorded.all("batch") for link in _links(span)]
    assert (len(linked), set(linked)) == (30, waits)


def test_without_tracing_a_request_only_passes_two_empty_spans(tmp_path: Path) -> None:
    """No interceptor, nothing around appends and batches; what is left traces nothing and collects no attributes."""
    settings = load_settings(deployed(tmp_path))
    log = serving_log(settings)
    server = inference_server(settings, log, tracing=service_tracing(settings, "plaudit-serve"))
    assert server._between() == []
    assert server._decision_log._append == server._feedback._append == log.append
    traced = (server._predict, server._predict._pipeline, server._feedback, server._models)
    for part in (server, *traced):
        assert part._tracing is NO_TRACING
    spans: list[str] = []

    class Watched(NoTracing):
        def span(self, name: str, **given: Any) -> AbstractContextManager[object]:
            spans.append(name)
            assert not given
            return super().span(name)

        def note(self, attributes: Attributes) -> None:
            raise AssertionError(attributes)

    for part in traced:
        part._tracing = Watched()
    server.start()
    with Client(f"127.0.0.1:{server.port}") as client:
        client.thumbs_up(client.predict({"question": SECRET}, user_id=USER))
    server.stop()
    log.close()
    assert spans == ["decode", "wait for the model"]


def test_without_tracing_its_library_is_not_even_loaded(tmp_path: Path) -> None:
    config = deployed(tmp_path)
    program = (
        "import sys\nfrom plaudit.compose.log import serving_log\n"
        "from plaudit.compose.serving import inference_server\n"
        "from plaudit.compose.tracing import service_tracing\nfrom plaudit.compose.settings import load_settings\n"
        f"from pathlib import Path\nsettings = load_settings(Path({str(config)!r}))\n"
        "log = serving_log(settings)\n"
        "server = inference_server(settings, log, tracing=service_tracing(settings, 'x'))\n"
        "import plaudit.client\nprint([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def otel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def told(**environment: str) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return told


def _settings(**fields: Any) -> Settings:
    return Settings(tracing=TracingSettings(**fields))


def test_tracing_is_off_unless_it_is_asked_for(otel: Callable[..., None]) -> None:
    assert service_tracing(_settings(), "plaudit-serve") is None
    otel(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_SDK_DISABLED="true")
    assert service_tracing(_settings(), "plaudit-serve") is None


@pytest.mark.parametrize("collector", [over_grpc, over_http])
@pytest.mark.parametrize("how", ["setting", "environment"])
def test_spans_reach_a_collector_over_grpc_and_http(collector: Any, how: str, otel: Callable[..., None]) -> None:
    protocol = "grpc" if collector is over_grpc else "http/protobuf"
    with collector() as receiver:
        if how == "setting":
            settings = _settings(endpoint=receiver.endpoint, protocol=protocol, sample_ratio=1.0)
        else:
            otel(OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
            settings = _settings()
        tracing = service_tracing(settings, "plaudit-serve")
        assert tracing is not None
        with tracing.span("done", attributes={"plaudit.version": 3}):
            pass
        tracing.close()
        (span,) = receiver.spans("done")
    assert (span.service, _attributes(span)["plaudit.version"]) == ("plaudit-serve", 3)


def test_the_environment_may_name_the_service(otel: Callable[..., None]) -> None:
    otel(OTEL_SERVICE_NAME="pets")
    with over_grpc() as receiver:
        tracing = otlp_tracing("plaudit-serve", endpoint=receiver.endpoint, protocol="grpc", sample_ratio=None)
        tracing.record("done", 1)
        tracing.close()
        assert [span.service for span in receiver.spans()] == ["pets"]


def test_a_share_of_none_keeps_what_a_caller_wants_kept_alone() -> None:
    with over_grpc() as receiver:
        tracing = otlp_tracing("s", endpoint=receiver.endpoint, protocol="grpc", sample_ratio=0.0)
        with tracing.span("begins here"):
            assert tracing.present() == ""
        with tracing.span("wanted", parent=f"00-{'1' * 32}-{'2' * 16}-01"):
            assert tracing.present().startswith(f"00-{'1' * 32}-")
        tracing.close()
        assert [span.name for span in receiver.spans()] == ["wanted"]


def test_what_cannot_be_set_is_named(monkeypatch: pytest.MonkeyPatch, otel: Callable[..., None]) -> None:
    otel(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    with pytest.raises(ConfigError, match=r"tracing\.protocol: 'http/json' is not one of grpc, http/protobuf"):
        service_tracing(_settings(), "plaudit-serve")
    monkeypatch.setitem(sys.modules, "plaudit.adapters.tracing.otel", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigError, match=r"pip install 'plaudit\[tracing\]'"):
        service_tracing(_settings(endpoint="http://127.0.0.1:1"), "plaudit-serve")


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{'0' * 32}-{'2' * 16}-01"])
def test_a_traceparent_that_is_none_is_as_if_there_were_none(recorded: Recorded, traceparent: str) -> None:
    tracing = OtelTracing(recorded.provider)
    with tracing.span("done", parent=traceparent, links=[traceparent]):
        pass
    span = recorded.one("done")
    assert (span.parent, span.links) == (None, ())


def test_events_keep_their_traceparent_in_the_log() -> None:
    decision = builders.a_decision(traceparent="00-a")
    feedback = builders.some_feedback("p1", Thumb(up=True), traceparent="00-b")
    for topic, event in ((Topic.DECISIONS, decision), (Topic.FEEDBACK, feedback)):
        read = decode_event(topic, encode_event(event))
        assert isinstance(read, Decision | Feedback)
        assert read.traceparent == event.traceparent


# --- commands and the console ----------------------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, server: InferenceServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """``command("versions", "--json")`` in this process, of the server whose spans stay in memory; its output."""

    def run(*arguments: str) -> str:
        where = ["--config", str(tmp_path / "plaudit.toml"), "--target", f"127.0.0.1:{server.port}"]
        done = run_plaudit(monkeypatch, capsys, *arguments, *where)
        assert "error" not in done.err
        return done.out + done.err

    return run


def test_commands_begin_traces_that_the_server_goes_on_with(
    command: Callable[..., str], collector: Receiver, recorded: Recorded, otel: Callable[..., None]
) -> None:
    otel(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    answer = json.loads(command("predict", "--content", f"question={SECRET}", "--user", USER, "--json"))
    command("feedback", answer["prediction_id"], "--up", "--user", USER)
    command("promote", "1")
    for name, method in (("predict", PREDICT), ("feedback", SEND), ("promote", "plaudit.v1.ModelService/Promote")):
        (around,) = collector.spans(f"plaudit {name}")
        (called,) = collector.spans(method)
        (served,) = [span for span in recorded.all(method) if span.kind.name == "SERVER"]
        assert (around.service, around.parent_id, called.parent_id) == ("plaudit-cli", "", around.span_id)
        assert f"{_parent_id(served):016x}" == called.span_id
    _says_nothing_private(collector.spans())


def test_a_command_whose_traces_cannot_be_made_is_done_all_the_same(
    command: Callable[..., str], otel: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    otel(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
    said = command("predict", "--content", "question=what", "--json")
    assert "not traced: tracing.protocol: 'http/json' is not one of" in said
    assert '"prediction_id"' in said


def test_the_console_begins_traces_too(
    tmp_path: Path, server: InferenceServer, collector: Receiver, recorded: Recorded, otel: Callable[..., None]
) -> None:
    otel(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
    where = ["--config", str(tmp_path / "plaudit.toml"), "--target", f"127.0.0.1:{server.port}"]
    console = Service([*PLAUDIT, "console", "--port", "0", *where, "--json"])
    try:
        page = console.event(event="ready")["page"]
        body = json.dumps({"content": {"question": {"text": SECRET}}, "user_id": USER}).encode()
        asked = urllib.request.Request(
            f"{page}api/models/tiny/predict", body, {"content-type": "application/json", "origin": page.rstrip("/")}
        )
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["version"] == 1
        (called,) = _until(lambda: collector.spans(PREDICT))
    finally:
        console.kill()
    (served,) = [span for span in recorded.all(PREDICT) if span.kind.name == "SERVER"]
    assert (called.service, f"{_parent_id(served):016x}") == ("plaudit-console", called.span_id)
    _says_nothing_private(collector.spans())


# --- across processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with over_grpc() as receiver:
        yield receiver


def test_a_thumb_can_be_followed_from_the_client_to_the_version_that_learned_it(
    tmp_path: Path, collector: Receiver, otel: Callable[..., None]
) -> None:
    """client → inference service → learner → version → inference service, each in a process of its own."""
    config = deployed(tmp_path)
    otel(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_BSP_SCHEDULE_DELAY="50")
    up = Service([*PLAUDIT, "up", "--config", str(config), "--json"])
    ours = Recorded()
    try:
        ready = [up.event(event="ready"), up.event(event="ready")]
        (target,) = [event["address"] for event in ready if event["service"] == "serve"]
        with Client(target, tracer_provider=ours.provider) as client:
            answer = client.predict({"question": SECRET}, user_id=USER)
            client.thumbs_up(answer)
            learned = next(rollout for rollout in client.watch_versions(timeout_s=120.0) if rollout.live != 1)
        _until(lambda: collector.spans("swap", version=learned.live))
    finally:
        up.kill()

    def id_of(span: ReadableSpan) -> str:
        return f"{_id(span):016x}"

    (asked,) = collector.spans(PREDICT)
    assert (asked.service, asked.parent_id) == ("plaudit-serve", id_of(ours.one(PREDICT)))
    assert asked.attributes["plaudit.prediction_id"] == answer.prediction_id
    (wait,) = collector.spans("wait for the model")
    (batch,) = collector.spans("batch")
    assert wait.span_id in batch.links

    (told,) = collector.spans(SEND)
    assert told.parent_id == id_of(ours.one(SEND))
    joins = [span for span in collector.spans("join") if told.span_id in span.links]
    assert [span.service for span in joins] == ["plaudit-learn"]
    (refresh,) = collector.spans("refresh", version=learned.live)
    assert told.span_id in refresh.links
    (swap,) = collector.spans("swap", version=learned.live)
    assert (swap.service, swap.parent_id, swap.trace_id) == ("plaudit-serve", refresh.span_id, refresh.trace_id)
    _says_nothing_private(collector.spans())


def _says_nothing_private(spans: list[Received]) -> None:
    assert spans
    for span in spans:
        assert SECRET.encode() not in span.raw
        assert USER.encode() not in span.raw
