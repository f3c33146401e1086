"""The demo from start to end: pre-train, serve, send the traffic of simulated users, report.

The services run as ``plaudit up`` in a child process.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from plaudit.client import AsyncClient
from plaudit.compose.learner import job_launcher
from plaudit.compose.paths import learner_dir
from plaudit.compose.pretraining import pretrain
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import model_runtime
from plaudit.compose.settings import load_settings
from plaudit.core.rollout import Rollout
from plaudit.core.settings import Settings
from plaudit.demo import MODEL, plot
from plaudit.demo.drive import drive, follow_rollout
from plaudit.demo.folder import demo_folder
from plaudit.demo.held_out import PER_KIND, evaluate_versions
from plaudit.demo.report import Observations, RefreshedHead, first_answers, freshness_s, summarise, timeline
from plaudit.demo.request_pacing import RequestPacing, reason_to_pause
from plaudit.demo.services import DemoFailed, require_free_port, services, toml
from plaudit.demo.task import SPEC, collect, evaluation_examples, write_data_folder
from plaudit.demo.users import traffic
from plaudit.demo.version_archive import VersionArchive
from plaudit.demo.view import TrafficState, View, finetuning_text, outcome_text
from plaudit.learner.status import STATUS, read_status
from plaudit_models.training.pretrain import PretrainProgress

SUMMARY: Final = "summary.json"
SERVICES_LOG: Final = "services.log"
PICTURE: Final = "satisfaction.png"
_LABELLED: Final = "labelled"
CONFIG: Final = "plaudit.toml"
_ARCHIVE: Final = "served"
_SHOW_INTERVAL_S: Final = 0.25
_LIMIT_S: Final = 1800.0
"""Time limit of training, which ends by steps: on a busy machine it takes longer and gives the same model."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the demo.

    Attributes:
        data_dir: folder for all files of the demo; those of an earlier demo are removed.
        events: number of requests.
        minutes: time over which they are sent.
        seed: the same seed gives the same data, requests and thumbs.
        pretrain_epochs: epochs of pre-training.
        train_blocks: amount of labelled data, see :func:`plaudit.demo.task.write_data_folder`.
        per_kind: number of held-out examples of each kind of question.
        console_port: port of the console during the traffic; None: no console.
    """

    data_dir: Path
    events: int = 8_000
    minutes: float = 3.0
    seed: int = 0
    pretrain_epochs: int = 3
    train_blocks: int = 640
    per_kind: int = PER_KIND
    console_port: int | None = None


def run(options: Options, console: Console) -> dict[str, Any]:
    """Run the demo. Returns its summary, which is also written to the data directory.

    Args:
        console: shows progress and results.

    Raises:
        ConfigError: the data directory holds other files than a demo's, or the console's port is in use.
        DemoFailed: a service ended.
        SpeechFailed: espeak-ng does not work here.
    """
    if options.console_port is not None:
        require_free_port(options.console_port)
    with demo_folder(options.data_dir):
        return _run(options, View(console))


def _run(options: Options, view: View) -> dict[str, Any]:
    began_s = time.monotonic()
    labelled = options.data_dir / _LABELLED
    view.say("making digits, speech and questions")
    write_data_folder(labelled, seed=options.seed, train_blocks=options.train_blocks)
    config = options.data_dir / CONFIG
    config.write_text(toml(_settings(options)), encoding="utf-8")
    settings = load_settings(config, {"data_dir": options.data_dir})  # over PLAUDIT_DATA_DIR
    registry = model_registry(settings)
    _pretrain(labelled, settings, view)
    view.say(f"users ask: {options.events} requests in {options.minutes:g} minutes, each followed by a thumb")
    state = TrafficState(total=options.events, started_s=time.time())
    archive = VersionArchive(registry, options.data_dir / _ARCHIVE)
    try:
        asyncio.run(_traffic(options, config, settings, archive, state, view))
    finally:
        _end_jobs(settings)
    view.say("evaluating every version that served on held-out questions")
    if not state.answers:
        raise DemoFailed(f"not one of {options.events} requests was answered: {state.failures[0].problem}")
    observed = _observe(options, settings, list(registry.ledger()), archive, state, began_s)
    archive.remove()
    summary = summarise(observed)
    (options.data_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot.draw(options.data_dir / PICTURE, observed)
    view.results(summary)
    view.say(f"see {options.data_dir / PICTURE} and {options.data_dir / SUMMARY}")
    return summary


def _settings(options: Options) -> dict[str, Any]:
    """Content of the demo's plaudit.toml: the defaults, but for what five minutes on two cores require."""
    folder = options.data_dir.resolve()
    return {
        "data_dir": str(folder),
        "model": SPEC.to_dict(),
        "serving": {"port": 0, "metrics_port": 0},
        # Where the log is Kafka (by environment): topics that no earlier demo wrote to.
        "kafka": {"topic_prefix": f"demo-{uuid.uuid4().hex[:8]}."},
        "learner": {"metrics_port": 0},
        # Small steps, so that no kind of question becomes worse on the way.
        "policy": {"max_kl": 0.03},
        # One job with much data is proven better sooner than two with half of it each.
        "finetune": {
            "rehearsal": str(folder / _LABELLED),
            "objective": "target",
            "every": 4000,
            "max_duration_s": _LIMIT_S,
            "seed": options.seed,
        },
        # The log holds little evidence on actions that the live version never picks; a canary gives it within seconds.
        "gate": {"max_events": 300},
        "canary": {"share": 0.25, "max_events": 1500},
        "pretrain": {"max_epochs": options.pretrain_epochs, "max_duration_s": _LIMIT_S, "seed": options.seed},
    }


def _pretrain(labelled: Path, settings: Settings, view: View) -> None:
    with view.training() as show:
        validated = ""

        def report(progress: PretrainProgress) -> None:
            nonlocal validated
            if progress.validation_accuracy is not None:
                validated = f", {progress.validation_accuracy:.0%} right"
            words = f"step {progress.step} of {progress.steps}, loss {progress.loss:.2f}{validated}"
            show(progress.fraction, f"{words}, {progress.left_s:.0f} s left")

        published = pretrain(settings, labelled, report)
    if published.training.cut_short:
        limit_s = settings.pretrain.max_duration_s
        view.say(f"pre-training was cut short after {limit_s:.0f} s; version 1 is weaker for it")
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in published.accuracy.by_group.items())
    view.say(f"version {published.manifest.version} is live; right on unseen writers, voices and wordings: {shares}")
    for name, withheld in published.without.items():
        shares = ", ".join(f"{kind} {share:.0%}" for kind, share in withheld.by_group.items())
        view.say(f"  without {name}: {shares}")


def _end_jobs(settings: Settings) -> None:
    """Cancel fine-tuning jobs, which outlive the learner."""
    jobs = job_launcher(settings, MODEL)
    for run_dir in (learner_dir(settings, MODEL) / "runs").glob("*"):
        jobs.cancel(run_dir)


async def _traffic(
    options: Options, config: Path, settings: Settings, archive: VersionArchive, state: TrafficState, view: View
) -> None:
    pool = await asyncio.to_thread(collect, "traffic", options.seed)
    requests = traffic(pool, seed=options.seed)
    log = options.data_dir / SERVICES_LOG
    async with (
        services(config, options.data_dir, log, view.say, console_port=options.console_port) as (target, ended),
        AsyncClient(target) as client,
    ):
        state.started_s = time.time()
        pacing = RequestPacing(60 * options.minutes / options.events)
        driving = asyncio.create_task(drive(client, requests, state, pacing=pacing, id_prefix=f"demo-{options.seed}-"))
        following = asyncio.create_task(follow_rollout(client, state))
        status_file = learner_dir(settings, MODEL) / STATUS
        showing = asyncio.create_task(_show(view, archive, status_file, pacing, state))
        running: list[asyncio.Task[Any]] = [driving, following, showing]
        try:
            done, _ = await asyncio.wait([*running, ended], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if driving not in done:
                raise DemoFailed(f"the services ended while users were asking; see {log}")
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            archive.sync()


async def _show(
    view: View, archive: VersionArchive, status_file: Path, pacing: RequestPacing, state: TrafficState
) -> None:
    """Update the view and the archive, and pause the traffic for the learner, until cancelled."""
    told = 0
    with view.traffic() as show:
        while True:
            archive.sync()
            fresh_s = freshness_s(state.answers, _refreshed_heads(archive))
            state.freshness_s = fresh_s[-1] if fresh_s else None
            report = _status(status_file)
            state.paused_for = reason_to_pause(report, len(state.answers), time.time())
            pacing.set_paused(bool(state.paused_for))
            finetuning: Mapping[str, Any] = report.get("finetune") or {}
            state.finetuning = finetuning_text(finetuning)
            outcomes = finetuning.get("outcomes", [])
            state.changes.extend(outcome_text(outcome) for outcome in outcomes[told:])
            told = len(outcomes)
            show(state)
            await asyncio.sleep(_SHOW_INTERVAL_S)


def _status(status_file: Path) -> Mapping[str, Any]:
    """Status file of the learner; empty if there is none yet."""
    status = read_status(status_file) or {}
    return status if "time_s" in status else {}  # else the learner says only what it waits for


def _observe(
    options: Options,
    settings: Settings,
    ledger: Sequence[Rollout],
    archive: VersionArchive,
    state: TrafficState,
    began_s: float,
) -> Observations:
    manifests = archive.manifests
    baseline = min(manifests)
    served = [version for version in first_answers(state.answers) if version in manifests]
    examples = evaluation_examples(collect("test", options.seed), per_kind=options.per_kind, seed=options.seed)
    satisfaction = evaluate_versions(archive.folder, model_runtime(settings), sorted({baseline, *served}), examples)
    metrics = manifests[baseline].metrics
    return Observations(
        answers=state.answers,
        failures=state.failures,
        satisfaction=satisfaction,
        baseline=baseline,
        digests={version: manifest.digest for version, manifest in manifests.items()},
        kinds={version: manifest.kind for version, manifest in manifests.items()},
        refreshed_heads=_refreshed_heads(archive),
        verdicts=[manifest.gate["verdict"] for manifest in manifests.values() if manifest.kind == "finetuned"],
        cut_short=[version for version, manifest in manifests.items() if manifest.metrics.get("cut_short")],
        accuracy=metrics["accuracy"]["by_group"],
        without={name: withheld["by_group"] for name, withheld in metrics["without"].items()},
        timeline=timeline(ledger, until_s=state.answers[-1].acknowledged_s),
        duration_s=time.monotonic() - began_s,
    )


def _refreshed_heads(archive: VersionArchive) -> list[RefreshedHead]:
    return [
        RefreshedHead(version, manifest.data["feedback"], manifest.data["last_feedback_id"])
        for version, manifest in archive.manifests.items()
        if manifest.kind == "head"
    ]
