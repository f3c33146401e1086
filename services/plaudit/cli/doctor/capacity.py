"""Check of the doctor on memory: what the learner's state of a model needs, beside what the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from plaudit.cli.doctor.findings import Finding, State
from plaudit.compose.learner import head_builder
from plaudit.compose.registry import known_models, model_registry
from plaudit.core.errors import PlauditError
from plaudit.core.limits import MAX_ACTIONS
from plaudit.core.settings import Settings
from plaudit_models.bundle import CorruptBundle

_COPIES: Final = 8
"""Reward states in memory at once: what serves, what is learned, those that are being made, and their posteriors."""
_NUMBER_BYTES: Final = 8


def examine_memory(settings: Settings) -> Iterator[Finding]:
    """Finding on each model about which no learner can learn, or whose learner would not fit into memory."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for model in known_models(settings):
        try:
            registry = model_registry(settings, model)
            live = registry.rollout().live
            manifest = None if live is None else registry.manifest(live)
        except (PlauditError, CorruptBundle):  # said by the checks of the registry
            continue
        if manifest is None:
            continue
        space = head_builder(settings).space(manifest)
        if space.n_actions > MAX_ACTIONS:
            problem = f"{model} has {space.n_actions} actions, and a learner takes {MAX_ACTIONS}"
            fix = "serve the model without a learner (`plaudit serve`), or import it with fewer actions"
            yield Finding("actions", State.ERROR, problem, fix)
            continue
        needed_bytes = _COPIES * (space.n_actions + space.n_regressors) * space.n_regressors * _NUMBER_BYTES
        if needed_bytes > memory_bytes:
            problem = (
                f"the learner of {model} needs about {needed_bytes / 2**30:.0f} GiB for {space.n_actions} actions, and "
                f"the machine has {memory_bytes / 2**30:.0f} GiB"
            )
            fix = "serve the model without a learner (`plaudit serve`), or use dynamic actions, which share one state"
            yield Finding("memory", State.ERROR, problem, fix)
