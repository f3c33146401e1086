"""Training data of a fine-tuning job from stored experiences: decoded content, feedback, and what is left out.

Knows nothing about how training works.

Notation:
    n: experiences, m: number of modalities, u: unique items of one modality, a: number of actions, k: actions of the
    longest list
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from plaudit.core.events import Content, EncodedContent, TensorContent, TextContent
from plaudit.core.experience import Experience
from plaudit.core.ports.store import ExperienceReader
from plaudit.learner.features.content import decode_contents
from plaudit.learner.features.context import allowed_mask
from plaudit.learner.finetuning.job_spec import JobSpec, TrainingPlan
from plaudit_models.limits import Limits
from plaudit_models.preprocess import input_dtype, tokenize_all
from plaudit_models.spec import ModelSpec
from plaudit_models.training.data.experiences import Experiences, ListedExperiences
from plaudit_models.training.data.feedback_targets import NO_PAIR, FeedbackTargets, build_feedback_targets

CHUNK: Final = 256
_MISSING: Final = -1


@dataclass(frozen=True, slots=True, eq=False)
class TrainingData:
    """Experiences that can be trained on, decoded.

    Attributes:
        experiences: feedback on the answers that were served; of weight 0 where it is on other answers only.
        feedback_targets: all feedback on fixed actions, a row per experience.
        listed: experiences of dynamic actions, likewise; None if there are none.
        used: experiences behind the rows of both kinds.
        used_listed: those behind ``listed``, in its order.
        facts: counts by kind, and staleness, for the manifest.
    """

    experiences: Experiences
    feedback_targets: FeedbackTargets
    listed: ListedExperiences | None
    used: Sequence[Experience]
    used_listed: Sequence[Experience]
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
        if experience.counts
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
            f"store_content switched off?), nor those of dynamic actions where the model scores no text"
        )
    made.facts.update(
        _staleness(made.used, version), too_stale=len(labelled) - len(recent), unusable=len(recent) - len(made.used)
    )
    return made


def decode_training_data(
    chosen: Sequence[Experience],
    store: ExperienceReader,
    spec: ModelSpec,
    tokenizer: Tokenizer | None,
    plan: TrainingPlan,
) -> TrainingData:
    """Decode the experiences that have content and feedback on one of the actions that could be picked: the model's, or
    those listed, where the model scores text. Equal items are kept once.
    """
    fixed, listed = _Rows(spec), _Rows(spec)
    texts = _UniqueItems()
    lists: list[list[int]] = []
    for start in range(0, len(chosen), CHUNK):
        chunk = chosen[start : start + CHUNK]
        ids = [experience.decision.prediction_id for experience in chunk]
        contents = store.contents(ids)
        dynamic = [e.decision.prediction_id for e in chunk if e.decision.dynamic and spec.scores_text]
        listed_actions = store.dynamic_actions(dynamic) if dynamic else {}
        for experience, id_ in zip(chunk, ids, strict=True):
            if not experience.decision.dynamic:
                fixed.add(experience, spec.actions, contents[id_], tokenizer, plan.limits)
            elif id_ in listed_actions:
                actions = listed_actions[id_]
                if listed.add(experience, [each.id for each in actions], contents[id_], tokenizer, plan.limits):
                    tokens = _tokens([each.text for each in actions], spec, tokenizer)
                    lists.append(
                        [texts.place(TextContent(a.text), row) for a, row in zip(actions, tokens, strict=True)]
                    )
    restricted = any(experience.decision.allowed_actions for experience in fixed.used)
    allowed = allowed_mask(spec.actions, [e.decision.allowed_actions for e in fixed.used]) if restricted else None
    experiences = fixed.experiences(allowed)
    targets = fixed.targets(len(spec.actions), plan)
    pairs = (targets.preferred != NO_PAIR).sum()
    made = None
    if lists:
        k = max(map(len, lists))
        made = ListedExperiences(
            listed.experiences(np.array([[i < len(each) for i in range(k)] for each in lists])),
            np.stack(texts.items),
            np.array([[*each, *[0] * (k - len(each))] for each in lists], np.int64),
        )
        pairs += (listed.targets(k, plan).preferred != NO_PAIR).sum()
    used = sorted(fixed.used + listed.used, key=lambda experience: experience.number)
    corrections = sum(place != _MISSING for place in fixed.corrections + listed.corrections)
    facts = {
        "trained_on": len(used),
        "with_dynamic_actions": len(listed.used),
        "corrections": corrections,
        "preferences": int(pairs),
        "thumbs_and_ratings": len(used) - corrections - int(pairs),
    }
    return TrainingData(experiences, targets, made, used, listed.used, facts)


class _Rows:
    """Experiences of one kind of decision, as they are decoded."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._pools = {name: _UniqueItems() for name in spec.modalities}
        self._index: list[list[int]] = []
        self._places: list[int] = []
        self._rewards: list[dict[int, float]] = []
        self._trust: list[float] = []
        self.used: list[Experience] = []
        self.corrections: list[int] = []

    def add(
        self,
        experience: Experience,
        actions: Sequence[str],
        content: Mapping[str, Content],
        tokenizer: Tokenizer | None,
        limits: Limits,
    ) -> bool:
        """Add a row, if there is anything to train on."""
        label, places = experience.heard_label, {action: place for place, action in enumerate(actions)}
        if label is None or experience.decision.action not in places or not places.keys() & label.rewards.keys():
            return False
        row = decode_contents(self._spec, tokenizer, content, limits)
        if row is None:
            return False
        self._index.append(
            [pool.place(content[n], row[n]) if n in row else _MISSING for n, pool in self._pools.items()]
        )
        self._places.append(places[experience.decision.action])
        self._rewards.append({places[a]: reward for a, reward in label.rewards.items() if a in places})
        self._trust.append(label.weight)
        self.corrections.append(_MISSING if label.correction is None else places.get(label.correction, _MISSING))
        self.used.append(experience)
        return True

    def experiences(self, allowed: npt.NDArray[np.bool_] | None) -> Experiences:
        """The rows; ``allowed`` is ``[n, a]``, or None where everything was."""
        n, modalities = len(self.used), self._spec.modalities
        said = [rewards.get(place) for rewards, place in zip(self._rewards, self._places, strict=True)]
        return Experiences(
            pools={
                name: np.stack(pool.items)
                if pool.items
                else np.zeros((0, *modalities[name].shape), input_dtype(modalities[name]))
                for name, pool in self._pools.items()
            },
            index=np.array(self._index, np.int64).reshape(n, len(modalities)),
            action=np.array(self._places, np.int64),
            reward=np.array([0.0 if reward is None else reward for reward in said], np.float32),
            correction=np.array(self.corrections, np.int64),
            weight=np.array(
                [0.0 if r is None else trust for r, trust in zip(said, self._trust, strict=True)], np.float32
            ),
            allowed_mask=allowed,
        )

    def targets(self, n_actions: int, plan: TrainingPlan) -> FeedbackTargets:
        """All feedback, over ``n_actions`` places."""
        return build_feedback_targets(self._rewards, self._trust, n_actions, exclusivity=plan.head_builder.exclusivity)


def _tokens(texts: Sequence[str], spec: ModelSpec, tokenizer: Tokenizer | None) -> npt.NDArray[np.int64]:
    assert tokenizer is not None  # a spec that scores text has a text modality
    return tokenize_all(texts, spec.dynamic_action_modality[1], tokenizer)


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
