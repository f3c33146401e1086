"""The dashboards, from one source: `make dashboards` writes them as the JSON files beside this one.

A panel is a line. Its queries are executed by tests/deploy against a real Prometheus, so one that names a metric which
does not exist, or never has data, fails there. Needs nothing but Python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

HERE: Final = Path(__file__).parent
COLUMNS: Final = 24
HEIGHT: Final = 8
WIDTH: Final = 8
NAMED: Final = "{{model}}"
OF_VERSION: Final = "{{model}} {{version}}"
ERRORS: Final = "method:plaudit_serving_errors:ratio_rate5m"

Unit = Literal["short", "s", "bytes", "percentunit", "reqps", "ops", "none", "dateTimeFromNow"]


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and how its series are named: ``{{label}}`` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. ``kind`` is Grafana's."""

    title: str
    unit: Unit
    queries: Sequence[Query]
    text: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"


@dataclass(frozen=True, slots=True)
class Dashboard:
    """``rows``: title and panels, from the top."""

    name: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]


def line(title: str, unit: Unit, *queries: tuple[str, str], text: str = "") -> Panel:
    return Panel(title, unit, [Query(*query) for query in queries], text)


def stat(title: str, unit: Unit, expr: str, legend: str = "", text: str = "") -> Panel:
    return Panel(title, unit, [Query(expr, legend)], text, "stat")


def quantiles(title: str, metric: str, by: str = "", text: str = "") -> Panel:
    """Median, 95th and 99th percentile of a histogram of seconds, for each value of the label ``by``."""
    labels, named = (f"{by}, le", f"{{{{{by}}}}} ") if by else ("le", "")
    return line(
        title,
        "s",
        *(
            (
                f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))",
                f"{named}p{100 * share:g}",
            )
            for share in (0.5, 0.95, 0.99)
        ),
        text=text,
    )


def per_second(metric: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}[$__rate_interval]))"


def mean(metric: str) -> str:
    """Of what a histogram has observed."""
    return f"sum(rate({metric}_sum[$__rate_interval])) / sum(rate({metric}_count[$__rate_interval]))"


def hourly(metric: str) -> str:
    """0 as well where it has never happened, and its series is not there yet."""
    return f"sum(increase({metric}[1h])) or vector(0)"


SERVING: Final = Dashboard(
    "plaudit-serving",
    "Plaudit: serving",
    [
        (
            "What serves",
            [
                stat("Version that serves", "none", "max by (model) (plaudit_serving_live_version)", NAMED),
                stat(
                    "Since",
                    "dateTimeFromNow",
                    "1000 * max by (model) (plaudit_serving_live_since_timestamp_seconds)",
                    NAMED,
                ),
                stat("Replicas that answer", "short", 'sum(up{job="plaudit-serve"})'),
                line("Version by replica", "none", ("plaudit_serving_live_version", "{{model}} at {{instance}}")),
                line(
                    "Swaps an hour",
                    "short",
                    (hourly("plaudit_serving_swaps_total"), "swaps"),
                    (hourly("plaudit_serving_failed_proofs_total"), "failed proofs"),
                ),
                quantiles(
                    "Time to swap",
                    "plaudit_serving_swap_seconds",
                    "model",
                    "Load, proof, warming and flip of another version.",
                ),
                quantiles("Time to prove a version", "plaudit_serving_proof_seconds", "model"),
                quantiles("Time to warm a version up", "plaudit_serving_warming_seconds", "model"),
                quantiles(
                    "Thumb to served",
                    "plaudit_serving_freshness_seconds",
                    "model",
                    "From the latest feedback that a version learned until it served here.",
                ),
                line("Version in an experiment", "none", ("max by (model) (plaudit_serving_candidate_version)", NAMED)),
                line(
                    "Share of the users in an experiment",
                    "percentunit",
                    ("max by (model) (plaudit_serving_candidate_share_ratio)", NAMED),
                ),
                line(
                    "GPU memory",
                    "bytes",
                    ("max by (instance, gpu) (plaudit_serving_gpu_memory_used_bytes) or vector(0)", "used {{gpu}}"),
                    ("max by (instance, gpu) (plaudit_serving_gpu_memory_bytes) or vector(0)", "of {{gpu}}"),
                    text="0 where there is no GPU.",
                ),
            ],
        ),
        (
            "Requests",
            [
                line("Calls a second", "reqps", (per_second("plaudit_serving_requests_total", "method"), "{{method}}")),
                line(
                    "Calls that did not succeed",
                    "reqps",
                    (per_second('plaudit_serving_requests_total{code!="OK"}', "method", "code"), "{{method}} {{code}}"),
                ),
                line(
                    "Errors of ours",
                    "percentunit",
                    (f"{ERRORS} or 0 * method:plaudit_serving_requests:rate5m", "{{method}}"),
                ),
                quantiles("Time to answer", "plaudit_serving_request_seconds", "method"),
                line("Requests that wait", "short", ("sum by (model) (plaudit_serving_queue_requests)", NAMED)),
                line("Requests in a batch", "short", (mean("plaudit_serving_batch_requests"), "mean")),
                quantiles("Decoding", "plaudit_serving_decode_seconds"),
                quantiles("Waiting for the model", "plaudit_serving_queue_seconds"),
                quantiles("Inference", "plaudit_serving_inference_seconds"),
            ],
        ),
        (
            "Versions",
            [
                line(
                    "Answers a second",
                    "reqps",
                    (per_second("plaudit_serving_predictions_total", "model", "version"), OF_VERSION),
                ),
                line(
                    "Time to answer, 95th percentile",
                    "s",
                    (
                        "histogram_quantile(0.95, sum by (model, version, le) "
                        "(rate(plaudit_serving_prediction_seconds_bucket[$__rate_interval])))",
                        OF_VERSION,
                    ),
                ),
                line(
                    "Requests that a version failed on, a second",
                    "reqps",
                    (per_second("plaudit_serving_prediction_failures_total", "model", "version"), OF_VERSION),
                ),
                line(
                    "Exploration",
                    "percentunit",
                    (
                        f"{per_second('plaudit_serving_explored_total', 'model', 'version')} / "
                        f"{per_second('plaudit_serving_predictions_total', 'model', 'version')}",
                        OF_VERSION,
                    ),
                    text="Share of the answers that were drawn although another one was more probable.",
                ),
                line(
                    "Feedback a second",
                    "ops",
                    (per_second("plaudit_serving_feedback_total", "model", "version"), OF_VERSION),
                ),
            ],
        ),
        (
            "What is recorded",
            [
                line(
                    "Decisions a second",
                    "ops",
                    (per_second("plaudit_serving_decisions_logged_total"), "logged"),
                    (per_second("plaudit_serving_decisions_dropped_total"), "dropped"),
                ),
                line(
                    "Decisions that wait to be logged",
                    "short",
                    ("sum(plaudit_serving_decision_queue_events)", "events"),
                ),
                line(
                    "Feedback a second",
                    "ops",
                    (per_second("plaudit_serving_feedback_total", "kind", "status"), "{{kind}} {{status}}"),
                ),
                quantiles("Time until feedback is durable", "plaudit_serving_feedback_ack_seconds"),
                quantiles("Time until decisions are durable", "plaudit_serving_decision_append_seconds"),
                line(
                    "Events that wait for the log on this machine",
                    "short",
                    ("sum(plaudit_serving_spool_events)", "events"),
                ),
            ],
        ),
    ],
)

LEARNING: Final = Dashboard(
    "plaudit-learning",
    "Plaudit: learning",
    [
        (
            "Users",
            [
                stat("Satisfied lately", "percentunit", "plaudit_learner_satisfaction_recent"),
                line(
                    "Satisfaction",
                    "percentunit",
                    ("plaudit_learner_satisfaction_recent", "lately"),
                    ("plaudit_learner_satisfaction:avg1d", "over a day"),
                    ("plaudit_learner_predicted_reward_recent", "predicted"),
                    text="Of the latest experiences, and as it was predicted: far apart, the reward model is off.",
                ),
                line(
                    "Satisfaction by version",
                    "percentunit",
                    ("plaudit_learner_version_satisfaction", OF_VERSION),
                    ("plaudit_learner_version_satisfaction_low", f"{OF_VERSION} at least"),
                    ("plaudit_learner_version_satisfaction_high", f"{OF_VERSION} at most"),
                    text="With its 95 % interval.",
                ),
                line("Answers judged, by version", "short", ("plaudit_learner_version_experiences", OF_VERSION)),
                line(
                    "Calibration error of predicted rewards",
                    "percentunit",
                    ("plaudit_learner_calibration_error", NAMED),
                    text="Of the latest experiences: 0 where rewards come as they were predicted.",
                ),
                quantiles(
                    "Thumb to policy",
                    "plaudit_learner_freshness_seconds",
                    text="From a batch's latest feedback to the refresh that learned it.",
                ),
            ],
        ),
        (
            "What is learned from",
            [
                line("Records a second", "ops", (per_second("plaudit_learner_events_total", "outcome"), "{{outcome}}")),
                line("Records not read yet", "short", ("sum(plaudit_learner_lag_records)", "records")),
                line("Feedback joined with its decision", "percentunit", ("plaudit_learner_joined_ratio", "joined")),
                line(
                    "Feedback without a use",
                    "short",
                    ("plaudit_learner_orphans", "no decision yet"),
                    ("plaudit_learner_discarded", "discarded"),
                ),
                line("Experiences", "short", ("plaudit_learner_experiences", "learned from")),
                line(
                    "Not learned from, an hour",
                    "short",
                    (hourly("plaudit_learner_excluded_total"), "experiences excluded"),
                    (hourly("plaudit_learner_quarantines_total"), "users into quarantine"),
                    (hourly("plaudit_learner_forgotten_total"), "records forgotten by retention"),
                ),
                line(
                    "Learners",
                    "short",
                    ('sum(up{job="plaudit-learn"})', "answer"),
                    ("sum(plaudit_learner_leader)", "lead"),
                ),
                quantiles("Time for a batch", "plaudit_learner_batch_seconds"),
                quantiles("Feedback to join", "plaudit_learner_join_seconds"),
                quantiles("Time to learn a chunk", "plaudit_learner_learn_seconds"),
            ],
        ),
        (
            "Head refreshes",
            [
                line(
                    "Refreshes a second",
                    "ops",
                    (per_second("plaudit_learner_refreshes_total", "outcome"), "{{outcome}}"),
                ),
                quantiles("Time for a refresh", "plaudit_learner_refresh_seconds"),
                line("How far the last one moved", "none", ("plaudit_learner_refresh_kl_nats", "nats")),
                line(
                    "How far the live policy is",
                    "none",
                    ("plaudit_learner_policy_kl_nats", "from its {{against}}"),
                    text="Mean KL on recent contexts, in nats, measured after every swap: from the base policy of its "
                    "trunk (reference) and from the version before it (previous).",
                ),
                line(
                    "Compared with the gated version",
                    "none",
                    ("plaudit_learner_comparison_e_value", "{{claim}}"),
                    text="E-values: 1/gate.alpha is proof.",
                ),
                line("Experiences compared", "short", ("plaudit_learner_comparison_experiences", "experiences")),
                line(
                    "An hour",
                    "short",
                    (hourly("plaudit_learner_reverts_total"), "taken back for harm"),
                    (hourly("plaudit_learner_confirms_total"), "proven better"),
                ),
            ],
        ),
        (
            "Fine-tuning",
            [
                line(
                    "Versions",
                    "none",
                    ("plaudit_learner_live_version", "live"),
                    ("plaudit_learner_gated_version", "gated"),
                    ("plaudit_learner_candidate_version", "in an experiment"),
                ),
                line(
                    "A job runs",
                    "none",
                    ("plaudit_learner_job_running", "running"),
                    (hourly("plaudit_learner_jobs_total"), "an hour, by any outcome"),
                ),
                line(
                    "How far the last job moved",
                    "none",
                    ("plaudit_learner_finetune_kl_nats or vector(0)", "nats"),
                    text="Mean KL from the version it started from; 0 while there is none.",
                ),
                line(
                    "Verdicts an hour",
                    "short",
                    (hourly("plaudit_learner_gate_verdicts_total"), "gate"),
                    (hourly("plaudit_learner_canary_verdicts_total"), "experiment"),
                ),
                line(
                    "Experiences",
                    "short",
                    ("plaudit_learner_gate_experiences", "at the gate"),
                    ("plaudit_learner_canary_experiences", "in the experiment"),
                ),
                line(
                    "The experiment under way",
                    "none",
                    ("plaudit_learner_canary_e_value", "{{claim}}"),
                    text="E-values: 1/gate.alpha is proof of gain or harm, ten times that of errors or latency.",
                ),
                line(
                    "Evidence at the gate",
                    "none",
                    ("plaudit_learner_gate_e_value or vector(1)", "{{claim}}"),
                    text="E-values: 1/gate.alpha is proof, 1 is none.",
                ),
                line(
                    "Gain at the gate",
                    "none",
                    ("plaudit_learner_gate_gain_reward or vector(0)", "{{bound}}"),
                    text="Reward that the candidate gains, with bounds for all looks at once.",
                ),
                line("Phase of fine-tuning", "none", ("plaudit_learner_finetune_phase", "{{model}} {{phase}}")),
                line(
                    "Steps given up, an hour", "short", (hourly("plaudit_learner_failures_total"), "log or store away")
                ),
                line("Reward states rebuilt, an hour", "short", (hourly("plaudit_learner_rebuilds_total"), "rebuilt")),
            ],
        ),
    ],
)

DASHBOARDS: Final = (SERVING, LEARNING)


def render(dashboard: Dashboard) -> str:
    """As Grafana imports it."""
    raw = {
        "uid": dashboard.name,
        "title": dashboard.title,
        "tags": ["plaudit"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": list(_panels(dashboard)),
    }
    return json.dumps(raw, indent=1) + "\n"


def _panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in dashboard.rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
        }
        top += 1
        for place, panel in enumerate(panels):
            number += 1
            row, column = divmod(place, COLUMNS // WIDTH)
            yield _panel(number, panel, x=column * WIDTH, y=top + row * HEIGHT)
        top += HEIGHT * -(-len(panels) // (COLUMNS // WIDTH))


def _panel(number: int, panel: Panel, *, x: int, y: int) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": source,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query.expr, "legendFormat": query.legend, "datasource": source}
            for place, query in enumerate(panel.queries)
        ],
    }


def write(folder: Path = HERE) -> None:
    for dashboard in DASHBOARDS:
        (folder / f"{dashboard.name}.json").write_text(render(dashboard), encoding="utf-8")


if __name__ == "__main__":
    write()
