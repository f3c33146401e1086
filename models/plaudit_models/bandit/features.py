"""Features φ(x) of a context for the fast loop, made of the trunk's outputs.

Knows nothing about rewards. Features are only comparable within one feature space: the same trunk and the same
settings, so everything computed from features carries its :class:`FeatureSpace` and refuses another's.

Notation:
    b: batch size, a: number of actions, d: embedding size, m: number of embedding features, f: number of features

    φ(x) = [P(x), u(x)³·z(x), 1],  f = a + m + 1
    P(x)     base probabilities
    u(x)     1 − sureness: the entropy of P over its largest, log a
    z(x)     random Fourier features of the unit-length embedding e, √(2/m)·[cos(Ω e), sin(Ω e)], so that z(x)ᵀz(y) is
             nearly exp(−‖e_x − e_y‖²/2), the kernel of smooth functions of the embedding (Rahimi and Recht, 2007;
             Ω orthogonal as in Yu et al., Orthogonal Random Features, 2016), at a size that does not depend on d

    x = [Cᵀ P, the rest of φ], g = min(a, 256) + m + 1
    C        codes of the actions, shape [a, 256]: rows of Hadamard matrices with random signs, of length 1, any 256
             successive ones orthogonal (Ailon and Chazelle, The fast Johnson-Lindenstrauss transform, 2009); the
             identity, [a, a], where there are no more than 256 actions

Where the base model is sure, its probabilities say all that the fast loop needs, and few features learn from few
thumbs; where it knows nothing, they say nothing, and only the embedding can tell contexts apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Floats = npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]

MIN_NORM: Final = 1e-6
"""Embeddings shorter than this are not stretched to unit length, so that an all-zero embedding stays zero."""

MAX_BASE_REGRESSORS: Final = 256
"""Base probabilities of more actions than this are mixed into this many regressors, a power of 2. Codes of any two
actions overlap by about 1/16 then, which costs less than sums that grow with the square of the number of actions."""

UNSURENESS_POWER: Final = 3
"""The embedding fades as this power of the base model's unsureness: at 1, what it says of unsure contexts leaks into
sure ones and cost unaffected answers up to three points."""

_SEED: Final = 0


class FeatureMismatch(ValueError):
    """Mix of features from different feature spaces; the message says how they differ."""


@dataclass(frozen=True, slots=True)
class FeatureSpace:
    """Which φ, of which trunk, and what one answer's praise says of the others: what two sums must share to be added.

    Attributes:
        trunk_digest: digest of the trunk whose outputs the features are made of.
        n_actions: a.
        embedding_size: d.
        embedding_features: m, even; 0 leaves the embedding out.
        exclusivity: ρ in [0, 1], how much praise of one answer speaks against each other answer in the same context,
            as a share of an event; 0 where several answers may be right at once.
    """

    trunk_digest: str
    n_actions: int
    embedding_size: int
    embedding_features: int = 0
    exclusivity: float = 0.0

    def __post_init__(self) -> None:
        m = self.embedding_features
        sizes_fit = self.n_actions >= 2 and self.embedding_size >= 1 and m >= 0 and m % 2 == 0
        if not (sizes_fit and 0.0 <= self.exclusivity <= 1.0):
            raise ValueError(
                f"{self}: needs n_actions ≥ 2, embedding_size ≥ 1, an even number of embedding_features ≥ 0 and "
                f"exclusivity in [0, 1]"
            )

    @property
    def n_features(self) -> int:
        return self.n_actions + self.embedding_features + 1

    @property
    def n_base_regressors(self) -> int:
        """Regressors that are made of the base probabilities."""
        return min(self.n_actions, MAX_BASE_REGRESSORS)

    @property
    def n_regressors(self) -> int:
        """g: features as the reward model sees them, whose number does not grow with that of the actions."""
        return self.n_base_regressors + self.embedding_features + 1

    @property
    def coded(self) -> bool:
        """Whether the base probabilities are too many to be regressors themselves."""
        return self.n_actions > MAX_BASE_REGRESSORS


def require_same_space(ours: DataclassInstance, theirs: DataclassInstance) -> None:
    """Raises FeatureMismatch naming the fields in which two spaces of one class differ."""
    pairs = {name: (value, getattr(theirs, name)) for name, value in asdict(ours).items()}
    differing = ", ".join(f"{name} {one!r} is not {other!r}" for name, (one, other) in pairs.items() if one != other)
    if differing:
        raise FeatureMismatch(
            f"features of different spaces cannot be mixed: {differing}; compute the features anew from stored content"
        )


def log_softmax(logits: Floats) -> Float64:
    """Shapes ``[b, a]`` → ``[b, a]``; finite wherever the logits are."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    log_probs: Float64 = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probs


def base_probabilities(base_logits: Floats) -> Float64:
    """softmax(base_logits): what the model said before feedback. Shapes ``[b, a]`` → ``[b, a]``."""
    probs: Float64 = np.exp(log_softmax(base_logits))
    return probs


def sureness(base_logits: Floats) -> Float64:
    """c(x) = 1 − H(P)/log a: 0 where every action is as probable, 1 where one has it all. ``[b, a]`` → ``[b, 1]``."""
    log_probs = log_softmax(base_logits)
    entropy = -(np.exp(log_probs) * log_probs).sum(axis=1, keepdims=True)
    sure: Float64 = np.clip(1.0 - entropy / np.log(base_logits.shape[1]), 0.0, 1.0)
    return sure


@lru_cache(maxsize=4)
def directions(embedding_size: int, embedding_features: int) -> Float64:
    """Ωᵀ, shape ``[d, m / 2]``: always the same for the same sizes.

    Drawn with numpy's ``RandomState``, whose streams are frozen for good; orthonormal blocks with their signs settled,
    rows as long as Gaussian ones.
    """
    random = np.random.RandomState(_SEED)
    blocks: list[Float64] = []
    missing = embedding_features // 2
    while missing:
        width = min(missing, embedding_size)
        basis, triangle = np.linalg.qr(random.standard_normal((embedding_size, width)))
        lengths = np.sqrt(random.chisquare(embedding_size, width))
        blocks.append(basis * (np.where(np.diag(triangle) < 0.0, -1.0, 1.0) * lengths))
        missing -= width
    together: Float64 = np.concatenate(blocks, axis=1)
    together.flags.writeable = False
    return together


@lru_cache(maxsize=4)
def action_codes(n_actions: int) -> Float64:
    """C of the notation above, shape ``[a, 256]``, for more than 256 actions; each entry is ±1/16.

    Always the same for the same number, and the codes of fewer actions are the first of more.
    """
    hadamard: Float64 = np.ones((1, 1))
    while len(hadamard) < MAX_BASE_REGRESSORS:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    n_blocks = -(-n_actions // MAX_BASE_REGRESSORS)
    signs = np.random.RandomState(_SEED).randint(0, 2, (n_blocks, MAX_BASE_REGRESSORS)) * 2.0 - 1.0
    codes: Float64 = (hadamard * signs[:, None, :]).reshape(-1, MAX_BASE_REGRESSORS)[:n_actions]
    codes /= np.sqrt(MAX_BASE_REGRESSORS)
    codes.flags.writeable = False
    return codes


def regressors(space: FeatureSpace, phi: Float64) -> Float64:
    """x of the notation above: ``[b, f]`` → ``[b, g]``."""
    if not space.coded:
        return phi
    a = space.n_actions
    return np.concatenate([phi[:, :a] @ action_codes(a), phi[:, a:]], axis=1)


def along_codes(space: FeatureSpace, values: Float64) -> Float64:
    """Product of the base regressors' part with each action's code: ``[b, g]`` → ``[b, a]``."""
    own = values[:, : space.n_base_regressors]
    product: Float64 = own @ action_codes(space.n_actions).T if space.coded else own
    return product


def waves(vectors: Floats, n_waves: int) -> Float64:
    """[cos(Ω v), sin(Ω v)] of the vectors at unit length: √(n_waves/2)·z(v) of the notation above.

    Shapes ``[n, d]`` → ``[n, n_waves]``; ``n_waves`` even.
    """
    vectors = vectors.astype(np.float64)
    norm = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), MIN_NORM)
    turned = (vectors / norm) @ directions(vectors.shape[1], n_waves)
    return np.concatenate([np.cos(turned), np.sin(turned)], axis=1)


def features(space: FeatureSpace, embedding: Floats, base_logits: Floats) -> Float64:
    """φ(x) of the notation above.

    Args:
        embedding: shape ``[b, d]``.
        base_logits: shape ``[b, a]``.

    Returns:
        Features, shape ``[b, f]``.

    Raises:
        ValueError: a shape is not the space's, or a value is not finite.
    """
    b = len(base_logits)
    if base_logits.shape != (b, space.n_actions):
        raise ValueError(f"base_logits: shape {base_logits.shape} is not [b, {space.n_actions}]")
    if embedding.shape != (b, space.embedding_size):
        raise ValueError(f"embedding: shape {embedding.shape} is not [{b}, {space.embedding_size}]")
    for name, values in (("base_logits", base_logits), ("embedding", embedding)):
        bad_rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if bad_rows.size:
            raise ValueError(f"{name}: row {bad_rows[0]} holds a value that is not finite; leave that event out")
    blocks = [base_probabilities(base_logits)]
    if space.embedding_features:
        scale = (1.0 - sureness(base_logits)) ** UNSURENESS_POWER * np.sqrt(2.0 / space.embedding_features)
        blocks.append(scale * waves(embedding, space.embedding_features))
    blocks.append(np.ones((b, 1)))
    return np.concatenate(blocks, axis=1)
