"""The console: the web page to try the models and watch the loop."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette

from plaudit.client import AsyncClient
from plaudit.compose.access import console_login
from plaudit.compose.paths import learner_dir
from plaudit.compose.registry import model_catalog
from plaudit.compose.store import experience_store
from plaudit.console.app import application
from plaudit.console.hosts import known_hosts
from plaudit.console.labelled_answers import LabelledAnswers
from plaudit.console.ports import LearnerView, LearnerViews, Samples, Sources
from plaudit.core.settings import Settings
from plaudit.learner.status import STATUS, read_status


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
    return application(
        client,
        Sources(model_catalog(settings), learners, samples),
        is_known_host=known_hosts(settings.console.host, settings.console.hosts),
        max_body_bytes=2 * settings.serving.max_message_bytes,
        authenticator=console_login(settings),
    )
