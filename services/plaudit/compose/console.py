"""The console: the web page to try the models and watch the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from starlette.applications import Starlette

from plaudit.client import AsyncClient
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_catalog
from plaudit.compose.store import experience_store
from plaudit.console.app import application
from plaudit.console.labelled_answers import LabelledAnswers
from plaudit.console.ports import LearnerView, LearnerViews, Samples, Sources
from plaudit.core.settings import Settings
from plaudit.learner.status import STATUS, read_status

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1", "[::1]")


def learner_views(settings: Settings) -> LearnerViews:
    """Views of the learners by model. No store is made where no learner has run yet."""

    def view(model: str) -> LearnerView:
        status = learner_dir(settings, model) / STATUS
        return LearnerView(
            status=lambda: read_status(status),
            answers=LabelledAnswers(lambda: experience_store(settings, model) if status.exists() else None),
        )

    return LearnerViews(view)


def console_application(
    settings: Settings, client: AsyncClient, learners: LearnerViews, samples: Mapping[str, Samples]
) -> Starlette:
    """The console's application.

    Args:
        samples: ready-made content by model name.

    Raises:
        ConfigError: a setting is wrong.
    """
    host = settings.console.host
    return application(
        client,
        Sources(model_catalog(settings), learners, samples),
        # Other names come from sites that had theirs resolved to us. Where all addresses are listened on, so are names.
        hosts=["*"] if host in ("0.0.0.0", "::", "") else sorted({host, f"[{host}]", *LOOPBACK}),
        max_body_bytes=2 * settings.serving.max_message_bytes,
    )
