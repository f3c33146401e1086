"""Calls as values: the method, the request, and the function that reads the answer. Sends nothing.

The clients for threads and for asyncio share all of this and differ only in waiting.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar, Unpack

from google.protobuf.message import Message

from plaudit.client import results
from plaudit.client.content import to_content
from plaudit.client.errors import invalid
from plaudit.client.texts import sendable, spelled
from plaudit.v1 import feedback_pb2, model_pb2, prediction_pb2

if TYPE_CHECKING:
    from plaudit.client.content import Part

Result = TypeVar("Result")

_PREDICTION: Final = "/plaudit.v1.PredictionService/"
_FEEDBACK: Final = "/plaudit.v1.FeedbackService/"
_MODEL: Final = "/plaudit.v1.ModelService/"


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """A call.

    Attributes:
        method: full gRPC method name.
        request: message to send; None where the requests are a stream.
        response: message class of the answer, or of each answer of a stream.
        read: makes the result of an answer's message.
        admin: True: it needs the admin token where one is configured.
    """

    method: str
    request: Message | None
    response: type[Message]
    read: Callable[[Any], Result]
    admin: bool = False


def serialize(message: Message) -> bytes:
    return message.SerializeToString()


class PredictOptions(TypedDict, total=False):
    """Keyword arguments of ``predict``.

    Attributes:
        user_id: opaque id of the user.
        allowed_actions: actions to pick from; None: all of the model's.
        dynamic_actions: actions of this request to pick from instead of the model's, text by id; each is scored by its
            text, so it may be new to the model. None: the model's actions. Only models that score text take them.
        greedy: True: pick the most probable action instead of sampling; such answers teach the model less.
        top_k: number of scores to return; 0: all.
        explain: True: return the contribution of each modality.
        request_id: comes back unchanged and appears in the server's logs.
        model: name of the model; may be left out where one model is served.
        user_group: group of the user, such as "premium": no version may make answers worse for a group.
    """

    user_id: str
    allowed_actions: Sequence[str] | None
    dynamic_actions: Mapping[str, str] | None
    greedy: bool
    top_k: int
    explain: bool
    request_id: str
    model: str
    user_group: str


class ChangeOptions(TypedDict, total=False):
    """Keyword arguments of the methods that change the rollout.

    Attributes:
        reason: reason for the change, in one sentence.
        actor: author of the change; None: the user this process runs as.
        expected_generation: generation that the decision is based on: refused if the rollout was changed since; 0: do
            not check.
        model: name of the model; may be left out where one model is served.
    """

    reason: str
    actor: str | None
    expected_generation: int
    model: str


def predict(
    content: Mapping[str, Part],
    *,
    user_id: str = "",
    allowed_actions: Sequence[str] | None = None,
    dynamic_actions: Mapping[str, str] | None = None,
    greedy: bool = False,
    top_k: int = 0,
    explain: bool = False,
    request_id: str = "",
    model: str = "",
    user_group: str = "",
) -> Call[results.Prediction]:
    """Call of Predict. Raises ClientError naming the field if something cannot be sent."""
    if isinstance(allowed_actions, str):
        raise invalid("allowed_actions", f"{allowed_actions!r} is one string; give a list of actions")
    if allowed_actions is not None and not allowed_actions:
        raise invalid("allowed_actions", "[] allows no action; leave it out (None) to allow all of them")
    if dynamic_actions is not None and not isinstance(dynamic_actions, Mapping):
        raise invalid(
            "dynamic_actions", f"{type(dynamic_actions).__name__} is not a mapping; give the text of each by its id"
        )
    if dynamic_actions is not None and not dynamic_actions:
        problem = "{} lists nothing to pick; leave it out (None) to pick from the model's actions"
        raise invalid("dynamic_actions", problem)
    texts = dynamic_actions or {}
    for place, (id_, text) in enumerate(texts.items()):
        if not isinstance(id_, str) or not isinstance(text, str):
            raise invalid("dynamic_actions", f"{id_!r}: {text!r} is not an id and its text, two strings")
        sendable(f"dynamic_actions[{place}].id", id_)
        sendable(f"dynamic_actions[{place}].text", text)
    for place, action in enumerate(allowed_actions or ()):
        sendable(f"allowed_actions[{place}]", action)
    request = prediction_pb2.PredictRequest(
        model=sendable("model", model),
        content={
            sendable(f'content["{spelled(name)}"]', name): to_content(name, part) for name, part in content.items()
        },
        user_id=sendable("user_id", user_id),
        allowed_actions=allowed_actions or (),
        greedy=greedy,
        top_k=top_k,
        explain=explain,
        request_id=sendable("request_id", request_id),
        dynamic_actions=[prediction_pb2.DynamicAction(id=id_, text=text) for id_, text in texts.items()],
        user_group=sendable("user_group", user_group),
    )
    return Call(
        _PREDICTION + "Predict",
        request,
        prediction_pb2.PredictResponse,
        lambda message: results.prediction(message, user_id),
    )


def send_feedback(piece: feedback_pb2.SendFeedbackRequest) -> Call[results.Acknowledgement]:
    return Call(_FEEDBACK + "SendFeedback", piece, feedback_pb2.SendFeedbackResponse, results.acknowledgement)


STREAM_FEEDBACK: Final = Call(
    _FEEDBACK + "StreamFeedback", None, feedback_pb2.SendFeedbackResponse, results.acknowledgement
)


def receipt(feedback_id: str) -> Call[results.Receipt]:
    request = feedback_pb2.GetReceiptRequest(feedback_id=sendable("feedback_id", feedback_id))
    return Call(_FEEDBACK + "GetReceipt", request, feedback_pb2.Receipt, results.receipt)


def versions(model: str) -> Call[results.Versions]:
    request = model_pb2.ListVersionsRequest(model=sendable("model", model))
    return Call(_MODEL + "ListVersions", request, model_pb2.ListVersionsResponse, results.versions)


def version(number: int, model: str) -> Call[results.Version]:
    request = model_pb2.GetVersionRequest(model=sendable("model", model), version=number)
    return Call(
        _MODEL + "GetVersion",
        request,
        model_pb2.GetVersionResponse,
        lambda message: results.version(message.version, message.experiment_json),
    )


def watch_versions(model: str) -> Call[results.RolloutSnapshot]:
    request = model_pb2.WatchVersionsRequest(model=sendable("model", model))
    return Call(_MODEL + "WatchVersions", request, model_pb2.WatchVersionsResponse, _rollout)


def promote(number: int, **options: Unpack[ChangeOptions]) -> Call[results.RolloutSnapshot]:
    return _change("Promote", model_pb2.PromoteRequest(version=number), model_pb2.PromoteResponse, **options)


def rollback(**options: Unpack[ChangeOptions]) -> Call[results.RolloutSnapshot]:
    return _change("Rollback", model_pb2.RollbackRequest(), model_pb2.RollbackResponse, **options)


def pin(number: int | None, **options: Unpack[ChangeOptions]) -> Call[results.RolloutSnapshot]:
    """Call of Pin; None unpins. On the wire that is version 0, so 0 itself is refused."""
    if number is not None and number <= 0:
        raise invalid("version", f"{number} is not a version; versions count from 1")
    return _change("Pin", model_pb2.PinRequest(version=number or 0), model_pb2.PinResponse, **options)


def start_canary(
    number: int, share: float, *, shadow: bool = False, **options: Unpack[ChangeOptions]
) -> Call[results.RolloutSnapshot]:
    request = model_pb2.StartCanaryRequest(version=number, share=share, shadow=shadow)
    return _change("StartCanary", request, model_pb2.StartCanaryResponse, **options)


def stop_canary(number: int | None, **options: Unpack[ChangeOptions]) -> Call[results.RolloutSnapshot]:
    """Call of StopCanary; None stops any experiment."""
    request = model_pb2.StopCanaryRequest(version=number or 0)
    return _change("StopCanary", request, model_pb2.StopCanaryResponse, **options)


def _change(
    method: str,
    request: Any,
    response: type[Message],
    *,
    reason: str = "",
    actor: str | None = None,
    expected_generation: int = 0,
    model: str = "",
) -> Call[results.RolloutSnapshot]:
    """Call that changes the rollout, with the fields that the requests of all such calls have."""
    request.reason = sendable("reason", reason)
    request.actor = sendable("actor", _actor(actor))
    request.model = sendable("model", model)
    request.expected_generation = expected_generation
    return Call(_MODEL + method, request, response, _rollout, admin=True)


def _rollout(message: Any) -> results.RolloutSnapshot:
    return results.rollout(message.rollout)


def _actor(actor: str | None) -> str:
    if actor is not None:
        return actor
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
