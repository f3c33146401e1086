"""One type per kind of decision: what is learned about it, and the head that follows from that.

:class:`FixedActions` are the model's own, :class:`DynamicActions` those that a request lists. The learner loops over
the heads of a version and asks nowhere else which kind a decision is of. A label goes into one head: what is said of
dynamic actions never mixes with what is said of fixed ones. Knows nothing about stores or when a head is refreshed.

Notation:
    n: contexts, a: number of fixed actions, k: actions of one context
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Protocol, Self, TypeVar

import numpy as np
from safetensors.numpy import load_file, save_file

from plaudit.core.experience import DecisionHeader
from plaudit.learner.features.context import Context, LabelledContext, stack
from plaudit_models.bandit.dynamic_actions import (
    DynamicActionEvidence,
    DynamicActionHead,
    DynamicActionSpace,
    DynamicActionState,
    bounded_dynamic_step,
    dynamic_action_head_from_bytes,
    dynamic_action_state_from_bytes,
    evidence_of_list,
    expected_rewards,
)
from plaudit_models.bandit.features import FeatureSpace, Float64, features
from plaudit_models.bandit.head import build_head
from plaudit_models.bandit.improvement import HeadSettings, bounded_step, head_scores
from plaudit_models.bandit.posterior import posterior
from plaudit_models.bandit.reward_model import (
    Evidence,
    RewardPrior,
    RewardState,
    state_from_bytes,
)
from plaudit_models.bundle import (
    DYNAMIC_HEAD,
    DYNAMIC_HEAD_GOLDEN,
    HEAD,
    HEAD_GOLDEN,
    TEXT_SCORER_GOLDEN,
    TRUNK_GOLDEN,
    Manifest,
)
from plaudit_models.spec import BASE_LOGITS, EMBEDDING, SCORES, VECTORS


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """Expected rewards of the actions of one context.

    Attributes:
        reward: shape ``[k]``.
        known: share of the prior variance of one action's reward that evidence has removed, in [0, 1]; 0 where no
            action was named.
    """

    reward: Float64
    known: float = 0.0


@dataclass(frozen=True, slots=True)
class BuiltVersion:
    """A version, as far as it tells what its heads were built from.

    Attributes:
        evidence: of its head of fixed actions, which the graph does not tell; None: there was none, or it is not known.
    """

    manifest: Manifest
    folder: Path
    evidence: RewardState | None


@dataclass(frozen=True, slots=True)
class StepRules:
    """Limits of one refresh.

    Attributes:
        settings: of the heads; how boldly they follow the evidence.
        floor: logged exploration floor ε in (0, 1].
        max_kl: largest divergence from what is served, in nats, counted where the base policy is sure.
    """

    settings: HeadSettings
    floor: float
    max_kl: float


@dataclass(frozen=True, slots=True, eq=False)
class HeadStep:
    """A step from a served head towards the latest evidence.

    Attributes:
        head: evidence to build the new head from.
        n_contexts: recent contexts that the step was measured on; 0: there were none, and the head stays as served.
        share: share of the way to the latest evidence that was gone, in [0, 1].
        kl: divergence of the new policy from the served one, as ``StepRules.max_kl`` counts it, in nats.
    """

    head: ActionHead
    n_contexts: int = 0
    share: float = 1.0
    kl: float = 0.0


class ActionHead(Protocol):
    """Evidence about one kind of decision; immutable, every change is a new one."""

    KEY: ClassVar[str]
    """Name of the kind, and of its part of the learner's state."""
    RECENT: ClassVar[int]
    """Number of latest contexts that a step is measured on."""

    @property
    def space(self) -> FeatureSpace | DynamicActionSpace:
        """Feature space of the evidence."""

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Inverse of :meth:`to_bytes`. Raises CorruptState."""

    @classmethod
    def of_version(cls, version: BuiltVersion) -> Self | None:
        """Evidence that the version's head was built from; None if there was none, or it is not known."""

    def to_bytes(self) -> bytes:
        """The evidence as safetensors."""

    @staticmethod
    def owns(decision: Context | DecisionHeader) -> bool:
        """Whether the decision is of this head's kind. The methods below take only such."""

    def add(self, labelled: Sequence[LabelledContext]) -> Self:
        """The evidence with these labels."""

    def subtract(self, labelled: Sequence[LabelledContext]) -> Self:
        """Undo :meth:`add` of the same labels."""

    def expected(self, prior: RewardPrior, contexts: Sequence[Context], places: Sequence[int | None]) -> list[Expected]:
        """Rewards that are expected in each context, and how much is known of the action at one place of each."""

    def step_from(self, served: Self, recent: Sequence[Context], rules: StepRules) -> HeadStep:
        """Step from what is served towards this evidence, as far as the rules allow on one or more recent contexts."""

    def write(self, folder: Path, settings: HeadSettings) -> None:
        """Write the head into a version folder that has its trunk and golden pairs."""


@dataclass(frozen=True, slots=True, eq=False)
class FixedActions:
    """Evidence about the model's own actions, and ``head.onnx``."""

    state: RewardState

    KEY: ClassVar[str] = "fixed_actions"
    RECENT: ClassVar[int] = 256

    @property
    def space(self) -> FeatureSpace:
        return self.state.space

    @classmethod
    def from_bytes(cls, raw: bytes) -> FixedActions:
        return cls(state_from_bytes(raw))

    @classmethod
    def of_version(cls, version: BuiltVersion) -> FixedActions | None:
        return None if version.evidence is None else cls(version.evidence)

    def to_bytes(self) -> bytes:
        return self.state.to_bytes()

    @staticmethod
    def owns(decision: Context | DecisionHeader) -> bool:
        return not decision.dynamic

    def add(self, labelled: Sequence[LabelledContext]) -> FixedActions:
        return FixedActions(self.state.add(evidence_of(self.space, labelled))) if labelled else self

    def subtract(self, labelled: Sequence[LabelledContext]) -> FixedActions:
        return FixedActions(self.state.subtract(evidence_of(self.space, labelled))) if labelled else self

    def expected(self, prior: RewardPrior, contexts: Sequence[Context], places: Sequence[int | None]) -> list[Expected]:
        if not contexts:
            return []
        phi = features(self.space, *stack([context.features for context in contexts]))
        belief = posterior(self.state, prior)
        named = [i for i, place in enumerate(places) if place is not None]
        known = np.zeros(len(contexts))
        known[named] = belief.known(phi[named], np.array([places[i] for i in named], np.int64))
        return [Expected(*each) for each in zip(belief.expected(phi), known.tolist(), strict=True)]

    def step_from(self, served: FixedActions, recent: Sequence[Context], rules: StepRules) -> HeadStep:
        rows = stack([context.features for context in recent])
        step = bounded_step(rules.settings, served.state, self.state, *rows, floor=rules.floor, max_kl=rules.max_kl)
        return HeadStep(FixedActions(step.state), len(recent), step.share, step.kl)

    def write(self, folder: Path, settings: HeadSettings) -> None:
        """Golden scores come from the formula, not from the graph, so that loading the graph proves it right."""
        (folder / HEAD).write_bytes(build_head(settings, self.state).SerializeToString())
        golden = load_file(folder / TRUNK_GOLDEN)
        scores = head_scores(settings, self.state, golden[EMBEDDING], golden[BASE_LOGITS])
        save_file({SCORES: scores.astype("float32")}, folder / HEAD_GOLDEN)


@dataclass(frozen=True, slots=True, eq=False)
class DynamicActions:
    """Evidence about dynamic actions, and ``dynamic_head.safetensors`` with its golden scores."""

    state: DynamicActionState

    KEY: ClassVar[str] = "dynamic_actions"
    RECENT: ClassVar[int] = 64  # each context is as large as its list is long

    @property
    def space(self) -> DynamicActionSpace:
        return self.state.space

    @classmethod
    def from_bytes(cls, raw: bytes) -> DynamicActions:
        return cls(dynamic_action_state_from_bytes(raw))

    @classmethod
    def of_version(cls, version: BuiltVersion) -> DynamicActions | None:
        if not version.manifest.has(DYNAMIC_HEAD):
            return None
        raw = (version.folder / version.manifest.stored_name(DYNAMIC_HEAD)).read_bytes()
        return cls(dynamic_action_head_from_bytes(raw).state)

    def to_bytes(self) -> bytes:
        return self.state.to_bytes()

    @staticmethod
    def owns(decision: Context | DecisionHeader) -> bool:
        return decision.dynamic

    def add(self, labelled: Sequence[LabelledContext]) -> DynamicActions:
        return DynamicActions(self.state.add(self._evidence(labelled))) if labelled else self

    def subtract(self, labelled: Sequence[LabelledContext]) -> DynamicActions:
        return DynamicActions(self.state.subtract(self._evidence(labelled))) if labelled else self

    def _evidence(self, labelled: Sequence[LabelledContext]) -> Iterator[DynamicActionEvidence]:
        """One after another: long lists are large."""
        for each in labelled:
            actions, said = each.context.actions, each.label.rewards
            rewards = np.array([said.get(action, 0.0) for action in actions])
            known_mask = np.array([action in said for action in actions])
            yield evidence_of_list(self.space, each.context.action_list, rewards, known_mask, each.label.weight)

    def expected(self, prior: RewardPrior, contexts: Sequence[Context], places: Sequence[int | None]) -> list[Expected]:
        expected = []
        for context, place in zip(contexts, places, strict=True):
            rewards, known = expected_rewards(self.state, prior, context.action_list)
            expected.append(Expected(rewards, 0.0 if place is None else float(known[place])))
        return expected

    def step_from(self, served: DynamicActions, recent: Sequence[Context], rules: StepRules) -> HeadStep:
        lists = [context.action_list for context in recent]
        step = bounded_dynamic_step(
            rules.settings, served.state, self.state, lists, floor=rules.floor, max_kl=rules.max_kl
        )
        return HeadStep(DynamicActions(step.state), len(recent), step.share, step.kl)

    def write(self, folder: Path, settings: HeadSettings) -> None:
        """Nothing where nothing was said: without a head, dynamic actions are scored by their base logits."""
        if not self.state.weight:
            return
        head = DynamicActionHead(settings, self.state)
        (folder / DYNAMIC_HEAD).write_bytes(head.to_bytes())
        vectors = load_file(folder / TEXT_SCORER_GOLDEN)[VECTORS]
        scores = head.scores_in(load_file(folder / TRUNK_GOLDEN)[EMBEDDING], vectors)
        save_file({SCORES: scores.astype("float32")}, folder / DYNAMIC_HEAD_GOLDEN)


HEAD_KINDS: Final[tuple[type[ActionHead], ...]] = (FixedActions, DynamicActions)

Head = TypeVar("Head", bound=ActionHead)

_NOWHERE: Final[Mapping[int, int | None]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Evidence of all kinds of decision that one trunk can answer.

    Attributes:
        heads: of fixed actions, and of dynamic ones where the model scores text.
    """

    heads: tuple[ActionHead, ...]

    @property
    def spaces(self) -> list[FeatureSpace | DynamicActionSpace]:
        return [head.space for head in self.heads]

    @property
    def trunk_digest(self) -> str:
        """Digest of the trunk whose features the evidence is about."""
        return self.heads[0].space.trunk_digest

    def head(self, kind: type[Head]) -> Head | None:
        """Evidence of one kind; None if the model cannot answer such decisions."""
        return next((head for head in self.heads if isinstance(head, kind)), None)

    def require(self, kind: type[Head]) -> Head:
        """Evidence of one kind. Raises ValueError if the model cannot answer such decisions."""
        head = self.head(kind)
        if head is None:
            raise ValueError(f"{kind.__name__}: the model cannot answer such decisions")
        return head

    def add(self, labelled: Sequence[LabelledContext]) -> Learned:
        return Learned(tuple(head.add([e for e in labelled if head.owns(e.context)]) for head in self.heads))

    def subtract(self, labelled: Sequence[LabelledContext]) -> Learned:
        """Undo :meth:`add` of the same labels."""
        return Learned(tuple(head.subtract([e for e in labelled if head.owns(e.context)]) for head in self.heads))

    def expected(
        self, prior: RewardPrior, contexts: Mapping[int, Context], places: Mapping[int, int | None] = _NOWHERE
    ) -> dict[int, Expected]:
        """Rewards that are expected in each context, by the contexts' keys.

        Args:
            places: place of the action in each context of which it is asked how much is known of it.
        """
        expected: dict[int, Expected] = {}
        for head in self.heads:
            own = {key: context for key, context in contexts.items() if head.owns(context)}
            found = head.expected(prior, list(own.values()), [places.get(key) for key in own])
            expected |= zip(own, found, strict=True)
        return expected

    def of_version(self, version: BuiltVersion) -> Learned:
        """Evidence that the version's heads were built from. Where a head has none, or some of another feature space,
        that of the same head here, which is then to be empty.
        """
        found = [(type(head).of_version(version), head) for head in self.heads]
        return Learned(tuple(head if own is None or own.space != head.space else own for own, head in found))

    def step_from(self, served: Learned, recent: Sequence[Context], rules: StepRules) -> LearnedStep | None:
        """Step of every head, each measured on those of the recent contexts that are its own; one that has none stays.
        None if no head has any.
        """
        steps = []
        for head, before in zip(self.heads, served.heads, strict=True):
            own = [context for context in recent if head.owns(context)]
            steps.append(head.step_from(before, own, rules) if own else HeadStep(before))
        measured = [step for step in steps if step.n_contexts]
        if not measured:
            return None
        return LearnedStep(
            Learned(tuple(step.head for step in steps)),
            share=min(step.share for step in measured),
            kl=max(step.kl for step in measured),
        )


@dataclass(frozen=True, slots=True, eq=False)
class LearnedStep:
    """A step of all heads at once.

    Attributes:
        learned: evidence to build the new heads from.
        share: of the head that went the smallest share of its way.
        kl: of the head that moved the policy most, in nats.
    """

    learned: Learned
    share: float
    kl: float

    @property
    def stays(self) -> bool:
        """Whether nothing moves, because the smallest step that can be taken is too large."""
        return self.share == 0.0 and self.kl == 0.0


def evidence_of(space: FeatureSpace, labelled: Sequence[LabelledContext]) -> Evidence:
    """Labels of fixed actions as evidence; actions outside the one action set of the contexts are left out."""
    n, a = len(labelled), space.n_actions
    rewards, known_mask = np.zeros((n, a)), np.zeros((n, a), np.bool_)
    index = {action: k for k, action in enumerate(labelled[0].context.actions)} if labelled else {}
    for i, each in enumerate(labelled):
        for action, reward in each.label.rewards.items():
            if action in index:
                rewards[i, index[action]], known_mask[i, index[action]] = reward, True
    phi = (
        features(space, *stack([each.context.features for each in labelled])) if n else np.zeros((0, space.n_features))
    )
    return Evidence(space, phi, rewards, known_mask, np.array([each.label.weight for each in labelled]))
