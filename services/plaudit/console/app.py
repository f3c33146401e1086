"""The console's web application: a page, its files, and the JSON it asks for. Decode, call, encode.

A client of the inference service like any other, over gRPC; it has no credentials that its user lacks, and it changes
nothing except by sending feedback. It accepts requests for its own host names only, see :func:`application`.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plaudit.client import AsyncClient, ClientError, feedback
from plaudit.console.content import BadRequest, contents
from plaudit.console.hosts import KnownHosts
from plaudit.console.login import Login, principal_of
from plaudit.console.loop import view
from plaudit.console.ports import Sources
from plaudit.core.errors import Forbidden, NotFound, PlauditError
from plaudit.core.ports.access import Authenticator

Result = TypeVar("Result")

STATIC: Final = Path(__file__).parent / "static"
SHOWN_SCORES: Final = 5

# No other origins, nothing inline; sounds and drawings of the page itself are blobs.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_STATUSES: Final[Mapping[grpc.StatusCode, int]] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_BAD_GATEWAY: Final = 502


def application(
    client: AsyncClient,
    sources: Sources,
    *,
    is_known_host: Callable[[str], bool],
    max_body_bytes: int,
    authenticator: Authenticator | None = None,
    clock: Callable[[], float] = time.time,
) -> Starlette:
    """The application, ready to be served.

    Args:
        client: of the inference service.
        is_known_host: whether browsers may call the page by this host name, so that no other site can reach it
            through a name of its own.
        max_body_bytes: largest request accepted.
        authenticator: knows the keys that users log in with; None: nobody needs to.
        clock: UTC seconds.
    """
    console = _Console(client, sources, max_body_bytes, clock)
    return Starlette(
        routes=[
            Route("/", console.page),
            Route("/api/models", console.models),
            Route("/api/models/{model}", console.model),
            Route("/api/models/{model}/loop", console.loop),
            Route("/api/models/{model}/samples/{modality}/{name:path}", console.sample),
            Route("/api/models/{model}/predict", console.predict, methods=["POST"]),
            Route("/api/feedback", console.feedback, methods=["POST"]),
            Route("/api/receipts/{feedback_id}", console.receipt),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(KnownHosts, is_known=is_known_host),
            Middleware(_Headers),
            Middleware(Login, authenticator=authenticator),
            Middleware(GZipMiddleware),
        ],
        exception_handlers={
            BadRequest: _refused(400),
            NotFound: _refused(404),
            Forbidden: _refused(403),
            PlauditError: _refused(503),
            ClientError: _refused_by_server,
            HTTPException: _refused_by_http,
        },
    )


@dataclass(eq=False)
class _Console:
    client: AsyncClient
    sources: Sources
    max_body_bytes: int
    clock: Callable[[], float]

    async def page(self, _request: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    async def models(self, _request: Request) -> Response:
        return JSONResponse({"models": await asyncio.to_thread(lambda: list(self.sources.catalog.models()))})

    async def model(self, request: Request) -> Response:
        """Data of the playground: the live version's spec, and the samples."""
        model = request.path_params["model"]
        listed = await self.client.versions(model=model)
        live = listed.rollout.live
        if live is None:
            raise HTTPException(503, f"model {model!r} has no live version yet; `plaudit pretrain` makes the first")
        version = await self.client.version(live, model=model)
        samples = self.sources.samples.get(model)
        return JSONResponse(
            {
                "model": model,
                "spec": version.manifest["spec"],
                "samples": {name: list(offered) for name, offered in samples.offered().items()} if samples else {},
            }
        )

    async def loop(self, request: Request) -> Response:
        model = request.path_params["model"]

        def look() -> dict[str, Any]:
            if model not in self.sources.catalog.models():
                raise HTTPException(404, f"model: {model!r} is not one of {list(self.sources.catalog.models())}")
            registry = self.sources.catalog.registry(model)
            return view(registry, self.sources.learners.of(model), now_s=self.clock())

        return JSONResponse(finite(await asyncio.to_thread(look)))

    async def sample(self, request: Request) -> Response:
        model, modality, name = (request.path_params[key] for key in ("model", "modality", "name"))
        samples = self.sources.samples.get(model)
        try:
            if samples is None:
                raise KeyError(model)
            content, media_type = await asyncio.to_thread(samples.content, modality, name)
        except KeyError:
            raise HTTPException(404, f"there is no sample {name!r} for {modality!r} of {model!r}") from None
        return Response(content, media_type=media_type)

    async def predict(self, request: Request) -> Response:
        body = await self._body(request)
        prediction = await self.client.predict(
            contents(body.get("content")),
            user_id=principal_of(request).user_of(_text(body, "user_id")),
            top_k=SHOWN_SCORES,
            explain=True,
            model=request.path_params["model"],
        )
        # A list: browsers put the keys of an object that look like numbers in the order of numbers.
        return JSONResponse(asdict(prediction) | {"scores": list(prediction.scores.items())})

    async def feedback(self, request: Request) -> Response:
        body = await self._body(request)
        prediction_id = _text(body, "prediction_id")
        options: feedback.FeedbackOptions = {
            "user_id": principal_of(request).user_of(_text(body, "user_id")),
            "feedback_id": _text(body, "feedback_id"),
        }
        match body:
            case {"thumb": "up"}:
                piece = feedback.thumbs_up(prediction_id, **options)
            case {"thumb": "down"}:
                piece = feedback.thumbs_down(prediction_id, **options)
            case {"correction": str(action)}:
                piece = feedback.correct(prediction_id, action, **options)
            case _:
                raise BadRequest('signal: needs "thumb" ("up" or "down") or "correction" (an action)')
        return JSONResponse(asdict(await self.client.send_feedback(piece)))

    async def receipt(self, request: Request) -> Response:
        return JSONResponse(asdict(await self.client.receipt(request.path_params["feedback_id"])))

    async def _body(self, request: Request) -> Mapping[str, Any]:
        """Raises BadRequest.

        A page of another site could only send JSON after a CORS preflight, which is not answered.
        """
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise HTTPException(415, "content-type: needs application/json")
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > self.max_body_bytes:
                raise HTTPException(413, f"body: more than {self.max_body_bytes} bytes")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"body: not JSON ({error})") from error
        if not isinstance(body, dict):
            raise BadRequest(f"body: {type(body).__name__} is no object")
        return body


class _Headers:
    """Adds :data:`_HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def finite(value: Any) -> Any:
    """The value with None for every number that JSON does not have: e-values can be infinite, means NaN."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case Mapping():
            return {name: finite(part) for name, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
        case _:
            return value


def _text(body: Mapping[str, Any], field: str) -> str:
    value = body.get(field, "")
    if not isinstance(value, str):
        raise BadRequest(f"{field}: {type(value).__name__} is not text")
    return value


def _refused(status: int) -> Callable[[Request, Exception], Response]:
    return lambda _request, error: JSONResponse({"error": str(error)}, status)


def _refused_by_server(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ClientError)
    return JSONResponse({"error": error.message, "field": error.field}, _STATUSES.get(error.code, _BAD_GATEWAY))


def _refused_by_http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
