"""How well one property alone predicts the target, and which labels all cheap features together speak against.

Both are out of fold: what predicts a row has not seen its group.

Notation:
    n: rows, a: classes, f: features
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from plaudit_models.data.splits import place_in_unit_interval

MAX_NOISE_ROWS: Final = 20_000
"""Rows on which label noise is looked for, chosen by the hash of their group."""

_FOLDS: Final = 5
_SHARPNESS: Final = 4.0
_WORDS: Final = 2**14

Labels = npt.NDArray[np.int64]


def folds_of(groups: Sequence[str], folds: int) -> npt.NDArray[np.int64]:
    """Fold of each row by the hash of its group, ``[n]``; rows without one are groups of their own."""
    keys = [group or f"row {i}" for i, group in enumerate(groups)]
    return np.array([int(place_in_unit_interval(f"fold {key}") * folds) for key in keys], np.int64)


def predictive_power(values: Sequence[str], labels: Labels, groups: Sequence[str]) -> float:
    """Balanced accuracy out of fold from one property alone, scaled so that chance is 0 and always right is 1.

    Args:
        values: property of each row as text, "" where there is none. Numbers are split by a small tree, other values
            stand for the class that they mostly have.
    """
    present = np.unique(labels)
    if len(present) < 2 or len(set(values)) < 2:
        return 0.0
    fold = folds_of(groups, 2)
    numbers = _numbers(values)
    predicted = np.full(len(labels), -1, np.int64)
    for held_out in (0, 1):
        train, test = fold != held_out, fold == held_out
        if not test.any() or len(np.unique(labels[train])) < 2:
            continue
        if numbers is not None:
            tree = DecisionTreeClassifier(max_depth=4, min_samples_leaf=3, class_weight="balanced", random_state=0)
            predicted[test] = tree.fit(numbers[train, None], labels[train]).predict(numbers[test, None])
        else:
            predicted[test] = _by_value(values, labels, train, test)
    seen = predicted >= 0
    if not seen.any():
        return 0.0
    chance = 1.0 / len(present)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class that nobody has in these folds
        balanced = float(balanced_accuracy_score(labels[seen], predicted[seen]))
    return max(0.0, (balanced - chance) / (1.0 - chance))


def _numbers(values: Sequence[str]) -> npt.NDArray[np.float64] | None:
    """Values as numbers, with one below all others where there is none; None if one is no number."""
    try:
        numbers = np.array([float(value) if value else np.nan for value in values])
    except ValueError:
        return None
    if not np.isfinite(numbers).any():
        return None
    lowest = float(np.nanmin(numbers[np.isfinite(numbers)]))
    return np.where(np.isfinite(numbers), numbers, lowest - 1.0)


def _by_value(
    values: Sequence[str], labels: Labels, train: npt.NDArray[np.bool_], test: npt.NDArray[np.bool_]
) -> list[int]:
    size: Counter[int] = Counter(labels[train].tolist())
    counts: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for i in np.flatnonzero(train).tolist():
        counts[values[i]][int(labels[i])] += 1
    usual: int = size.most_common(1)[0][0]

    def best(value: str) -> int:
        if value not in counts:
            return usual
        return max(counts[value], key=lambda label: counts[value][label] / size[label])

    return [best(values[i]) for i in np.flatnonzero(test).tolist()]


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """Labels that cheap features speak against.

    Attributes:
        accuracy: balanced accuracy out of fold; near chance it says nothing.
        suspects: rows, the most suspicious first, each with the class that it looks like and a margin in [0, 1].
    """

    accuracy: float
    chance: float
    suspects: Sequence[tuple[int, int, float]]


def label_noise(features: Any, labels: Labels, groups: Sequence[str]) -> LabelNoise:
    """Suspicious labels by confident learning (Northcutt, Jiang, Chuang 2021, section 3.1), from ridge regression.

    A row is suspected if it looks more like another class than the rows of that class do on average.

    Args:
        features: ``[n, f]``, dense or sparse.
    """
    classes, own = np.unique(labels, return_inverse=True)
    n, a = len(labels), len(classes)
    fold = folds_of(groups, _FOLDS)
    probability = np.full((n, a), 1.0 / a)
    for held_out in range(_FOLDS):
        train, test = fold != held_out, fold == held_out
        known = np.unique(own[train])
        if not test.any() or len(known) < 2:
            continue
        model = RidgeClassifier(alpha=10.0, class_weight="balanced")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of badly conditioned features
            scores = model.fit(features[train], own[train]).decision_function(features[test])
        if scores.ndim == 1:
            scores = np.stack([-scores, scores], axis=1)
        exponent = np.exp(_SHARPNESS * (scores - scores.max(axis=1, keepdims=True)))
        filled = np.zeros((int(test.sum()), a))
        filled[:, known] = exponent / exponent.sum(axis=1, keepdims=True)
        probability[test] = filled
    predicted = probability.argmax(axis=1)
    accuracy = float(np.mean([(predicted[own == i] == i).mean() for i in range(a)]))
    usual = np.array([probability[own == i, i].mean() for i in range(a)])
    rows = np.arange(n)
    margin = probability[rows, predicted] - probability[rows, own]
    suspected = (predicted != own) & (probability[rows, predicted] >= usual[predicted])
    order = sorted(np.flatnonzero(suspected).tolist(), key=lambda i: -margin[i])
    return LabelNoise(accuracy, 1.0 / a, [(i, int(classes[predicted[i]]), float(margin[i])) for i in order])


def feature_matrix(dense: Sequence[npt.NDArray[np.float32]], texts: Sequence[Sequence[str]]) -> Any:
    """Features of all modalities side by side, ``[n, f]``: dense ones scaled, texts as hashed words and pairs of words.

    Args:
        dense: per modality ``[n, f]``.
        texts: per modality ``n`` texts.
    """
    blocks: list[Any] = [StandardScaler().fit_transform(block) / np.sqrt(block.shape[1]) for block in dense]
    if not texts:
        return np.concatenate(blocks, axis=1)
    vectorizer = HashingVectorizer(n_features=_WORDS, ngram_range=(1, 2), alternate_sign=False)
    return sparse.csr_matrix(
        sparse.hstack([*(sparse.csr_matrix(block) for block in blocks), *map(vectorizer.transform, texts)])
    )
