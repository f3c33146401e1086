"""From stored experiences to what a fine-tuning job trains on: decoded content, what was said, and what is left out.

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
from plaudit.core.ports.store import ExperienceStore
from plaudit.learner.features.content import decode_contents
from plaudit.learner.features.context import allowed_mask
from plaudit.learner.finetuning.job_spec import JobSpec
from plaudit_models.feedback_targets import NO_PAIR, FeedbackTargets, feedback_targets
from plaudit_models.preprocess import input_dtype
from plaudit_models.spec import ModelSpec
from plaudit_models.training.experiences import Experiences

CHUNK: Final = 256
_MISSING: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Attributes:
    experiences: what users said about the answers that were served; of weight 0 where they spoke of others only.
    feedback_targets: everything that they said, a row for each.
    used: the experiences behind the rows.
    facts: how many there are of what, and how stale they are, for the manifest.
    """

    experiences: Experiences
    feedback_targets: FeedbackTargets
    used: Sequence[Experience]
    facts: dict[str, Any]


def lessons(
    store: ExperienceStore, spec: ModelSpec, tokenizer: Tokenizer | None, task: JobSpec, *, version: int
) -> TrainingData:
    """What a job that starts from ``version`` learns from.

    Raises:
        ValueError: there is nothing to learn from; says why.
    """
    plan = task.plan
    judged = [
        experience
        for experience in store.experiences(after=task.snapshot - plan.max_experiences, up_to=task.snapshot)
        if experience.label is not None and not experience.excluded
    ]
    recent = [experience for experience in judged if _behind(experience, version) <= plan.max_versions_behind]
    if judged and not recent:
        raise ValueError(
            f"finetune.max_versions_behind: {plan.max_versions_behind} leaves out all of {len(judged)} experiences; "
            f"the latest was served {min(_behind(e, version) for e in judged)} versions before version {version}"
        )
    made = training_data(recent, store, spec, tokenizer, task)
    if not made.used:
        raise ValueError(
            f"none of {len(recent)} experiences can be trained on: those without content cannot (is the server's "
            f"store_content switched off?), nor those picked from dynamic actions of the request"
        )
    made.facts.update(
        _staleness(made.used, version),
        too_stale=len(judged) - len(recent),
        with_candidates=sum(bool(experience.decision.dynamic_actions) for experience in recent),
    )
    return made


def training_data(
    learned: Sequence[Experience],
    store: ExperienceStore,
    spec: ModelSpec,
    tokenizer: Tokenizer | None,
    task: JobSpec,
) -> TrainingData:
    """Decode what can be trained on: where there is content, and something is said. Equal items are kept once.

    What was picked from dynamic_actions of the request is left out: it says nothing of the model's actions.
    """
    pools = {name: _Pool() for name in spec.modalities}
    index: list[list[int]] = []
    used: list[Experience] = []
    judgements: list[Label] = []
    for start in range(0, len(learned), CHUNK):
        chunk = learned[start : start + CHUNK]
        contents = store.contents([experience.decision.prediction_id for experience in chunk])
        for experience in chunk:
            label = experience.label
            if experience.decision.dynamic_actions or label is None:
                continue
            if not _can_be_learned(experience.decision.action, label, spec):
                continue
            content = contents[experience.decision.prediction_id]
            row = decode_contents(spec, tokenizer, content, task.limits)
            if row is not None:
                index.append([pools[n].place(content[n], row[n]) if n in row else _MISSING for n in spec.modalities])
                used.append(experience)
                judgements.append(label)
    rewards = [experience.reward for experience in used]
    corrections = [label.correction for label in judgements]
    restricted = any(experience.decision.allowed_actions for experience in used)
    said = [
        {spec.action_index(action): reward for action, reward in label.rewards.items() if spec.has_action(action)}
        for label in judgements
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
        weight=np.array([0.0 if r is None else j.weight for r, j in zip(rewards, judgements, strict=True)], np.float32),
        allowed_mask=allowed_mask(spec.actions, [e.decision.allowed_actions for e in used]) if restricted else None,
    )
    spoken = feedback_targets(
        said, [j.weight for j in judgements], len(spec.actions), exclusivity=task.maker.exclusivity
    )
    return TrainingData(experiences, spoken, used, _counts(experiences, spoken))


def _can_be_learned(action: str, label: Label, spec: ModelSpec) -> bool:
    return spec.has_action(action) and any(spec.has_action(each) for each in label.rewards)


def _counts(experiences: Experiences, spoken: FeedbackTargets) -> dict[str, Any]:
    corrections = int((experiences.correction != _MISSING).sum())
    preferences = int((spoken.preferred != NO_PAIR).sum())
    return {
        "trained_on": len(experiences),
        "corrections": corrections,
        "preferences": preferences,
        "thumbs_and_ratings": len(experiences) - corrections - preferences,
    }


def _behind(experience: Experience, version: int) -> int:
    """How many versions ago it was served; one in an experiment may be newer than the one that is live."""
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


class _Pool:
    """Distinct items of one modality, each decoded item kept once."""

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
            return array.tobytes()
