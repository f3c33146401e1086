"""Tracing of one service with OpenTelemetry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plaudit.core.errors import ConfigError
from plaudit.core.settings import Settings

if TYPE_CHECKING:
    from plaudit.adapters.tracing.otel import OtelTracing


def service_tracing(settings: Settings, service: str) -> OtelTracing | None:
    """Tracing of the service of that name; None: it is not traced.

    Raises:
        ConfigError: what it needs is not installed.
    """
    if not settings.tracing.on:
        return None
    try:
        from plaudit.adapters.tracing.otel import otlp_tracing

        return otlp_tracing(
            service,
            endpoint=settings.tracing.endpoint,
            protocol=settings.tracing.wire,
            sample_ratio=settings.tracing.sample_ratio,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint: traces need {error.name}, which is not installed; pip install 'plaudit[tracing]', "
            "or set neither it nor OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    except ValueError as error:
        raise ConfigError(f"tracing.protocol: {error}") from error
