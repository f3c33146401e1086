"""Tracing of one service with OpenTelemetry."""

from __future__ import annotations

import os
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
    tracing = settings.tracing
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if disabled or not (tracing.endpoint or _exporter_variable("ENDPOINT")):
        return None
    try:
        from plaudit.adapters.tracing.otel import otlp_tracing

        return otlp_tracing(
            service,
            endpoint=tracing.endpoint,
            protocol=tracing.protocol or _exporter_variable("PROTOCOL") or "grpc",
            sample_ratio=tracing.sample_ratio,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tracing.endpoint: traces need {error.name}, which is not installed; pip install 'plaudit[tracing]', "
            "or set neither it nor OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    except ValueError as error:
        raise ConfigError(f"tracing.protocol: {error}") from error


def _exporter_variable(name: str) -> str | None:
    """Setting of the OTLP exporter in OpenTelemetry's own environment variables."""
    of_traces = os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}")
    return of_traces or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}")
