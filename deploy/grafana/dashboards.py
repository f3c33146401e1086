"""Source of the dashboards: `make dashboards` writes the JSON files beside this one.

Tests in tests/deploy execute the queries of all panels against a real Prometheus, so a query that names a metric which
does not exist, or never has data, fails there. Needs the standard library alone.
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
    """PromQL expression, and the legend of its series: ``{{label}}`` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        kind: Grafana's type of panel.
        empty: what is shown where there is no series, on panels of what not every deployment has.
    """

    title: str
    unit: Unit
    queries: Sequence[Query]
    text: str = ""
    kind: Literal["timeseries", "stat"] = "timeseries"
    empty: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows of panels from the top, each with its title."""

    name: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]


def line(title: str, unit: Unit, *queries: tuple[str, str], text: str = "", empty: str = "") -> Panel:
    return Panel(title, unit, [Query(*query) for query in queries], text, empty=empty)


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
    """Mean of the values that a histogram observed."""
    return f"sum(rate({metric}_sum[$__rate_interval])) / sum(rate({metric}_count[$__rate_interval]))"


def hourly(metric: str) -> str:
    """Increase within an hour; 0 also where the series does not exist yet."""
    return f"sum(increase({metric}[1h])) or vector(0)"


SERVING: Final = Dashboard(
    "plaudit-serving",
    "Plaudit: serving",
    [
        (
            "Live version",
            [
                stat("Live version", "none", "max by (model) (plaudit_serving_live_version)", NAMED),
                stat(
                    "Live since",
                    "dateTimeFromNow",
                    "1000 * max by (model) (plaudit_serving_live_since_timestamp_seconds)",
                    NAMED,
                ),
                stat("Replicas up", "short", 'sum(up{job="plaudit-serve"})'),
                line("Version by replica", "none", ("plaudit_serving_live_version", "{{model}} at {{instance}}")),
                line(
                    "Swaps per hour",
                    "short",
                    (hourly("plaudit_serving_swaps_total"), "swaps"),
                    (hourly("plaudit_serving_failed_proofs_total"), "failed proofs"),
                ),
                quantiles(
                    "Time to swap",
                    "plaudit_serving_swap_seconds",
                    "model",
                    "Time to load, prove, warm up and activate another version.",
                ),
                quantiles("Time to prove a version", "plaudit_serving_proof_seconds", "model"),
                quantiles("Time to warm a version up", "plaudit_serving_warming_seconds", "model"),
                quantiles(
                    "Feedback to served",
                    "plaudit_serving_freshness_seconds",
                    "model",
                    "From the latest feedback that a version learned until it served here.",
                ),
                line(
                    "Candidate under experiment", "none", ("max by (model) (plaudit_serving_candidate_version)", NAMED)
                ),
                line(
                    "Share of users in the experiment",
                    "percentunit",
                    ("max by (model) (plaudit_serving_candidate_share_ratio)", NAMED),
                ),
                line(
                    "GPU memory",
                    "bytes",
                    ("max by (instance, gpu) (plaudit_serving_gpu_memory_used_bytes)", "used {{gpu}}"),
                    ("max by (instance, gpu) (plaudit_serving_gpu_memory_bytes)", "of {{gpu}}"),
                    empty="no GPU",
                ),
            ],
        ),
        (
            "Requests",
            [
                line(
                    "Calls per second", "reqps", (per_second("plaudit_serving_requests_total", "method"), "{{method}}")
                ),
                line(
                    "Failed calls",
                    "reqps",
                    (per_second('plaudit_serving_requests_total{code!="OK"}', "method", "code"), "{{method}} {{code}}"),
                ),
                line(
                    "Server errors",
                    "percentunit",
                    (f"{ERRORS} or 0 * method:plaudit_serving_requests:rate5m", "{{method}}"),
                ),
                quantiles("Response time", "plaudit_serving_request_seconds", "method"),
                line("Queued requests", "short", ("sum by (model) (plaudit_serving_queue_requests)", NAMED)),
                line("Requests per batch", "short", (mean("plaudit_serving_batch_requests"), "mean")),
                quantiles("Decoding", "plaudit_serving_decode_seconds"),
                quantiles("Queueing", "plaudit_serving_queue_seconds"),
                quantiles("Inference", "plaudit_serving_inference_seconds"),
            ],
        ),
        (
            "Versions",
            [
                line(
                    "Predictions per second",
                    "reqps",
                    (per_second("plaudit_serving_predictions_total", "model", "version"), OF_VERSION),
                ),
                line(
                    "Response time, 95th percentile",
                    "s",
                    (
                        "histogram_quantile(0.95, sum by (model, version, le) "
                        "(rate(plaudit_serving_prediction_seconds_bucket[$__rate_interval])))",
                        OF_VERSION,
                    ),
                ),
                line(
                    "Failed predictions per second",
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
                    text="Share of the predictions whose action was not the most probable one.",
                ),
                line(
                    "Feedback per second",
                    "ops",
                    (per_second("plaudit_serving_feedback_total", "model", "version"), OF_VERSION),
                ),
            ],
        ),
        (
            "Event log",
            [
                line(
                    "Decisions per second",
                    "ops",
                    (per_second("plaudit_serving_decisions_logged_total"), "logged"),
                    (per_second("plaudit_serving_decisions_dropped_total"), "dropped"),
                ),
                line(
                    "Decisions queued for the log",
                    "short",
                    ("sum(plaudit_serving_decision_queue_events)", "events"),
                ),
                line(
                    "Feedback per second",
                    "ops",
                    (per_second("plaudit_serving_feedback_total", "kind", "status"), "{{kind}} {{status}}"),
                ),
                quantiles("Time until feedback is durable", "plaudit_serving_feedback_ack_seconds"),
                quantiles("Time until decisions are durable", "plaudit_serving_decision_append_seconds"),
                line(
                    "Spooled events",
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
                stat("Satisfaction now", "percentunit", "plaudit_learner_satisfaction_recent", NAMED),
                line(
                    "Satisfaction",
                    "percentunit",
                    ("plaudit_learner_satisfaction_recent", "{{model}} recent"),
                    ("plaudit_learner_satisfaction:avg1d", "{{model}} over a day"),
                    ("plaudit_learner_predicted_reward_recent", "{{model}} predicted"),
                    text="Mean reward of the latest experiences, and its prediction; apart, the reward model is off.",
                ),
                line(
                    "Satisfaction by version",
                    "percentunit",
                    ("plaudit_learner_version_satisfaction", OF_VERSION),
                    ("plaudit_learner_version_satisfaction_low", f"{OF_VERSION} low"),
                    ("plaudit_learner_version_satisfaction_high", f"{OF_VERSION} high"),
                    text="Mean reward with its 95 % confidence interval.",
                ),
                line("Experiences by version", "short", ("plaudit_learner_version_experiences", OF_VERSION)),
                line(
                    "Calibration error of predicted rewards",
                    "percentunit",
                    ("plaudit_learner_calibration_error", NAMED),
                    text="Error on the latest experiences; 0: rewards come as predicted.",
                ),
                quantiles(
                    "Feedback to policy",
                    "plaudit_learner_freshness_seconds",
                    text="From a batch's latest feedback to the refresh that learned it.",
                ),
            ],
        ),
        (
            "Ingest",
            [
                line(
                    "Records per second", "ops", (per_second("plaudit_learner_events_total", "outcome"), "{{outcome}}")
                ),
                line("Lag", "short", ("sum(plaudit_learner_lag_records)", "records")),
                line("Feedback joined with its decision", "percentunit", ("plaudit_learner_joined_ratio", "joined")),
                line(
                    "Feedback without a decision",
                    "short",
                    ("plaudit_learner_orphans", "orphans"),
                    ("plaudit_learner_discarded", "discarded"),
                ),
                line("Experiences", "short", ("plaudit_learner_experiences", "learned from")),
                line(
                    "Not learned, per hour",
                    "short",
                    (hourly("plaudit_learner_excluded_total"), "experiences excluded"),
                    (hourly("plaudit_learner_quarantines_total"), "users into quarantine"),
                    (hourly("plaudit_learner_forgotten_total"), "records removed by retention"),
                ),
                line(
                    "Learners",
                    "short",
                    ('sum(up{job="plaudit-learn"})', "up"),
                    ("sum(plaudit_learner_leader)", "leading"),
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
                    "Refreshes per second",
                    "ops",
                    (per_second("plaudit_learner_refreshes_total", "outcome"), "{{outcome}}"),
                ),
                quantiles("Time for a refresh", "plaudit_learner_refresh_seconds"),
                line("KL of the last refresh", "none", ("plaudit_learner_refresh_kl_nats", "nats")),
                line(
                    "KL of the live policy",
                    "none",
                    ("plaudit_learner_policy_kl_nats", "{{head}}, from {{against}}"),
                    text="Mean KL on recent contexts, in nats, measured after every swap: from the base policy of its "
                    "trunk (reference) and from the version before it (previous).",
                ),
                line(
                    "Comparison with the gated version",
                    "none",
                    ("plaudit_learner_comparison_e_value", "{{claim}}"),
                    text="E-values: 1/gate.alpha is proof.",
                ),
                line("Experiences compared", "short", ("plaudit_learner_comparison_experiences", "experiences")),
                line(
                    "Outcomes of the comparison, per hour",
                    "short",
                    (hourly("plaudit_learner_reverts_total"), "reverted"),
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
                    "Fine-tuning jobs",
                    "none",
                    ("plaudit_learner_job_running", "running"),
                    (hourly("plaudit_learner_jobs_total"), "ended per hour"),
                ),
                line(
                    "KL of the last job",
                    "none",
                    ("plaudit_learner_finetune_kl_nats", NAMED),
                    text="Mean KL from the version it started from, in nats.",
                    empty="no job has ended",
                ),
                line(
                    "Verdicts per hour",
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
                    "Evidence in the experiment",
                    "none",
                    ("plaudit_learner_canary_e_value", "{{claim}}"),
                    text="E-values: 1/gate.alpha is proof of gain or harm, ten times that of errors or latency.",
                ),
                line(
                    "Evidence at the gate",
                    "none",
                    ("plaudit_learner_gate_e_value", "{{model}} {{claim}}"),
                    text="E-values: 1/gate.alpha is proof, 1 is none.",
                    empty="no candidate",
                ),
                line(
                    "Gain at the gate",
                    "none",
                    ("plaudit_learner_gate_gain_reward", "{{model}} {{bound}}"),
                    text="Gain of the candidate in reward, with bounds that hold for all looks at once.",
                    empty="no candidate",
                ),
                line("Phase of fine-tuning", "none", ("plaudit_learner_finetune_phase", "{{model}} {{phase}}")),
                line(
                    "Failed steps per hour",
                    "short",
                    (hourly("plaudit_learner_failures_total"), "log or store unavailable"),
                ),
                line(
                    "Rebuilds of the reward state per hour",
                    "short",
                    (hourly("plaudit_learner_rebuilds_total"), "rebuilt"),
                ),
            ],
        ),
    ],
)

DASHBOARDS: Final = (SERVING, LEARNING)


def render(dashboard: Dashboard) -> str:
    """JSON that Grafana imports."""
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
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **({"noValue": panel.empty} if panel.empty else {})},
            "overrides": [],
        },
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
