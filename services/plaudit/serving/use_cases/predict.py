"""The use case of prediction: content in; an action with its exact propensity out, signed and logged.

The order bind → evaluate → claim → commit, and what surrounds it: admission, counting, the comparison with the shadow.
A request is bound to one version before it is decoded and stays with it to the end. Runs on its call's thread. Knows no
transport.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from plaudit.core.errors import InvalidInput, Overloaded
from plaudit.core.limits import MAX_SHOWN_CHARACTERS
from plaudit.core.tracing import Tracing
from plaudit.serving.engine.call_context import NO_DEADLINE, CallContext, ClientGone
from plaudit.serving.engine.pipeline import Pipeline, PredictionRequest, Predictions
from plaudit.serving.models.experiment_reporter import ShadowedRow, ShadowEvaluator
from plaudit.serving.models.served_models import Binding, ServedModel, ServedModels
from plaudit.serving.telemetry.metrics import ServingMetrics
from plaudit_models.limits import Limits


class PredictUseCase:
    """Args:
    limits: of the content that the shadow decodes.
    """

    def __init__(
        self,
        models: ServedModels,
        pipeline: Pipeline,
        metrics: ServingMetrics,
        limits: Limits,
        *,
        tracing: Tracing,
    ) -> None:
        self._models = models
        self._pipeline = pipeline
        self._metrics = metrics
        self._shadow = ShadowEvaluator(limits)
        self._tracing = tracing

    def predict(
        self, request: PredictionRequest, call: CallContext = NO_DEADLINE, binding: Binding | None = None
    ) -> Predictions:
        """Answer each row, or none of them. Blocks until they are answered.

        Args:
            binding: of the request, where it was bound already; None: to the version that serves its user.

        Raises:
            InvalidInput: a field is wrong.
            UnknownModel, NoLiveModel, Overloaded, Expired, ClientGone, Draining: nothing was decided.
        """
        started_s = time.perf_counter()
        served, model, role, counting = binding or self._models.bind(request.model, request.user_id)
        with served.admission.places(len(request.rows)), counting:
            predictions = self._pipeline.evaluate(request, model, role, served.batcher, call)
            if not call.claim():
                raise ClientGone
            self._pipeline.commit(request, predictions)
        counted, took_s = self._metrics.versions.of(model), time.perf_counter() - started_s
        for outcome in predictions.outcomes:
            counted.answered(took_s, outcome.evaluation.explored)
        self._compare_with_shadow(request, served, predictions)
        if self._tracing.enabled:
            self._tracing.note(
                {
                    "plaudit.model": model.manifest.spec.name,
                    "plaudit.version": model.manifest.version,
                    "plaudit.role": str(role),
                    "plaudit.rows": len(predictions.outcomes),
                    "plaudit.prediction_id": predictions.outcomes[0].prediction_id,
                    "plaudit.request_id": request.request_id,
                }
            )
        return predictions

    def preview(self, request: PredictionRequest, call: CallContext = NO_DEADLINE) -> Predictions:
        """The prediction as it would be now; it gets no prediction id and is not logged.

        Raises:
            Overloaded: requests wait for a real answer.
            Exception: what :meth:`predict` raises.
        """
        served, model, role, _ = self._models.bind(request.model, request.user_id)
        if served.batcher.waiting():
            raise Overloaded(f"the queue of model {served.live.name!r}", 0)
        with served.admission.places(len(request.rows)):
            return self._pipeline.evaluate(request, model, role, served.batcher, call)

    def check_modalities(self, model: str, names: Sequence[str], field: str) -> None:
        """Check that content of these modalities can be for the model, before any of it arrives.

        Raises:
            InvalidInput: naming the entry of ``field``.
            UnknownModel, NoLiveModel: there is nothing to compare with.
        """
        spec = self._models.pick(model).live.serving().manifest.spec
        for name in names:
            if name not in spec.modalities:
                raise InvalidInput(
                    f'{field}["{name[:MAX_SHOWN_CHARACTERS]}"]',
                    f"is not a modality of {spec.name!r}; there are {list(spec.modalities)}",
                )

    def close(self) -> None:
        """Compute nothing more in the shadow."""
        self._shadow.close()

    def _compare_with_shadow(self, request: PredictionRequest, served: ServedModel, predictions: Predictions) -> None:
        experiment = served.live.experiment
        if experiment is None or not experiment.rollout.shadow:
            return
        for row, outcome in zip(request.rows, predictions.outcomes, strict=True):
            self._shadow.compare(experiment, ShadowedRow(row, predictions, outcome), served.batcher.waiting)
