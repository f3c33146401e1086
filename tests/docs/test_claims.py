"""Numbers that pages tell in words: each is made here from the code that decides it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from plaudit.adapters.log.kafka import reader
from plaudit.adapters.store.sql import LEASE_S
from plaudit.cli.commands.service_commands import CONSOLE_PORT
from plaudit.compose.learner import head_builder
from plaudit.core.limits import MAX_DYNAMIC_ACTIONS, MAX_ID_CHARACTERS
from plaudit.core.settings import Settings
from plaudit.core.tracing import MOST_LINKS
from plaudit.demo import task, users
from plaudit.learner.evaluation import experiment
from plaudit.learner.ingest import join
from plaudit.learner.online import satisfaction
from plaudit.serving.telemetry import version_metrics
from plaudit_models.bandit.features import FeatureSpace
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.own_evidence import OwnEvidence
from plaudit_models.bandit.reward_model import PREFERRED_REWARD, REJECTED_REWARD, RewardState, empty_state
from plaudit_models.evaluation.gate import MAX_GROUPS
from plaudit_models.evaluation.raters import MAX_QUARANTINED
from plaudit_models.media.formats import IMAGE_FORMATS, SOUND_FORMATS
from support.markdown import ROOT, read

DEFAULTS = Settings()
WORDS = {0.25: "¼", 0.75: "¾", 1.0: "1", 0.1: "0.1", 0.2: "a fifth", 2: "two", 4: "four", 5: "five", 3600: "an hour"}


def evidence(n_actions: int) -> RewardState:
    """Evidence about that many actions on the demo's trunk that takes as much room as any can."""
    builder = head_builder(DEFAULTS)
    space = FeatureSpace("", n_actions, task.SPEC.embedding_size, builder.embedding_features, builder.exclusivity)
    none = empty_state(space)
    g = space.n_regressors
    most = OwnEvidence(np.zeros((0, g)), np.zeros(0), np.zeros((g, g)))
    return replace(none, own=dict.fromkeys(range(n_actions), most))


def of_alert(name: str) -> str:
    """Expression of an alert."""
    groups = yaml.safe_load(read(ROOT / "deploy/prometheus/alerts.yml"))["groups"]
    return next(str(rule["expr"]) for group in groups for rule in group["rules"] if rule["alert"] == name)


_EVIDENCE = evidence(len(task.SPEC.actions))
_EVIDENCE_MB = len(_EVIDENCE.to_bytes()) / 1e6
_HEAD_MB = len(build_head(head_builder(DEFAULTS).settings, _EVIDENCE).SerializeToString()) / 1e6
_KEPT = DEFAULTS.learner.unused_versions_kept + 4
_IMPLICIT = {kind.name.lower(): reward for kind, reward in join.IMPLICIT_REWARDS.items()}
_DEATH_S = reader._SESSION_S + reader._HEARTBEAT_S

CLAIMS = [
    (
        "how-to/kafka.md",
        f"{2 * reader._HEARTBEAT_S:.0f} s when a learner joins, {reader._HEARTBEAT_S:.0f} s when one leaves",
    ),
    ("how-to/kafka.md", f"{_DEATH_S:.0f} s when one dies for good"),
    ("how-to/several-learners.md", f"silent for {LEASE_S:.0f} s"),
    ("how-to/monitoring.md", f"`serving.metrics_port` ({DEFAULTS.serving.metrics_port})"),
    ("how-to/monitoring.md", f"`learner.metrics_port` ({DEFAULTS.learner.metrics_port})"),
    ("how-to/monitoring.md", f"leave {version_metrics.SHOWN_AFTER_S:.0f} s after it was unloaded"),
    ("how-to/monitoring.md", f"more than {version_metrics.SHOWN_AT_MOST} others"),
    ("how-to/monitoring.md", f"{WORDS[satisfaction.SHOWN_AFTER_S]} after anybody last spoke of it"),
    ("how-to/monitoring.md", f'`version="{version_metrics.EARLIER}"`'),
    ("how-to/console.md", f"http://127.0.0.1:{CONSOLE_PORT}/"),
    ("how-to/tracing.md", f"at most {MOST_LINKS} pieces"),
    ("how-to/raters.md", f"(a tenth of what is learned) and `gate.user_cap` ({DEFAULTS.gate.user_cap:.0%}"),
    (
        "how-to/dynamic-actions.md",
        f"1 to {MAX_DYNAMIC_ACTIONS} dynamic actions, ids of 1 to {MAX_ID_CHARACTERS} characters",
    ),
    ("tutorials/first-loop.md", f"one of {len(task.SPEC.actions)} numbers"),
    ("tutorials/first-loop.md", f"{WORDS[len(task.LABELLED_KINDS)]} labelled kinds of question"),
    ("tutorials/first-loop.md", f"{users.USERS} simulated users"),
    ("tutorials/first-loop.md", f"{users.WRONG_THUMB_SHARE:.0%} of them".replace("%", " %")),
    ("tutorials/first-loop.md", f"is {users.NEW_KIND_SHARE:.0%} of the traffic".replace("%", " %")),
    ("tutorials/first-loop.md", f"refreshed every {DEFAULTS.learner.batch} thumbs"),
    ("tutorials/your-own-model.md", IMAGE_FORMATS.replace("WEBP", "WebP").replace(" or", ",")),
    ("tutorials/your-own-model.md", SOUND_FORMATS.replace(" or", ",")),
    ("explanation/feedback.md", f"accepted {_IMPLICIT['accepted']}, interrupted {_IMPLICIT['interrupted']}"),
    ("explanation/feedback.md", f"rephrased {_IMPLICIT['rephrased']} | {WORDS[join.IMPLICIT_WEIGHT]} |"),
    ("explanation/feedback.md", f"{WORDS[PREFERRED_REWARD]} for the preferred action, {WORDS[REJECTED_REWARD]} for"),
    ("explanation/feedback.md", f"`learner.silence_reward` is set | {join.SILENCE_WEIGHT} |"),
    ("explanation/trust.md", f"first {MAX_GROUPS} are tested ({experiment._GROUPS} in an experiment)"),
    ("explanation/trust.md", f"At most {WORDS[MAX_QUARANTINED]} of the users"),
    ("explanation/trust.md", f"`gate.user_cap` ({DEFAULTS.gate.user_cap:.0%})"),
    ("explanation/the-loop.md", f"({len(task.SPEC.actions)} actions, {_EVIDENCE.space.n_features} features)"),
    ("explanation/the-loop.md", f"a head refresh takes {_HEAD_MB:.1f} MB, and {_EVIDENCE_MB:.1f} MB of evidence"),
    ("explanation/the-loop.md", f"{len(evidence(100).to_bytes()) / 1e6:.1f} MB a refresh at 100 actions"),
    ("explanation/the-loop.md", f"With {DEFAULTS.learner.unused_versions_kept} dead refreshes"),
    ("explanation/the-loop.md", f"{_KEPT * _HEAD_MB:.0f} MB of heads and {_KEPT * _EVIDENCE_MB:.0f} MB of evidence"),
]


@pytest.mark.parametrize(("page", "claim"), CLAIMS)
def test_a_number_is_the_codes(page: str, claim: str) -> None:
    assert claim.replace(" %", "%") in " ".join(read(ROOT / "docs" / page).split()).replace(" %", "%")


@pytest.mark.parametrize(
    ("alert", "limit", "words"),
    [
        ("PlauditErrors", "> 0.01", "More than one call in a hundred"),
        ("PlauditSlow", "> 0.25", "more than a quarter of a second"),
        ("PlauditFeedbackSlow", "> 1", "more than a second"),
        ("PlauditLessSatisfied", "- 0.1", "at least ten points less than over the last day"),
    ],
)
def test_a_runbook_tells_the_limit_of_its_alert(alert: str, limit: str, words: str) -> None:
    section = read(ROOT / "docs/runbooks.md").partition(f"## {alert}\n")[2].partition("\n## ")[0]
    assert any(part.strip().endswith(limit) for part in of_alert(alert).split(" and "))
    assert words in section


def test_the_learner_has_the_labelled_folder_that_its_jobs_rehearse() -> None:
    learner = yaml.safe_load(read(ROOT / "deploy/compose.yaml"))["services"]["learn"]
    mounted = {volume["target"] for volume in learner["volumes"] if isinstance(volume, dict)}
    folder = read(ROOT / "docs/how-to/deploy.md").partition("--data ")[2].split()[0]
    assert folder in mounted
