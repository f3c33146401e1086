"""Spans, as the services need them. Knows no tracing library.

Traces pass from process to process as W3C traceparents (https://www.w3.org/TR/trace-context/): in gRPC metadata, in the
events of the log and in the manifests of versions. Where many things become one, as in a batch, the one links to the
many. Spans carry ids, numbers and versions; never content, never a user id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal, Protocol, TypedDict, TypeVar, Unpack

Answer = TypeVar("Answer")
Kind = Literal["internal", "server", "client"]
Attributes = Mapping[str, str | int | float | bool]

TRACEPARENT: Final = "traceparent"
"""Key in gRPC metadata and in manifests."""
MOST_LINKS: Final = 128
"""Largest number of links of one span; OpenTelemetry's default."""


class SpanOptions(TypedDict, total=False):
    """Attributes:
    kind: ``internal`` by default.
    parent: a traceparent; by default, and where it is "", the present span, if there is one.
    links: traceparents; "" among them are left out.
    attributes: none by default.
    """

    kind: Kind
    parent: str
    links: Iterable[str]
    attributes: Attributes | None


class Tracing(Protocol):
    """Safe to use from several threads; a span is the present one of the thread that began it."""

    @property
    def enabled(self) -> bool:
        """False if nothing is traced, so that busy callers need not collect attributes and links."""
        ...

    def span(self, name: str, **options: Unpack[SpanOptions]) -> AbstractContextManager[object]:
        """A span around what is done inside."""
        ...

    def stream(
        self, name: str, answers: Callable[[], Iterator[Answer]], **options: Unpack[SpanOptions]
    ) -> Iterator[Answer]:
        """The answers, with one span around the making of all of them, and around nothing else."""
        ...

    def record(self, name: str, began_ns: int, **options: Unpack[SpanOptions]) -> None:
        """A span that began at ``began_ns``, on the clock of ``time.time_ns``, and ends now."""
        ...

    def present(self) -> str:
        """The traceparent of the present span; "" if there is none, or it is not sampled."""
        ...

    def note(self, attributes: Attributes) -> None:
        """Add attributes to the present span."""
        ...

    def close(self) -> None:
        """Export the spans that were not exported yet."""
        ...


class NoTracing:
    """Traces nothing."""

    enabled: Final = False

    def span(self, name: str, **options: Unpack[SpanOptions]) -> AbstractContextManager[object]:
        return nullcontext()

    def stream(
        self, name: str, answers: Callable[[], Iterator[Answer]], **options: Unpack[SpanOptions]
    ) -> Iterator[Answer]:
        return answers()

    def record(self, name: str, began_ns: int, **options: Unpack[SpanOptions]) -> None:
        return None

    def present(self) -> str:
        return ""

    def note(self, attributes: Attributes) -> None:
        return None

    def close(self) -> None:
        return None


NO_TRACING: Final[Tracing] = NoTracing()
