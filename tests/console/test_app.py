"""The console over real HTTP, in front of a gRPC server that records what it is asked."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from plaudit.adapters.access.keys import KeyAuthenticator, KeyFile
from plaudit.adapters.registry.directory import DirectoryCatalog
from plaudit.client import AsyncClient
from plaudit.compose.access import console_login
from plaudit.compose.settings import settings_from
from plaudit.console.app import application, finite
from plaudit.console.hosts import known_hosts
from plaudit.console.labelled_answers import LabelledAnswers
from plaudit.console.ports import LearnerView, LearnerViews, Sources
from plaudit.console.server import open_port, serve
from plaudit.core.access import CallerRole
from plaudit.core.errors import ConfigError
from plaudit.core.ports.access import Authenticator
from plaudit.core.rollout import Change, promote
from plaudit.v1 import content_pb2, feedback_pb2, model_pb2
from support import builders
from support.recording_server import Recorder, recording_server


class Samples:
    def offered(self) -> dict[str, Sequence[str]]:
        return {"image": ["cat"]}

    def content(self, modality: str, name: str) -> tuple[bytes, str]:
        return {("image", "cat"): (b"png", "image/png")}[modality, name]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Browser:
    def __init__(self, port: int, recorder: Recorder) -> None:
        self.port = port
        self.recorder = recorder

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body: Any) -> Answer:
        return self.ask("POST", path, json.dumps(body).encode(), Content_Type="application/json")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Of a console whose server is a recorder and whose only model, ``tiny``, has one version."""
    with browsing(tmp_path, None) as made:
        yield made


@contextmanager
def browsing(tmp_path: Path, authenticator: Authenticator | None) -> Iterator[Browser]:
    catalog = DirectoryCatalog(tmp_path / "registry")
    registry = catalog.registry("tiny")
    builders.tiny_bundle(tmp_path / "made")
    registry.publish(tmp_path / "made")
    registry.set_rollout(promote(registry.rollout(), 1, Change("ada", 1.0, "because")))
    with recording_server() as recorder:
        recorder.rollout = model_pb2.Rollout(model="tiny", generation=1, live=1)
        recorder.manifest = {"spec": {"actions": ["cat"]}}
        listening = open_port("127.0.0.1", 0)
        loop = asyncio.new_event_loop()
        stopping = asyncio.Event()

        async def run() -> None:
            async with AsyncClient(recorder.target) as client:
                learners = LearnerViews(lambda model: LearnerView(lambda: None, LabelledAnswers(lambda: None)))
                sources = Sources(catalog, learners, {"tiny": Samples()})
                app = application(
                    client,
                    sources,
                    is_known_host=known_hosts("127.0.0.1", []),
                    max_body_bytes=10_000,
                    authenticator=authenticator,
                )
                await serve(app, listening, stopping)

        thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
        thread.start()
        try:
            yield Browser(listening.getsockname()[1], recorder)
        finally:
            loop.call_soon_threadsafe(stopping.set)
            thread.join()
            loop.close()


def test_the_page_and_its_files_come_from_here_alone(browser: Browser) -> None:
    page = browser.get("/")
    assert page.status == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in page.body
    assert b"https://" not in page.body
    for name in ("console.js", "console.css", "uplot/uPlot.iife.min.js", "uplot/LICENSE", "icon.svg"):
        answer = browser.get(f"/static/{name}")
        assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert browser.get("/static/../app.py").status == 404


def test_another_sites_name_for_this_machine_is_refused(browser: Browser) -> None:
    assert browser.get("/", Host="evil.example").status == 400


def test_the_playground_learns_the_spec_and_the_samples(browser: Browser) -> None:
    assert browser.get("/api/models").json == {"models": ["tiny"]}
    known = browser.get("/api/models/tiny").json
    assert known == {"model": "tiny", "spec": {"actions": ["cat"]}, "samples": {"image": ["cat"]}}
    sample = browser.get("/api/models/tiny/samples/image/cat")
    assert (sample.body, sample.headers["content-type"]) == (b"png", "image/png")
    assert browser.get("/api/models/tiny/samples/image/dog").status == 404
    assert browser.get("/api/models/other/samples/image/cat").status == 404


def test_a_model_that_does_not_serve_says_what_makes_its_first_version(browser: Browser) -> None:
    browser.recorder.rollout = model_pb2.Rollout(model="tiny")
    answer = browser.get("/api/models/tiny")
    assert (answer.status, "plaudit pretrain" in answer.json["error"]) == (503, True)


def test_predict_sends_every_kind_of_content_and_keeps_the_order_of_scores(browser: Browser) -> None:
    encoded = base64.b64encode(b"bytes").decode()
    content = {
        "a": {"image": encoded},
        "b": {"audio": encoded},
        "c": {"text": "hi"},
        "d": {"tensor": [[1, 2]], "dtype": "float32"},
    }
    answer = browser.post("/api/models/tiny/predict", {"content": content, "user_id": "ada"})
    assert answer.json["scores"] == [["dog", 0.75], ["cat", 0.25]]
    assert answer.json["contributions"] == {"image": 0.5}
    (request,) = browser.recorder.received
    assert (request.model, request.user_id, request.explain) == ("tiny", "ada", True)
    assert (request.content["a"].image, request.content["b"].audio) == (b"bytes", b"bytes")
    assert request.content["c"].text == "hi"
    sent = request.content["d"].tensor
    assert (sent.data_type, list(sent.shape)) == (content_pb2.DATA_TYPE_FP32, [1, 2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "content: list is no object"),
        ({"a": {"image": "%"}}, 'content["a"]: not base64'),
        ({"a": {"tensor": [[1], [2, 3]], "dtype": "float32"}}, 'content["a"]: not a tensor'),
        ({"a": {"tensor": ["x"], "dtype": "float32"}}, 'content["a"]: not a tensor'),
        ({"a": {"tensor": [1], "dtype": "colour"}}, "content[\"a\"].dtype: 'colour' is none of float16"),
        ({"a": {"tensor": [1], "dtype": "V706000000"}}, "content[\"a\"].dtype: 'V706000000' is none of"),
        ({"a": {"tensor": [1], "dtype": "f4,("}}, "content[\"a\"].dtype: 'f4,(' is none of"),
        ({"a": {"tensor": [10**400], "dtype": "int64"}}, 'content["a"]: not a tensor'),
        ({"a\ud800": {"text": "x"}}, "is not UTF-8"),
        ({"a": {"text": "caf\udce9"}}, 'content["a"]: is not UTF-8: it has the lone surrogate U+DCE9 at place 3'),
        ({"a": {"smell": "x"}}, 'content["a"]: needs one of'),
        ({"a": "x"}, 'content["a"]: needs one of'),
    ],
)
def test_content_that_cannot_be_understood_is_named(
    browser: Browser, content: dict[str, Any] | list[Any], said: str
) -> None:
    answer = browser.post("/api/models/tiny/predict", {"content": content})
    assert (answer.status, said in answer.json["error"]) == (400, True), answer.json
    assert browser.recorder.received == []


@pytest.mark.parametrize(
    ("signal", "field", "value"),
    [
        ({"thumb": "up"}, "thumb", feedback_pb2.THUMB_UP),
        ({"thumb": "down"}, "thumb", feedback_pb2.THUMB_DOWN),
        ({"correction": "dog"}, "correction", "dog"),
    ],
)
def test_feedback_is_sent_with_the_pages_own_id(
    browser: Browser, signal: dict[str, str], field: str, value: feedback_pb2.Thumb | str
) -> None:
    body = {"prediction_id": "signed", "user_id": "ada", "feedback_id": "f1"} | signal
    assert browser.post("/api/feedback", body).json["feedback_id"] == "f1"
    (request,) = browser.recorder.received
    assert (request.prediction_id, request.user_id, request.feedback_id) == ("signed", "ada", "f1")
    assert getattr(request, field) == value


@pytest.mark.parametrize("signal", [{}, {"thumb": "sideways"}, {"correction": 3}])
def test_feedback_without_a_signal_is_refused(browser: Browser, signal: dict[str, Any]) -> None:
    answer = browser.post("/api/feedback", {"prediction_id": "signed", "feedback_id": "f1"} | signal)
    assert (answer.status, answer.json["error"].startswith("signal: ")) == (400, True)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.FAILED_PRECONDITION, 409),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
        (grpc.StatusCode.INTERNAL, 502),
    ],
)
def test_what_the_server_refuses_is_passed_on_with_its_reason(
    browser: Browser, code: grpc.StatusCode, status: int
) -> None:
    browser.recorder.failures.append((code, "feedback_id: 'f9' was never recorded"))
    answer = browser.get("/api/receipts/f9")
    assert answer.status == status
    assert answer.json == {"error": "feedback_id: 'f9' was never recorded", "field": "feedback_id"}


def test_the_loop_of_a_model_and_of_none(browser: Browser) -> None:
    assert browser.get("/api/models/tiny/loop").json["rollout"]["live"] == 1
    answer = browser.get("/api/models/other/loop")
    assert (answer.status, "'other' is not one of ['tiny']" in answer.json["error"]) == (404, True)


def test_numbers_that_json_does_not_have_are_none() -> None:
    assert finite({"e": float("inf"), "b": (float("nan"), 1.5, "x", None, {"c": -math.inf})}) == {
        "e": None,
        "b": [None, 1.5, "x", None, {"c": None}],
    }


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b" " * 10_001, "application/json", 413),
        (b'{"user_id": 3}', "application/json", 400),
    ],
)
def test_a_body_that_cannot_be_a_request_is_refused(browser: Browser, body: bytes, kind: str, status: int) -> None:
    answer = browser.ask("POST", "/api/models/tiny/predict", body, Content_Type=kind)
    assert answer.status == status
    assert answer.json["error"]


def test_only_listed_methods_and_paths_exist(browser: Browser) -> None:
    assert browser.get("/api/feedback").status == 405
    assert browser.get("/nothing").json["error"] == "Not Found"


def test_a_taken_port_is_named() -> None:
    with open_port("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"console.port: {port} cannot be opened on 127.0.0.1"):
            open_port("127.0.0.1", port)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 9_000,
        b'{"content": ' + b"[" * 4_000 + b"]" * 4_000 + b"}",
        b'{"user_id": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
    ids=["open", "content", "user_id"],
)
def test_json_of_any_depth_is_refused_and_no_failure(browser: Browser, body: bytes) -> None:
    answer = browser.ask("POST", "/api/models/tiny/predict", body, Content_Type="application/json")
    assert answer.status == 400
    assert len(answer.json["error"]) < 300


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_a_page_of_another_site_may_not_use_the_console(browser: Browser, origin: str) -> None:
    assert browser.get("/", Origin=origin).status == 403


def test_the_page_itself_may(browser: Browser) -> None:
    assert browser.get("/", Origin=f"http://127.0.0.1:{browser.port}").status == 200


@pytest.mark.parametrize(
    ("listening", "names", "known", "unknown"),
    [
        ("127.0.0.1", [], ["127.0.0.1", "::1", "localhost"], ["evil.example", "", "192.0.2.1"]),
        ("[2001:db8::1]", [], ["2001:db8::1"], ["2001:db8::2"]),
        ("0.0.0.0", [], ["192.0.2.1", "2001:db8::1", "localhost"], ["evil.example", "127.0.0.1.evil.example"]),
        ("::", ["plaudit.example"], ["plaudit.example", "192.0.2.1"], ["evil.example"]),
        ("0.0.0.0", ["*"], ["evil.example"], []),
    ],
)
def test_names_that_the_page_answers_to(listening: str, names: list[str], known: list[str], unknown: list[str]) -> None:
    """Listening everywhere is no reason to answer to any name: a site's own name may have been resolved to us."""
    is_known = known_hosts(listening, names)
    assert [is_known(host) for host in known] == [True] * len(known)
    assert [is_known(host) for host in unknown] == [False] * len(unknown)


def test_an_ipv6_literal_is_a_host(browser: Browser) -> None:
    assert browser.get("/", Host="[::1]:8004").status == 200
    assert browser.get("/", Host="[2001:db8::1]:8004").status == 400


# --- the login -------------------------------------------------------------------------------------------------------


def _basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'any:{password}'.encode()).decode()}"}


@pytest.mark.parametrize("path", ["/", "/static/ask.js", "/api/models", "/api/models/tiny/loop", "/api/receipts/f1"])
def test_nothing_is_shown_without_a_login_where_one_is_needed(tmp_path: Path, path: str) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    both = [CallerRole.PREDICT, CallerRole.FEEDBACK]
    _, key = keys.create("ada", both)
    _, half = keys.create("half", [CallerRole.PREDICT])
    with browsing(tmp_path, KeyAuthenticator(tmp_path / "keys.json")) as browser:
        refused = browser.get(path)
        assert (refused.status, "basic" in refused.headers["www-authenticate"].lower()) == (401, True)
        for wrong in (_basic("guessed"), {"Authorization": f"Bearer {key}"}, {"Authorization": "Basic ?"}):
            assert browser.get(path, **wrong).status == 401
        assert browser.get(path, **_basic(half)).status == 403
        assert browser.get(path, **_basic(key)).status == 200
        assert browser.get(path, Host="evil.example", **_basic(key)).status == 400


def test_who_is_logged_in_asks_and_rates_as_nobody_else(tmp_path: Path) -> None:
    _, key = KeyFile(tmp_path / "keys.json").create("ada", [CallerRole.PREDICT, CallerRole.FEEDBACK])
    with browsing(tmp_path, KeyAuthenticator(tmp_path / "keys.json")) as browser:
        for user, status in (("", 200), ("ada", 200), ("bob", 403)):
            body = json.dumps({"prediction_id": "p", "user_id": user, "feedback_id": "f", "thumb": "up"}).encode()
            answer = browser.ask("POST", "/api/feedback", body, Content_Type="application/json", **_basic(key))
            assert answer.status == status
        assert [request.user_id for request in browser.recorder.received] == ["ada", "ada"]


def test_a_console_that_others_reach_needs_keys(tmp_path: Path) -> None:
    settings = settings_from({"data_dir": str(tmp_path), "console": {"host": "0.0.0.0"}})
    with pytest.raises(ConfigError, match=r"console\.host: .*plaudit keys create"):
        console_login(settings)
    KeyFile(tmp_path / "keys.json").create("ada", [CallerRole.PREDICT])
    assert console_login(settings) is not None
    assert console_login(settings_from({"data_dir": str(tmp_path)})) is None
