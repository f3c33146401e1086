"""PredictionService over a real channel: what an answer says, what is logged, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import io
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status
from PIL import Image

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.adapters.registry.directory import DirectoryRegistry
from plaudit.core.events import Role
from plaudit.core.ports.runtime import ModelRuntime
from plaudit.core.prediction_id import PredictionIds
from plaudit.core.wire import contents_to_wire
from plaudit.v1 import content_pb2, prediction_pb2, prediction_pb2_grpc
from support.builders import png, tiny_content, tiny_head_refresh, wav
from support.serving_harness import Serve, StuckRuntime, a_request, decisions, features_of, go_live, refusal, until

ACTIONS = ("cat", "dog", "bird", "fish")


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_an_answer_and_the_decision_that_is_logged(
    serve: Serve, registry: DirectoryRegistry, ids: PredictionIds, log: SqliteLog
) -> None:
    running = await serve()
    answer = await running.predict(user_id="ada", user_group="de-DE", request_id="r1", allowed_actions=["cat", "fish"])
    manifest = registry.manifest(1)

    assert answer.action in ("cat", "fish")
    probabilities = {score.action: score.probability for score in answer.scores}
    assert set(probabilities) == {"cat", "fish"}
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert answer.propensity == probabilities[answer.action]
    assert (answer.version, answer.version_digest) == (1, manifest.digest)
    assert (answer.role, answer.model, answer.request_id) == (prediction_pb2.ROLE_LIVE, "tiny", "r1")
    signed = ids.check(answer.prediction_id, now_s=time.time())
    assert (signed.model, signed.version, signed.action, signed.propensity) == (
        "tiny",
        1,
        answer.action,
        answer.propensity,
    )

    await asyncio.to_thread(running.server.stop)
    (decision,) = decisions(log)
    assert decision.prediction_id == answer.prediction_id
    assert (decision.version, decision.version_digest, decision.role) == (1, manifest.digest, Role.LIVE)
    assert (decision.action, decision.propensity) == (answer.action, answer.propensity)
    assert (decision.user_id, decision.user_group, decision.request_id) == ("ada", "de-DE", "r1")
    assert decision.allowed_actions == ("cat", "fish")
    assert decision.time_s == pytest.approx(signed.time_s)
    features = features_of(decision)
    assert features.trunk_digest == manifest.trunk_digest
    assert (features.embedding.shape, features.base_logits.shape) == ((8,), (4,))
    assert contents_to_wire(decision.content) == contents_to_wire(tiny_content())


async def test_content_is_not_logged_where_it_must_not_be(serve: Serve, log: SqliteLog) -> None:
    running = await serve(store_content=False)
    await running.predict()
    await asyncio.to_thread(running.server.stop)
    (decision,) = decisions(log)
    assert decision.content == {}
    assert decision.features is not None


async def test_scores_are_listed_most_probable_first(serve: Serve) -> None:
    running = await serve()
    scores = [score.probability for score in (await running.predict()).scores]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    for top_k, expected in ((1, 1), (3, 3), (100, 4)):
        answer = await running.predict(top_k=top_k)
        assert [score.probability for score in answer.scores] == pytest.approx(scores[:expected])


async def test_greedy_takes_the_most_probable_with_certainty(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    for seed in range(10):
        answer = await running.predict(seed, greedy=True)
        assert (answer.action, answer.propensity) == (answer.scores[0].action, 1.0)
        allowed = [score.action for score in answer.scores[2:]]
        second = await running.predict(seed, greedy=True, allowed_actions=allowed)
        assert second.action == allowed[0]
    await asyncio.to_thread(running.server.stop)
    assert all(decision.greedy for decision in decisions(log))


async def test_any_modality_may_be_missing(serve: Serve) -> None:
    running = await serve()
    content = contents_to_wire(tiny_content())
    seen = set()
    for size in range(1, 5):
        for names in itertools.combinations(content, size):
            answer = await running.predict(content={name: content[name] for name in names}, greedy=True)
            seen.add(answer.scores[0].probability)
    assert len(seen) == 15  # 2⁴ − 1 subsets, each with a probability of its own


async def test_a_tensor_may_stand_for_any_modality(serve: Serve) -> None:
    """An image as pixels in [0, 1], computed here, gives what the encoded image gives."""
    running = await serve()
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    ready = content_pb2.Tensor(
        data_type=content_pb2.DATA_TYPE_FP32, shape=[1, 8, 8], data=(pixels / np.float32(255)).tobytes()
    )
    encoded = await running.predict(content={"image": content_pb2.Content(image=file.getvalue())}, greedy=True)
    decoded = await running.predict(content={"image": content_pb2.Content(tensor=ready)}, greedy=True)
    assert encoded.scores == decoded.scores


async def test_explanations_add_up(serve: Serve, registry: DirectoryRegistry) -> None:
    """Σ φ = π(a | all modalities) − π(a | none); with one modality it is that difference alone."""
    running = await serve()
    answer = await running.predict(explain=True)
    assert set(answer.contributions) == {"image", "audio", "question", "sensor"}
    # Without any content the tiny trunk gives base logits 0, so π is uniform.
    picked = next(score.probability for score in answer.scores if score.action == answer.action)
    assert sum(answer.contributions.values()) == pytest.approx(picked - 0.25)

    content = {"question": contents_to_wire(tiny_content())["question"]}
    alone = await running.predict(content=content, explain=True)
    picked = next(score.probability for score in alone.scores if score.action == alone.action)
    assert alone.contributions["question"] == pytest.approx(picked - 0.25)
    assert not (await running.predict()).contributions


async def test_many_at_once_each_get_their_own_answer(serve: Serve) -> None:
    running = await serve(max_batch=4)
    alone = {seed: (await running.predict(seed, greedy=True)).scores for seed in range(12)}
    answers = await asyncio.gather(*(running.predict(seed % 12, greedy=True) for seed in range(60)))
    for seed, answer in enumerate(answers):
        expected = {score.action: score.probability for score in alone[seed % 12]}
        found = {score.action: score.probability for score in answer.scores}
        assert found == pytest.approx(expected, rel=1e-4)
    assert running.metric("plaudit_serving_batch_requests_count") < 72  # some shared a batch


# --- wrong requests --------------------------------------------------------------------------------------------------


def text(value: str) -> content_pb2.Content:
    return content_pb2.Content(text=value)


def tensor(array: npt.NDArray[Any], **fields: Any) -> content_pb2.Content:
    defaults: dict[str, Any] = {"data_type": content_pb2.DATA_TYPE_FP32, "shape": array.shape, "data": array.tobytes()}
    return content_pb2.Content(tensor=content_pb2.Tensor(**(defaults | fields)))


WRONG_CONTENT = {
    "none": ({}, "content: is empty; give at least one of"),
    "unknown modality": ({"smell": text("hi")}, "content[\"smell\"]: is not a modality of 'tiny'"),
    "nothing set": ({"image": content_pb2.Content()}, 'content["image"]: is empty; set one of'),
    "text for an image": ({"image": text("a cat")}, 'content["image"]: is text, but this modality takes image'),
    "sound for an image": (
        {"image": content_pb2.Content(audio=wav())},
        'content["image"]: is audio, but this modality takes image',
    ),
    "an image that is none": ({"image": content_pb2.Content(image=b"I am no image")}, "is not an image; send a PNG"),
    "half an image": ({"image": content_pb2.Content(image=png()[:60])}, 'content["image"]: '),
    "no bytes": ({"image": content_pb2.Content(image=b"")}, 'content["image"]: 0 bytes'),
    "a truncated WAV": ({"audio": content_pb2.Content(audio=wav()[:300])}, 'content["audio"]: the WAV is cut short'),
    "a sound that is none": ({"audio": content_pb2.Content(audio=b"la la la")}, 'content["audio"]: '),
    "10 MB of text": ({"question": text("x" * 10_000_000)}, 'content["question"]: 10000000 bytes of text are more'),
    "blank text": ({"question": text("  ")}, 'content["question"]: the text'),
    "another shape": (
        {"sensor": tensor(np.zeros((2, 2), np.float32))},
        'content["sensor"]: takes the shape [4], got a tensor of [2, 2]',
    ),
    "another dtype": (
        {"sensor": tensor(np.full(4, 2**24 + 1), data_type=content_pb2.DATA_TYPE_INT64)},
        'content["sensor"]: takes float32, got a tensor of int64 whose value 16777217 at [0] is none',
    ),
    "too few bytes": ({"sensor": tensor(np.zeros(4, np.float32), data=b"abc")}, 'content["sensor"].data: has 3 bytes'),
    "no dtype": ({"sensor": tensor(np.zeros(4, np.float32), data_type=0)}, 'content["sensor"].data_type: 0'),
    "not finite": (
        {"sensor": tensor(np.array([1, np.nan, 2, 3], np.float32))},
        'content["sensor"]: the tensor holds nan',
    ),
    "one right and one wrong": (
        contents_to_wire(tiny_content()) | {"image": content_pb2.Content(image=b"no")},
        'content["image"]: ',
    ),
}


async def test_wrong_content_is_named(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    for content, complaint in WRONG_CONTENT.values():
        code, details = await refusal(running.predict(content=content))
        assert code is grpc.StatusCode.INVALID_ARGUMENT, details
        assert complaint in details
        assert len(details) < 500
    assert (await running.predict()).action in ACTIONS  # and it goes on
    failed = running.metric(
        "plaudit_serving_requests_total", method="PredictionService/Predict", code="INVALID_ARGUMENT"
    )
    assert failed == len(WRONG_CONTENT)
    await asyncio.to_thread(running.server.stop)
    assert len(decisions(log)) == 1


@pytest.mark.parametrize(
    ("fields", "code", "complaint"),
    [
        ({"model": "other"}, grpc.StatusCode.NOT_FOUND, "model: 'other' is not served here; served are ['tiny']"),
        ({"allowed_actions": ["cow"]}, grpc.StatusCode.INVALID_ARGUMENT, "allowed_actions[0]: 'cow' is not an action"),
        ({"allowed_actions": ["cat", ""]}, grpc.StatusCode.INVALID_ARGUMENT, "allowed_actions[1]: is an empty string"),
        (
            {"allowed_actions": ["cat", "dog", "cat"]},
            grpc.StatusCode.INVALID_ARGUMENT,
            "allowed_actions[2]: 'cat' is there twice",
        ),
        ({"top_k": -1}, grpc.StatusCode.INVALID_ARGUMENT, "top_k: -1 is negative"),
        (
            {"user_group": "a b"},
            grpc.StatusCode.INVALID_ARGUMENT,
            "user_group: 'a b' is not a group label; send a letter",
        ),
        ({"user_group": "-x"}, grpc.StatusCode.INVALID_ARGUMENT, "user_group: '-x' is not a group label"),
        ({"user_group": "x" * 33}, grpc.StatusCode.INVALID_ARGUMENT, "up to 31 letters, digits, dots, dashes"),
        ({"user_group": "größe"}, grpc.StatusCode.INVALID_ARGUMENT, "user_group: 'größe' is not a group label"),
    ],
)
async def test_wrong_fields_are_named(
    serve: Serve, fields: dict[str, Any], code: grpc.StatusCode, complaint: str
) -> None:
    running = await serve()
    found, details = await refusal(running.predict(**fields))
    assert found is code
    assert complaint in details


async def test_the_model_may_be_named(serve: Serve) -> None:
    running = await serve()
    assert (await running.predict(model="tiny")).model == "tiny"


async def test_the_limits_are_those_of_the_settings(serve: Serve) -> None:
    running = await serve(
        max_image_bytes=10, max_audio_bytes=10, max_text_bytes=10, max_audio_duration_s=0.01, max_image_pixels=10
    )
    for name, complaint in (("image", "bytes of image"), ("audio", "bytes of sound"), ("question", "bytes of text")):
        content = {name: contents_to_wire(tiny_content())[name]}
        code, details = await refusal(running.predict(content=content))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f'content["{name}"]: ' in details
        assert complaint in details


async def test_a_message_beyond_the_limit_is_refused_by_the_transport(serve: Serve) -> None:
    running = await serve(max_message_bytes=100_000)
    code, _ = await refusal(running.predict(content={"question": text("x" * 200_000)}))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_no_version_is_live(serve: Serve, tmp_path: Path) -> None:
    running = await serve(registries=[DirectoryRegistry(tmp_path / "empty", "tiny")])
    code, details = await refusal(running.predict())
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "no live version yet" in details


async def test_too_many_modalities_to_explain(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plaudit.serving.engine.pipeline.MAX_EXPLAINED_MODALITIES", 3)
    running = await serve()
    code, details = await refusal(running.predict(explain=True))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert details == "explain: 4 modalities are given; explanations take 3 at most"


async def test_overload_is_refused_at_once_and_the_expired_are_never_computed(
    serve: Serve, runtime: ModelRuntime, log: SqliteLog
) -> None:
    stuck = StuckRuntime(runtime)
    running = await serve(runtime=stuck, queue_limit=3, max_batch=1, workers=1)
    stuck.stuck = True
    text_only = {"question": text("which animal")}
    first = asyncio.create_task(running.predict(content=text_only))
    assert await asyncio.to_thread(stuck.entered.wait, 30)
    certainly_expired_s = time.monotonic() + 1.5  # the client's clock may run out a moment before the server's does
    hasty = [
        asyncio.create_task(refusal(running.predictions.Predict(a_request(content=text_only), timeout=1.0)))
        for _ in range(2)
    ]
    await until(lambda: running.metric("plaudit_serving_queue_requests", model="tiny") == 2)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await running.predict(content=text_only)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "(3 at once)" in (refused.value.details() or "")
    (hint,) = rpc_status.from_call(refused.value).details
    retry = RetryInfo()
    assert hint.Unpack(retry)
    assert 0 < retry.retry_delay.ToTimedelta().total_seconds() < 1
    assert [code for code, _ in await asyncio.gather(*hasty)] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    await until(lambda: time.monotonic() > certainly_expired_s)
    stuck.go_on.set()
    assert (await first).action in ACTIONS
    left = {"method": "PredictionService/Predict", "code": "DEADLINE_EXCEEDED"}
    await until(lambda: running.metric("plaudit_serving_requests_total", **left) == 2)
    assert (await running.predict(content=text_only)).action in ACTIONS
    assert stuck.rows == 2
    await asyncio.to_thread(running.server.stop)
    assert len(decisions(log)) == 2


async def test_an_error_inside_is_not_told(serve: Serve, runtime: ModelRuntime) -> None:
    broken = threading.Event()

    class Failing:
        def load(self, folder: Any) -> Any:
            model: Any = runtime.load(folder)
            head = model.head

            def fail(*features: Any) -> Any:
                if broken.is_set():
                    raise OSError("/secret/path")
                return head(*features)

            def warm(sizes: Any, again: bool = False) -> None:
                fail(np.zeros((1, 8), np.float32), np.zeros((1, 4), np.float32))

            model.head, model.warm = fail, warm
            return model

    running = await serve(runtime=Failing())
    broken.set()
    code, details = await refusal(running.predict())
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    assert running.metric("plaudit_serving_requests_total", method="PredictionService/Predict", code="INTERNAL") == 1


# --- streams ---------------------------------------------------------------------------------------------------------


def start(
    *, streamed: dict[str, Any] | None = None, interim_interval_ms: int = 0, **fields: Any
) -> prediction_pb2.PredictStreamRequest:
    fields.setdefault("content", {"question": contents_to_wire(tiny_content())["question"]})
    request = prediction_pb2.PredictRequest(greedy=True, **fields)
    return prediction_pb2.PredictStreamRequest(
        start=prediction_pb2.PredictStart(
            request=request, streamed=streamed or {}, interim_interval_ms=interim_interval_ms
        )
    )


def chunk(modality: str, data: bytes) -> prediction_pb2.PredictStreamRequest:
    return prediction_pb2.PredictStreamRequest(chunk=prediction_pb2.ContentChunk(modality=modality, data=data))


END = prediction_pb2.PredictStreamRequest(end=prediction_pb2.PredictEnd())
CANCEL = prediction_pb2.PredictStreamRequest(cancel=prediction_pb2.PredictCancel())


async def test_streamed_speech_gives_what_the_same_speech_gives_in_one_piece(serve: Serve) -> None:
    running = await serve()
    samples = wav()[44:]
    pcm = prediction_pb2.StreamedContent(pcm16_sample_rate_hz=8000)
    encoded = prediction_pb2.StreamedContent(encoded_audio=True)
    steps = [
        start(streamed={"audio": pcm}, request_id="pcm"),
        *(chunk("audio", samples[i : i + 100]) for i in range(0, len(samples), 100)),
        END,
        start(streamed={"audio": encoded}, request_id="wav"),
        chunk("audio", wav()),
        END,
    ]
    first, second = [answer async for answer in running.predictions.PredictStream(iter(steps))]
    content = contents_to_wire(tiny_content())
    whole = await running.predict(content={"audio": content["audio"], "question": content["question"]}, greedy=True)
    assert first.final.scores == second.final.scores == whole.scores
    assert (first.request_id, second.request_id) == ("pcm", "wav")


async def test_answers_come_in_order_and_cancelled_ones_are_not_logged(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    steps = [start(request_id="a"), END, start(request_id="b"), CANCEL, start(request_id="c"), END]
    answers = [answer async for answer in running.predictions.PredictStream(iter(steps))]
    assert [answer.request_id for answer in answers] == ["a", "b", "c"]
    assert [answer.WhichOneof("result") for answer in answers] == ["final", "cancelled", "final"]
    await asyncio.to_thread(running.server.stop)
    assert sorted(decision.request_id for decision in decisions(log)) == ["a", "c"]  # worked on at once


async def test_a_prediction_can_be_given_up_while_it_is_computed(
    serve: Serve, runtime: ModelRuntime, log: SqliteLog
) -> None:
    stuck = StuckRuntime(runtime)
    running = await serve(runtime=stuck)
    stuck.stuck = True
    call = running.predictions.PredictStream()
    await call.write(start(request_id="slow"))
    await call.write(END)
    assert await asyncio.to_thread(stuck.entered.wait, 30)
    await call.write(CANCEL)
    answer = await call.read()
    assert (answer.request_id, answer.WhichOneof("result")) == ("slow", "cancelled")
    stuck.go_on.set()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await asyncio.to_thread(running.server.stop)
    assert decisions(log) == []


PCM = {"audio": prediction_pb2.StreamedContent(pcm16_sample_rate_hz=8000)}


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([END], "end: came while no prediction is open"),
        ([chunk("audio", b"")], "chunk: came while no prediction is open"),
        ([start(), start()], "start: came while a prediction is open"),
        ([start(), chunk("audio", b"ab")], "chunk.modality: 'audio' is not among"),
        ([start(streamed=PCM), chunk("audio", b"abc"), END], 'content["audio"]: 3 bytes are not'),
        ([start(streamed={"audio": prediction_pb2.StreamedContent()})], 'streamed["audio"]: has no format'),
        ([start(streamed={"question": PCM["audio"]})], 'streamed["question"]: is in request.content too'),
        ([start(content={}, streamed=PCM), END], "content: is empty"),
        ([start(content={}, streamed={"smell": PCM["audio"]})], 'streamed["smell"]: is not'),
        ([prediction_pb2.PredictStreamRequest()], "step: is missing"),
    ],
)
async def test_wrong_steps_end_the_stream(
    serve: Serve, steps: list[prediction_pb2.PredictStreamRequest], complaint: str
) -> None:
    running = await serve()

    async def read() -> None:
        async for _ in running.predictions.PredictStream(iter(steps)):
            pass

    code, details = await refusal(read())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in details


async def test_which_version_answered_stays_true_over_a_swap(
    serve: Serve, registry: DirectoryRegistry, tmp_path: Path
) -> None:
    """What :mod:`test_server` does under load, here step by step."""
    running = await serve()
    assert (await running.predict()).version == 1
    tiny_head_refresh(tmp_path / "sure", registry.folder(1), prefer="bird")
    number = registry.publish(tmp_path / "sure").version
    go_live(registry, number)
    while (answer := await running.predict(greedy=True)).version == 1:
        assert answer.version_digest == registry.manifest(1).digest
    assert (answer.version, answer.version_digest) == (number, registry.manifest(number).digest)
    assert answer.action == "bird"


PCM = {"audio": prediction_pb2.StreamedContent(pcm16_sample_rate_hz=8000)}
SILENCE = bytes(320)  # 20 ms


async def test_interim_answers_come_while_content_arrives_and_are_not_logged(serve: Serve, log: SqliteLog) -> None:
    running = await serve()
    call = running.predictions.PredictStream()
    await call.write(start(streamed=PCM, interim_interval_ms=1, request_id="r1"))
    for _ in range(2):
        reading = asyncio.create_task(call.read())
        while not reading.done():
            await call.write(chunk("audio", SILENCE))
            await asyncio.sleep(0)
        interim = reading.result()
        assert (interim.WhichOneof("result"), interim.request_id) == ("interim", "r1")
        assert (interim.interim.prediction_id, interim.interim.version) == ("", 1)
        assert sum(score.probability for score in interim.interim.scores) == pytest.approx(1.0)
    await call.write(END)
    await call.done_writing()
    rest = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        rest.append(answer)
    assert rest[-1].final.prediction_id
    assert {answer.WhichOneof("result") for answer in rest[:-1]} <= {"interim"}
    await asyncio.to_thread(running.server.stop)
    assert len(decisions(log)) == 1


async def test_an_interim_answer_under_way_does_not_delay_the_final_one(
    serve: Serve, runtime: ModelRuntime, log: SqliteLog
) -> None:
    stuck = StuckRuntime(runtime)
    running = await serve(runtime=stuck, workers=2)
    call = running.predictions.PredictStream()
    stuck.stuck = True
    await call.write(start(streamed=PCM, interim_interval_ms=1))
    while not stuck.entered.is_set():
        await call.write(chunk("audio", SILENCE))
        await asyncio.sleep(0)
    stuck.stuck = False  # for the other worker; the interim answer stays in the model
    await call.write(END)
    assert (await call.read()).WhichOneof("result") == "final"
    stuck.go_on.set()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await asyncio.to_thread(running.server.stop)
    assert len(decisions(log)) == 1


async def test_content_that_cannot_be_read_yet_has_no_interim_answer(serve: Serve) -> None:
    """A WAV whose header has not arrived; the final answer says what is wrong with it."""
    running = await serve()
    call = running.predictions.PredictStream()
    encoded = {"audio": prediction_pb2.StreamedContent(encoded_audio=True)}
    await call.write(start(streamed=encoded, interim_interval_ms=1))
    for _ in range(50):
        await call.write(chunk("audio", b"RIFF"))
    await call.write(END)
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert 'content["audio"]' in (refused.value.details() or "")


async def test_a_negative_interval(serve: Serve) -> None:
    running = await serve()
    call = running.predictions.PredictStream()
    await call.write(start(interim_interval_ms=-1))
    with pytest.raises(grpc.aio.AioRpcError, match="interim_interval_ms: -1 is negative"):
        await call.read()


async def test_a_prediction_given_up_in_the_model_is_answered_at_once_and_not_logged(
    serve: Serve, runtime: ModelRuntime, log: SqliteLog
) -> None:
    stuck = StuckRuntime(runtime)
    running = await serve(runtime=stuck)
    call = running.predictions.PredictStream()
    stuck.stuck = True
    await call.write(start(request_id="interrupted"))
    await call.write(END)
    assert await asyncio.to_thread(stuck.entered.wait, 30)
    await call.write(CANCEL)
    answer = await call.read()  # though the model is still at it
    assert (answer.WhichOneof("result"), answer.request_id) == ("cancelled", "interrupted")
    stuck.stuck = False
    stuck.go_on.set()
    await call.write(start(request_id="next"))
    await call.write(END)
    assert (await call.read()).final.request_id == "next"
    await call.done_writing()
    await asyncio.to_thread(running.server.stop)
    assert [decision.request_id for decision in decisions(log)] == ["next"]


async def test_clients_that_vanish_leave_no_thread_behind(serve: Serve) -> None:
    def readers() -> int:
        return sum(thread.name == "stream-reader" for thread in threading.enumerate())

    running = await serve()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{running.server.port}")
    stub = prediction_pb2_grpc.PredictionServiceStub(channel)
    calls = [stub.PredictStream() for _ in range(20)]
    for call in calls:
        await call.write(start(streamed=PCM, interim_interval_ms=1))
        await call.write(chunk("audio", SILENCE))
    await until(lambda: readers() == 20)
    await channel.close(None)
    await until(lambda: readers() == 0)
    assert (await running.predict()).version == 1
