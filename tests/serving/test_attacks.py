"""Attacks on a real server, beside an honest client: each is refused with its field, and every honest call succeeds.

What they cost in time and memory is measured by ``make bench-attacks``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from plaudit.adapters.log.sqlite import SqliteLog
from plaudit.inference import open_inference_pb2 as pb
from plaudit.serving.grpc import open_calls
from plaudit.v1 import content_pb2, feedback_pb2, model_pb2, prediction_pb2
from support.serving_harness import Running, Serve, a_request, a_thumb, decisions, feedback, refusal, until

INVALID = grpc.StatusCode.INVALID_ARGUMENT
LONG = 15 * 2**20


class Honest:
    """A client with a connection of its own that predicts, gives feedback and asks for health, again and again."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{running.server.port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self.other = Running(running.server, self._channel, running.registry, running.log, running.metrics)
        self.health = health_pb2_grpc.HealthStub(self._channel)
        self.rounds = 0

    async def round(self) -> None:
        number, self.rounds = self.rounds, self.rounds + 1
        answer = await self.other.predict(number)
        await self.other.feedback.SendFeedback(a_thumb(answer.prediction_id, f"honest-{id(self)}-{number}"))
        await self.health.Check(health_pb2.HealthCheckRequest())

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Rounds beside the block, and at least one while it runs; one that fails fails the test."""
        over = asyncio.Event()

        async def go_on() -> None:
            while not over.is_set():
                await self.round()

        going = asyncio.create_task(go_on())
        try:
            yield
            await self.round()
        finally:
            over.set()
            await going
            await self._channel.close()


def tensor_of(shape: list[int], data: bytes = b"1234") -> content_pb2.Content:
    return content_pb2.Content(tensor=content_pb2.Tensor(data_type=content_pb2.DATA_TYPE_FP32, shape=shape, data=data))


SHAPES: dict[str, list[int]] = {
    "40,000 long axes": [2**62] * 40_000,
    "65 axes": [1] * 65,
    "nothing along long axes": [0, 2**62, 2**62],
    "a product beyond 64 bits": [2**62] * 8,
    "negative": [-1, -4],
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
async def test_shapes_that_no_array_has(serve: Serve, shape: list[int]) -> None:
    """Attack 1, in each way that a tensor can come."""
    running = await serve()
    async with Honest(running).busy():
        code, details = await refusal(running.predictions.Predict(a_request(content={"sensor": tensor_of(shape)})))
        assert code is INVALID
        assert details.startswith(('content["sensor"].shape: ', 'content["sensor"].data: '))
        assert len(details) < 1_000

        start = prediction_pb2.PredictStart(request=a_request(content={"sensor": tensor_of(shape)}))
        steps = [
            prediction_pb2.PredictStreamRequest(start=start),
            prediction_pb2.PredictStreamRequest(end=prediction_pb2.PredictEnd()),
        ]
        call = running.predictions.PredictStream()
        for step in steps:
            await call.write(step)
        code, details = await refusal(call.read())
        assert code is INVALID
        assert 'content["sensor"]' in details

        infer: Any = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        message = pb.ModelInferRequest(model_name="tiny", raw_input_contents=[b"1234"])
        message.inputs.add(name="sensor", datatype="FP32", shape=[1, *shape])
        code, details = await refusal(infer(message.SerializeToString()))
        assert code is INVALID
        assert details.startswith('inputs["sensor"]')
        assert len(details) < 1_000


IDS = ["x" * LONG, "nul\0", "\x1b[2Jescape", "\u202eturned"]


@pytest.mark.parametrize("value", IDS, ids=["15 MiB", "NUL", "ESC", "bidi"])
async def test_ids_that_are_none(serve: Serve, log: SqliteLog, value: str) -> None:
    """Attack 9: refused with the field, nothing durable; a NUL was acknowledged and then never usable."""
    running = await serve()
    honest = Honest(running)
    async with honest.busy():
        prediction_id = (await running.predict()).prediction_id
        cases: dict[str, Callable[[], Any]] = {
            "user_id": lambda: running.predictions.Predict(a_request(user_id=value)),
            "request_id": lambda: running.predictions.Predict(a_request(request_id=value)),
            "model": lambda: running.predictions.Predict(a_request(model=value)),
            "feedback_id": lambda: running.feedback.SendFeedback(a_thumb(prediction_id, value)),
            "retract.feedback_id": lambda: running.feedback.SendFeedback(
                a_thumb(prediction_id, "f", retract=feedback_pb2.Retract(feedback_id=value))
            ),
            "actor": lambda: running.models.Pin(model_pb2.PinRequest(version=1, actor=value)),
            "reason": lambda: running.models.Rollback(model_pb2.RollbackRequest(reason=value)),
        }
        for field, call in cases.items():
            code, details = await refusal(call())
            assert (code, details.partition(":")[0]) == (INVALID, field)
            assert details.isprintable()
            assert len(details) < 1_000
        code, details = await refusal(
            running.feedback.SendFeedback(
                feedback_pb2.SendFeedbackRequest(
                    prediction_id=prediction_id, feedback_id="f", user_id=value, thumb=feedback_pb2.THUMB_UP
                )
            )
        )
        assert (code, details.partition(":")[0]) == (INVALID, "user_id")
        code, details = await refusal(running.feedback.GetReceipt(feedback_pb2.GetReceiptRequest(feedback_id=value)))
        assert (code, details.partition(":")[0]) == (INVALID, "feedback_id")
    await asyncio.to_thread(running.server.stop)
    assert len(decisions(log)) == honest.rounds + 1
    assert len(feedback(log)) == honest.rounds


@pytest.mark.parametrize("value", IDS, ids=["15 MiB", "NUL", "ESC", "bidi"])
async def test_ids_that_are_none_in_streams_and_over_the_open_inference_protocol(serve: Serve, value: str) -> None:
    running = await serve()
    prediction_id = (await running.predict()).prediction_id
    async with Honest(running).busy():
        stream = running.feedback.StreamFeedback()
        await stream.write(a_thumb(prediction_id, value))
        await stream.write(a_thumb(prediction_id, "good"))
        refused, accepted = await stream.read(), await stream.read()
        assert refused.error.message.startswith("feedback_id: ")
        assert len(refused.feedback_id) <= 128
        assert accepted.status == feedback_pb2.FEEDBACK_STATUS_ACCEPTED
        stream.cancel()

        infer: Any = running.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for field, message in (
            (
                "parameters['user_id']: ",
                pb.ModelInferRequest(parameters={"user_id": pb.InferParameter(string_param=value)}),
            ),
            (("model: ", "model_name: "), pb.ModelInferRequest(model_name=value)),
        ):
            code, details = await refusal(infer(message.SerializeToString()))
            assert code in (INVALID, grpc.StatusCode.NOT_FOUND)
            assert details.startswith(field)
            assert len(details) < 1_000


async def test_idle_streams_refuse_nobody(serve: Serve) -> None:
    """Attack 6: 128 of one connection refused every other call, and health, for as long as they liked.

    As in https://github.com/bigcommerce/gruf/issues/173 and https://github.com/grpc/grpc/issues/17569.
    """
    running = await serve(max_streams=16, max_calls=8)
    prediction_id, another_id = [(await running.predict()).prediction_id for _ in range(2)]  # 16 pieces each
    idle = [running.feedback.StreamFeedback() for _ in range(16)]
    for place, stream in enumerate(idle):
        await stream.write(a_thumb(prediction_id, f"idle-{place}"))
        assert (await stream.read()).status == feedback_pb2.FEEDBACK_STATUS_ACCEPTED
    honest = Honest(running)
    async with honest.busy():
        # The attacker's connection has all the places: its longest silent streams give way.
        for place in range(12):
            stream = honest.other.feedback.StreamFeedback()
            await stream.write(a_thumb(another_id, f"streamed-{place}"))
            assert (await stream.read()).status == feedback_pb2.FEEDBACK_STATUS_ACCEPTED
        code, details = await refusal(idle[0].read())
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "the stream is closed: others wait for its place" in details
        assert running.metric("plaudit_serving_refused_calls_total", reason="silent stream") == 12


async def test_a_stream_without_a_message_is_closed_with_a_reason(serve: Serve) -> None:
    running = await serve(stream_idle_s=0.2)
    async with Honest(running).busy():
        for stream in (running.feedback.StreamFeedback(), running.predictions.PredictStream()):
            code, details = await refusal(stream.read())
            assert code is grpc.StatusCode.UNAVAILABLE
            assert details == "the stream is closed: nothing happened on it for 0.2 s; open another one"


async def test_calls_without_their_message_hold_no_place(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of which only the head has arrived waited on a thread of its own, for ever."""
    monkeypatch.setattr(open_calls, "_LATE_S", 0.0)
    running = await serve(max_calls=4)
    half: list[Any] = [running.channel.stream_unary("/plaudit.v1.PredictionService/Predict")() for _ in range(16)]
    half += [running.channel.stream_unary("/grpc.health.v1.Health/Check")() for _ in range(16)]
    for call in half:
        await call.wait_for_connection()
    waiting = running.server._listeners[0]._open_calls.waiting
    await until(lambda: sum(each.late() for each in waiting) >= len(half))
    async with Honest(running).busy():
        pass
    for call in half:
        call.cancel()


async def test_a_call_that_ends_without_a_message_names_what_is_missing(serve: Serve) -> None:
    running = await serve()
    call: Any = running.channel.stream_unary("/plaudit.v1.PredictionService/Predict")()
    await call.done_writing()
    assert await refusal(call) == (INVALID, "request: the call ended without its message")


async def test_a_stream_of_a_thousand_modalities(serve: Serve) -> None:
    """Attack 8: 8 MiB were kept of each, whether or not the model has it."""
    running = await serve()
    pcm = prediction_pb2.StreamedContent(pcm16_sample_rate_hz=8_000)
    for number, complaint in ((1_000, 'streamed["0"]: is not a modality'), (2_000, "streamed: has 2000 modalities")):
        start = prediction_pb2.PredictStart(
            request=prediction_pb2.PredictRequest(), streamed={str(n): pcm for n in range(number)}
        )
        async with Honest(running).busy():
            call = running.predictions.PredictStream()
            await call.write(prediction_pb2.PredictStreamRequest(start=start))
            code, details = await refusal(call.read())
            assert code is INVALID
            assert complaint.split("[")[0] in details
            assert len(details) < 1_000


async def test_large_messages_are_bounded_together(serve: Serve) -> None:
    running = await serve(max_bytes_in_flight=3 * 2**20)
    large = [a_request(user_id="x" * 2**20) for _ in range(24)]
    async with Honest(running).busy():
        codes = {(await refusal(call))[0] for call in [running.predictions.Predict(each) for each in large]}
        assert codes <= {INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED}


async def test_a_text_that_grows_in_the_tokenizer_is_answered(serve: Serve) -> None:
    """U+FDFA becomes eighteen characters: 64 KiB of it cost 0.2 s and 137 MiB. That it is cut is tested beside it."""
    running = await serve()
    text = content_pb2.Content(text="\ufdfa" * 21_000)
    async with Honest(running).busy():
        assert (await running.predictions.Predict(a_request(content={"question": text}))).action


async def test_the_server_listens_on_ipv6(serve: Serve, tmp_path: Path) -> None:
    running = await serve(host="::1")
    async with grpc.aio.insecure_channel(f"[::1]:{running.server.port}") as channel:
        other = Running(running.server, channel, running.registry, running.log, running.metrics)
        assert (await other.predict()).version == 1
