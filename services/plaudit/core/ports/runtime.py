"""Port of model runtimes: version folders as proven, servable models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from plaudit_models.bundle import Manifest
from plaudit_models.spec import TextTokenizer


class RunFailed(Exception):
    """The runtime could not run a graph on these inputs; the message is its reason, as it may be told to clients."""


class TrunkOutputs(NamedTuple):
    """Outputs of a trunk for a batch.

    Attributes:
        embedding: ``[b, d]``.
        base_logits: ``[b, a]``.
        native: requested native outputs, by name, ``[b, …]``.
    """

    embedding: npt.NDArray[np.float32]
    base_logits: npt.NDArray[np.float32]
    native: Mapping[str, npt.NDArray[Any]]


class ServableModel(Protocol):
    """One proven version, loaded for inference. Safe to use from several threads.

    There is no close: it is released with its last reference, so never under a request.

    Notation:
        b: batch size, d: embedding size, a: number of actions, k: number of dynamic actions
    """

    @property
    def manifest(self) -> Manifest: ...

    @property
    def digest(self) -> str:
        """``manifest.digest``, computed once."""
        ...

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """Tokenizer of the text modalities; None if the version has none."""
        ...

    def trunk(
        self, inputs: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] = (), deadline_s: float = math.inf
    ) -> TrunkOutputs:
        """Content → features.

        Args:
            inputs: as :class:`plaudit_models.preprocess.Batch` makes them.
            outputs: names of native outputs of an imported graph that are requested too.
            deadline_s: when the run is ended, on the clock of ``time.monotonic``.

        Raises:
            RunStopped: it was ended.
            RunFailed: the graph rejects the inputs, or cannot be run.
        """
        ...

    def head(self, embedding: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Features ``[b, d]`` and ``[b, a]`` → scores ``[b, a]``, unnormalised log-probabilities."""
        ...

    def action_vectors(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors that score dynamic actions, ``[k, d]``: base logits are ``embedding · vectorsᵀ``. Only where the
        spec has ``scores_text``."""
        ...

    def dynamic_scores(
        self, embedding: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], base_logits: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.floating]:
        """Unnormalised log-probabilities of one request's dynamic actions, ``[k]``.

        Args:
            embedding: ``[d]``.
            vectors: ``[k, d]``.
            base_logits: ``[k]``, ``embedding · vectorsᵀ``.
        """
        ...

    def warm(self, batch_sizes: Sequence[int], again: bool = False) -> None:
        """Run every batch size once that was not run before, so that the first request of that size does not pay.

        Rows are the recorded ones, which the graph is known to take: where it cannot be run on them, it is the version
        that is at fault.

        Args:
            again: run them even if they were run before, such as to time them.
        """
        ...


class ModelRuntime(Protocol):
    """Loads version folders. There is no way to a model that is not proven. Safe to use from several threads."""

    def load(self, folder: Path) -> ServableModel:
        """Check every digest, open the graphs, check them against the spec and against the golden outputs.

        Versions that have the trunk in common share it in memory, so loading a refreshed head costs milliseconds.

        Raises:
            CorruptBundle: the folder does not match its manifest, or its graphs do not match the spec or the golden
            outputs.
        """
        ...
