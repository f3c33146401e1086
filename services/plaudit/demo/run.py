"""The demo from beginning to end: pre-train, serve, let simulated users teach, report.

Puts the parts together; what each does is in its own module. The services are started by ``plaudit up`` itself.
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
from plaudit.compose.registry import model_registry
from plaudit.compose.runtime import model_runtime
from plaudit.compose.settings import load_settings
from plaudit.core.job_run import read_json
from plaudit.core.ports.registry import ModelRegistry
from plaudit.core.rollout import Rollout
from plaudit.core.settings import Settings
from plaudit.demo import MODEL, plot
from plaudit.demo.drive import drive, follow
from plaudit.demo.folder import demo_folder
from plaudit.demo.judge import PER_KIND, judge
from plaudit.demo.kept_versions import KeptVersions
from plaudit.demo.pace import Pace, what_to_wait_for
from plaudit.demo.report import Learned, Observed, first_answers, freshness_s, summarise, timeline
from plaudit.demo.services import DemoFailed, require_free_port, services, toml
from plaudit.demo.task import SPEC, collect, evaluation_examples, write_data_folder
from plaudit.demo.users import traffic
from plaudit.demo.view import View, Watched, finetuning_words, outcome_words
from plaudit.learner.finetuning.pretraining import pretrain_and_publish
from plaudit.learner.status import STATUS
from plaudit_models.training.pretrain import PretrainProgress

SUMMARY: Final = "summary.json"
SERVICES_LOG: Final = "services.log"
PICTURE: Final = "satisfaction.png"
_LABELLED: Final = "labelled"
CONFIG: Final = "plaudit.toml"
_KEPT: Final = "served"
_SHOW_INTERVAL_S: Final = 0.25
_LIMIT_S: Final = 1800.0
"""Training ends by steps, so that a busy machine takes longer and gives the same; this is for one that is stuck."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to run.

    Attributes:
        data_dir: everything the demo makes is here; what an earlier demo left there is removed.
        events: requests that users send.
        minutes: how long they take for it.
        seed: the same seed gives the same data, requests and thumbs.
        pretrain_epochs: how often pre-training sees all labelled data.
        train_blocks: how much labelled data to make, see :func:`plaudit.demo.task.write_data_folder`.
        per_kind: held-out examples of each kind of question.
        console_port: serve the console there while users ask; None: serve none.
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
    """Run the whole demo and return its summary, which is also written to the data directory.

    Args:
        console: where progress and results are shown.

    Raises:
        ConfigError: the data directory holds something that is no demo's, or the console's port is taken.
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
    settings = load_settings(config, {"data_dir": options.data_dir})  # whatever the environment says
    registry = model_registry(settings)
    _pretrain(labelled, settings, registry, view)
    view.say(f"users ask: {options.events} requests in {options.minutes:g} minutes, each followed by a thumb")
    watched = Watched(total=options.events, started_s=time.time())
    kept = KeptVersions(registry, options.data_dir / _KEPT)
    try:
        asyncio.run(_traffic(options, config, settings, kept, watched, view))
    finally:
        _end_jobs(settings)
    view.say("asking every version that served what it would have said to held-out questions")
    if not watched.answers:
        raise DemoFailed(f"not one of {options.events} requests was answered: {watched.failures[0].problem}")
    observed = _observe(options, settings, registry.ledger(), kept, watched, began_s)
    kept.remove()
    summary = summarise(observed)
    (options.data_dir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    plot.draw(options.data_dir / PICTURE, observed)
    view.results(summary)
    view.say(f"see {options.data_dir / PICTURE} and {options.data_dir / SUMMARY}")
    return summary


def _settings(options: Options) -> dict[str, Any]:
    """The demo's plaudit.toml: the defaults but for what a demo on two cores in five minutes needs."""
    folder = options.data_dir.resolve()
    return {
        "data_dir": str(folder),
        "model": SPEC.to_dict(),
        "serving": {"port": 0, "metrics_port": 0},
        # Where the log is Kafka (by environment): topics that no earlier demo wrote to.
        "kafka": {"topic_prefix": f"demo-{uuid.uuid4().hex[:8]}."},
        "learner": {"metrics_port": 0},
        # Small steps: no kind of question may suffer on the way.
        "policy": {"max_kl": 0.03},
        # One job that has much to learn from is proven better sooner than two that have half of it each.
        "finetune": {
            "rehearsal": str(folder / _LABELLED),
            "objective": "target",
            "every": 4000,
            "max_duration_s": _LIMIT_S,
            "seed": options.seed,
        },
        # The log holds little evidence on answers that live never tries; users who try them give it within seconds.
        "gate": {"max_events": 300},
        "canary": {"share": 0.25, "max_events": 1500},
        "pretrain": {"max_epochs": options.pretrain_epochs, "max_duration_s": _LIMIT_S, "seed": options.seed},
    }


def _pretrain(labelled: Path, settings: Settings, registry: ModelRegistry, view: View) -> None:
    with view.training() as show:
        validated = ""

        def report(progress: PretrainProgress) -> None:
            nonlocal validated
            if progress.validation_accuracy is not None:
                validated = f", {progress.validation_accuracy:.0%} right"
            words = f"step {progress.step} of {progress.steps}, loss {progress.loss:.2f}{validated}"
            show(progress.fraction, f"{words}, {progress.left_s:.0f} s left")

        options = settings.pretrain
        published = pretrain_and_publish(
            labelled,
            settings.spec(),
            registry,
            now_s=time.time(),
            floor=settings.policy.floor,
            max_duration_s=options.max_duration_s,
            max_epochs=options.max_epochs,
            batch=options.batch,
            learning_rate=options.learning_rate,
            patience=options.patience,
            threads=options.threads,
            seed=options.seed,
            on_progress=report,
        )
    if published.training.cut_short:
        view.say(f"pre-training was cut short after {options.max_duration_s:.0f} s; version 1 is weaker for it")
    found = ", ".join(f"{kind} {share:.1%}" for kind, share in published.accuracy.by_group.items())
    view.say(f"version {published.manifest.version} is live; right on unseen writers, voices and wordings: {found}")
    for name, withheld in published.without.items():
        found = ", ".join(f"{kind} {share:.0%}" for kind, share in withheld.by_group.items())
        view.say(f"  without {name}: {found}")


def _end_jobs(settings: Settings) -> None:
    """A fine-tuning job outlives its learner; nobody would ask after this one."""
    jobs = job_launcher(settings, MODEL)
    for run_dir in (learner_dir(settings, MODEL) / "runs").glob("*"):
        jobs.cancel(run_dir)


async def _traffic(
    options: Options, config: Path, settings: Settings, kept: KeptVersions, watched: Watched, view: View
) -> None:
    pool = await asyncio.to_thread(collect, "traffic", options.seed)
    requests = traffic(pool, seed=options.seed)
    log = options.data_dir / SERVICES_LOG
    async with (
        services(config, options.data_dir, log, view.say, console_port=options.console_port) as (target, ended),
        AsyncClient(target) as client,
    ):
        watched.started_s = time.time()
        pace = Pace(60 * options.minutes / options.events)
        driving = asyncio.create_task(drive(client, requests, watched, pace=pace, id_prefix=f"demo-{options.seed}-"))
        following = asyncio.create_task(follow(client, watched))
        status = learner_dir(settings, MODEL) / STATUS
        showing = asyncio.create_task(_show(view, kept, status, pace, watched))
        running: list[asyncio.Task[Any]] = [driving, following, showing]
        try:
            done, _ = await asyncio.wait([*running, ended], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if driving not in done:
                raise DemoFailed(f"the services ended while users were asking; see {options.data_dir / SERVICES_LOG}")
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            kept.look()


async def _show(view: View, kept: KeptVersions, status: Path, pace: Pace, watched: Watched) -> None:
    """Keep the view and what must not be lost up to date, and the users in step with the learner, until cancelled."""
    told = 0
    with view.traffic() as show:
        while True:
            kept.look()
            fresh_s = freshness_s(watched.answers, _learned(kept))
            watched.freshness_s = fresh_s[-1] if fresh_s else None
            said = _said(status)
            watched.waits_for = what_to_wait_for(said, len(watched.answers), time.time())
            pace.hold(bool(watched.waits_for))
            finetuning: Mapping[str, Any] = said.get("finetune") or {}
            watched.finetuning = finetuning_words(finetuning)
            outcomes = finetuning.get("outcomes", [])
            watched.happenings.extend(outcome_words(outcome) for outcome in outcomes[told:])
            told = len(outcomes)
            show(watched)
            await asyncio.sleep(_SHOW_INTERVAL_S)


def _said(status: Path) -> Mapping[str, Any]:
    """What the learner says of itself; empty if it has said nothing yet."""
    return read_json(status) if status.exists() else {}


def _observe(
    options: Options,
    settings: Settings,
    ledger: Sequence[Rollout],
    kept: KeptVersions,
    watched: Watched,
    began_s: float,
) -> Observed:
    manifests = kept.manifests
    baseline = min(manifests)
    served = [version for version in first_answers(watched.answers) if version in manifests]
    examples = evaluation_examples(collect("test", options.seed), per_kind=options.per_kind, seed=options.seed)
    judged = judge(kept.folder, model_runtime(settings), sorted({baseline, *served}), examples)
    metrics = manifests[baseline].metrics
    return Observed(
        answers=watched.answers,
        failures=watched.failures,
        judged=judged,
        baseline=baseline,
        digests={version: manifest.digest for version, manifest in manifests.items()},
        kinds={version: manifest.kind for version, manifest in manifests.items()},
        learned=_learned(kept),
        verdicts=[manifest.gate["verdict"] for manifest in manifests.values() if manifest.kind == "finetuned"],
        cut_short=[version for version, manifest in manifests.items() if manifest.metrics.get("cut_short")],
        accuracy=metrics["accuracy"]["by_group"],
        without={name: withheld["by_group"] for name, withheld in metrics["without"].items()},
        timeline=timeline(ledger, until_s=watched.answers[-1].acknowledged_s),
        duration_s=time.monotonic() - began_s,
    )


def _learned(kept: KeptVersions) -> list[Learned]:
    return [
        Learned(version, manifest.data["feedback"], manifest.data["last_feedback_id"])
        for version, manifest in kept.manifests.items()
        if manifest.kind == "head"
    ]
