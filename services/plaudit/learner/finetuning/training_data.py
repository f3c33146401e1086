"""Training data of a fine-tuning job from stored experiences: decoded content, feedback, and what is left out.

Knows nothing about how training works.

Notation:
    n: experiences, m: number of modalities, u: unique items of one modality, a: number of actions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.experience import Experience, Label
from plaudit.core.ports.store import ExperienceReader
from plaudit.learner.features.content import decode_contents
from plaudit.learner.features.context import allowed_mask
from plaudit.learner.finetuning.job_spec import JobSpec, TrainingPlan
from plaudit_models.preprocess import input_dtype
from plaudit_models.spec import ModelSpec
from plaudit_models.training.data.experiences import Experiences
from plaudit_models.training.data.feedback_targets import NO_PAIR, FeedbackTargets, build_feedback_targets

CHUNK: Final = 256
_MISSING: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Experiences that can be trained on, decoded.

    Attributes:
        experiences: feedback on the answers that were served; of weight 0 where it is on other answers only.
        feedback_targets: all feedback, a row per experience.
        used: experiences behind the rows.
        facts: counts by kind, and staleness, for the manifest.
    """

    experiences: Experiences
    feedback_targets: FeedbackTargets
    used: Sequence[Experience]
    facts: dict[str, Any]


def select_training_data(
    store: ExperienceReader, spec: ModelSpec, tokenizer: Tokenizer | None, job: JobSpec, *, version: int
) -> TrainingData:
    """Training data of a job that starts from ``version``: the most recent experiences that are not too stale.

    Raises:
        ValueError: there is nothing to train on; says why.
    """
    plan = job.plan
    labelled = [
        experience
        for experience in store.experiences(after=job.snapshot - plan.max_experiences, up_to=job.snapshot)
        if experience.label is not None and not experience.excluded
    ]
    recent = [experience for experience in labelled if _behind(experience, version) <= plan.max_versions_behind]
    if labelled and not recent:
        raise ValueError(
            f"finetune.max_versions_behind: {plan.max_versions_behind} leaves out all of {len(labelled)} experiences; "
            f"the latest was served {min(_behind(e, version) for e in labelled)} versions before version {version}"
        )
    made = decode_training_data(recent, store, spec, tokenizer, plan)
    if not made.used:
        raise ValueError(
            f"none of {len(recent)} experiences can be trained on: those without content cannot (is the server's "
            f"store_content switched off?), nor those picked from dynamic actions of the request"
        )
    made.facts.update(
        _staleness(made.used, version),
        too_stale=len(labelled) - len(recent),
        with_dynamic_actions=sum(bool(experience.decision.dynamic_actions) for experience in recent),
    )
    return made


def decode_training_data(
    chosen: Sequence[Experience],
    store: ExperienceReader,
    spec: ModelSpec,
    tokenizer: Tokenizer | None,
    plan: TrainingPlan,
) -> TrainingData:
    """Decode the experiences that have content and feedback on one of the model's actions. Equal items are kept once.

    Those between dynamic actions are left out: they say nothing about the model's actions.
    """
    pools = {name: _UniqueItems() for name in spec.modalities}
    index: list[list[int]] = []
    used: list[Experience] = []
    labels: list[Label] = []
    for start in range(0, len(chosen), CHUNK):
        chunk = chosen[start : start + CHUNK]
        contents = store.contents([experience.decision.prediction_id for experience in chunk])
        for experience in chunk:
            label = experience.label
            if experience.decision.dynamic_actions or label is None or not spec.has_action(experience.decision.action):
                continue
            if not any(spec.has_action(action) for action in label.rewards):
                continue
            content = contents[experience.decision.prediction_id]
            row = decode_contents(spec, tokenizer, content, plan.limits)
            if row is not None:
                index.append([pools[n].place(content[n], row[n]) if n in row else _MISSING for n in spec.modalities])
                used.append(experience)
                labels.append(label)
    rewards = [experience.reward for experience in used]
    corrections = [label.correction for label in labels]
    restricted = any(experience.decision.allowed_actions for experience in used)
    rewards_by_action = [
        {spec.action_index(action): reward for action, reward in label.rewards.items() if spec.has_action(action)}
        for label in labels
    ]
    experiences = Experiences(
        pools={
            name: np.stack(pool.items) if pool.items else np.zeros((0, *modality.shape), input_dtype(modality))
            for (name, modality), pool in zip(spec.modalities.items(), pools.values(), strict=True)
        },
        index=np.array(index, np.int64).reshape(len(used), len(spec.modalities)),
        action=np.array([spec.action_index(e.decision.action) for e in used], np.int64),
        reward=np.array([0.0 if reward is None else reward for reward in rewards], np.float32),
        correction=np.array(
            [spec.action_index(c) if c is not None and spec.has_action(c) else _MISSING for c in corrections], np.int64
        ),
        weight=np.array(
            [0.0 if r is None else label.weight for r, label in zip(rewards, labels, strict=True)], np.float32
        ),
        allowed_mask=allowed_mask(spec.actions, [e.decision.allowed_actions for e in used]) if restricted else None,
    )
    targets = build_feedback_targets(
        rewards_by_action,
        [label.weight for label in labels],
        len(spec.actions),
        exclusivity=plan.head_builder.exclusivity,
    )
    return TrainingData(experiences, targets, used, _counts(experiences, targets))


def _counts(experiences: Experiences, targets: FeedbackTargets) -> dict[str, Any]:
    corrections = int((experiences.correction != _MISSING).sum())
    preferences = int((targets.preferred != NO_PAIR).sum())
    return {
        "trained_on": len(experiences),
        "corrections": corrections,
        "preferences": preferences,
        "thumbs_and_ratings": len(experiences) - corrections - preferences,
    }


def _behind(experience: Experience, version: int) -> int:
    """Number of versions since the one that served it; a version in an experiment may be newer than the live one."""
    return max(0, version - experience.decision.version)


def _staleness(used: Sequence[Experience], version: int) -> dict[str, Any]:
    behind = [_behind(experience, version) for experience in used]
    return {
        "first_experience": used[0].number,
        "served_by_versions": len({experience.decision.version for experience in used}),
        "versions_behind_mean": float(np.mean(behind)),
        "versions_behind_max": max(behind),
        "oldest_time_s": min(experience.decision.time_s for experience in used),
    }


class _UniqueItems:
    """Distinct decoded items of one modality."""

    def __init__(self) -> None:
        self.items: list[npt.NDArray[Any]] = []
        self._places: dict[bytes, int] = {}

    def place(self, content: Content, decoded: npt.NDArray[Any]) -> int:
        key = _key(content)
        if key not in self._places:
            self._places[key] = len(self.items)
            self.items.append(decoded)
        return self._places[key]


def _key(content: Content) -> bytes:
    match content:
        case EncodedContent(_, data):
            return data
        case TextContent(text):
            return text.encode()
        case TensorContent(array):
            return array.dtype.str.encode() + array.tobytes()  # a 1.0 has the bytes of an integer
