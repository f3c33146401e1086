"""Every metric of the learner, declared once. One instance per registry; tests make their own."""

from __future__ import annotations

from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from plaudit_models.evaluation.gate import Verdict

CANARY_CLAIMS: Final = ("gain", "harm", "errors", "latency")
_PHASES: Final = ("idle", "training", "gating", "canary")
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class LearnerMetrics:
    """plaudit_learner_…"""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"plaudit_learner_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"plaudit_learner_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"plaudit_learner_{name}_seconds", text, registry=registry, buckets=_SECONDS)

        self.events = counter("events_total", "Records read, by outcome.", "outcome")
        self.lag = gauge("lag_records", "Records of the log not read yet.")
        self.waiting = gauge("orphans", "Feedback whose decision has not arrived.")
        self.discarded = gauge("discarded", "Feedback that cannot be learned from.")
        self.experiences = gauge("experiences", "Decisions with feedback that are learned from.")
        self.outdated_experiences = gauge(
            "outdated_experiences",
            "Decisions with feedback that are not learned from, as users have changed what they want.",
        )
        self.drifts = counter("drifts_total", "Concept drifts found: changes of what users want of a slice.")
        self.last_drift = gauge(
            "last_drift_time_seconds",
            "When the last concept drift was found, UTC seconds since the epoch; 0: never.",
        )
        self.dynamic_experiences = gauge(
            "dynamic_experiences", "Of these, decisions between dynamic actions of the request."
        )
        self.joined_share = gauge("joined_ratio", "Share of all feedback that was joined with its decision.")
        self.excluded = counter("excluded_total", "Experiences excluded from learning, by reason.", "why")
        self.suspected_raters = gauge(
            "suspected_raters",
            "Users who say the opposite of others and are left out of quarantine for people to decide: their user "
            "group would be hit more than twice as often as others, or a fifth of all users is in quarantine.",
        )
        self.quarantines = counter(
            "quarantines_total", "Users put into quarantine because their feedback says the opposite of others'."
        )
        self.leader = gauge("leader", "1 while this learner leads; the others only read the log, or wait for the lead.")
        self.leads = counter("leads_total", "Times that this learner took the lead.")
        self.blocked = gauge(
            "blocked", "1 while the learner waits for what it cannot go on without: the log, the store, the disk."
        )
        self.forgotten = counter("forgotten_total", "Predictions and feedback removed from the store by retention.")
        self.join_seconds = seconds("join", "From the arrival of the oldest feedback of a batch until it was saved.")
        self.learn_seconds = seconds("learn", "Time to learn from one chunk of experiences, saving included.")
        self.batch_seconds = seconds("batch", "Time to learn from one batch of records, saving included.")
        self.satisfaction = gauge(
            "satisfaction_recent", "Mean reward of the latest experiences; absent while there are few.", "model"
        )
        self.predicted = gauge(
            "predicted_reward_recent", "Mean reward predicted for the latest experiences; absent as long.", "model"
        )
        self.calibration_error = gauge(
            "calibration_error",
            "Mean distance of predicted from observed rewards, over ten bins of the latest; absent as long.",
            "model",
        )
        self.by_version = (
            gauge(
                "version_satisfaction", "Mean reward of a version's answers, excluded experiences left out.", "version"
            ),
            gauge("version_satisfaction_low", "Lower end of the 95 % interval (Wilson) of the mean reward.", "version"),
            gauge(
                "version_satisfaction_high", "Upper end of the 95 % interval (Wilson) of the mean reward.", "version"
            ),
            gauge("version_experiences", "Number of experiences behind the mean reward.", "version"),
        )
        self.refreshes = counter("refreshes_total", "Head refreshes, by outcome.", "outcome")
        self.refresh_seconds = seconds("refresh", "Time from a due refresh to the published version going live.")
        self.refresh_kl = gauge(
            "refresh_kl_nats", "KL divergence of the last refresh from the policy before it, in nats."
        )
        self.policy_kl = gauge(
            "policy_kl_nats",
            "After the last swap: mean KL of the live policy, by head, from its reference and the version before it.",
            "model",
            "against",
            "head",
        )
        self.freshness_seconds = seconds("freshness", "From a batch's latest feedback to the refresh that learned it.")
        self.e_value = gauge("comparison_e_value", "Running comparison with the gated version, by claim.", "claim")
        self.comparison_n = gauge("comparison_experiences", "Experiences that the running comparison has counted.")
        self.reverts = counter("reverts_total", "Head refreshes reverted because they did harm.")
        self.confirms = counter("confirms_total", "Head refreshes that proved better and became the gated version.")
        self.rebuilds = counter("rebuilds_total", "Reward states rebuilt because the trunk changed.")
        self.jobs = counter("jobs_total", "Fine-tuning jobs, by outcome.", "outcome")
        self.job_running = gauge("job_running", "1 while a fine-tuning job runs.")
        self.finetune_kl = gauge(
            "finetune_kl_nats",
            "Mean KL divergence of the last fine-tuned version from the version it started from.",
            "model",
        )
        self.finetune_phase = gauge(
            "finetune_phase", "1 for the phase that fine-tuning is in: idle, training, gating or canary.", "phase"
        )
        self.gate_verdicts = counter("gate_verdicts_total", "Verdicts on fine-tuned versions.", "verdict")
        self.canary_verdicts = counter(
            "canary_verdicts_total", "Ends of experiments with a share of the users.", "verdict"
        )
        for verdicts in (self.gate_verdicts, self.canary_verdicts):  # from 0, so that the first one is an increase
            for verdict in get_args(Verdict):
                verdicts.labels(verdict)
        self.candidate_version = gauge("candidate_version", "The version in an experiment; 0 if none.")
        self.canary_e_value = gauge("canary_e_value", "Evidence in the experiment under way, by claim.", "claim")
        for claim in CANARY_CLAIMS:
            self.canary_e_value.labels(claim).set(1.0)
        self.canary_n = gauge("canary_experiences", "Experiences that the experiment under way has counted.")
        self.gate_n = gauge("gate_experiences", "Experiences that the gate has counted for the present candidate.")
        self.gate_left_out = counter(
            "gate_left_out_total",
            "Experiences that the gate left out: their content is not stored, or the candidate cannot answer them.",
        )
        self.gate_e_value = gauge("gate_e_value", "Evidence on the candidate at the gate, by claim.", "claim")
        self.gate_gain = gauge(
            "gate_gain_reward",
            "Reward that the candidate at the gate gains: estimate, and lower and upper bound for all looks at once.",
            "bound",
        )
        self.live_version = gauge("live_version", "The version that serves; 0 if none.")
        self.gated_version = gauge("gated_version", "The version that refreshes are compared with; 0 if none.")
        self.failures = counter(
            "failures_total", "Steps given up because log, store, registry or disk were unavailable, to be done again."
        )

    def phase(self, now: str) -> None:
        """Show the phase that fine-tuning is in."""
        for phase in _PHASES:
            self.finetune_phase.labels(phase).set(float(phase == now))
