"""Models and their registries."""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.adapters.registry.directory import DirectoryCatalog
from plaudit.compose.paths import data_dir
from plaudit.core.errors import ConfigError
from plaudit.core.ports.registry import ModelCatalog, ModelRegistry
from plaudit.core.settings import Settings


def model_catalog(settings: Settings) -> ModelCatalog:
    described = [settings.spec().name] if settings.model else []
    return DirectoryCatalog(data_dir(settings) / "registry", described)


def model_registry(settings: Settings, model: str | None = None) -> ModelRegistry:
    """Registry of one model; None: of the model that the [model] table describes.

    Raises:
        InvalidInput: the name is not that of a model.
    """
    return model_catalog(settings).registry(settings.spec().name if model is None else model)


def known_models(settings: Settings) -> Sequence[str]:
    """Name in the [model] table, if there is one, then the names of the imported models."""
    described = [settings.spec().name] if settings.model else []
    return [*described, *(name for name in model_catalog(settings).models() if name not in described)]


def resolve_model(settings: Settings, name: str) -> str:
    """Name of the model that a command is about; "" is the one in the [model] table, or the only one there is.

    Raises:
        ConfigError: there is none of that name, or several to choose from.
    """
    known = known_models(settings)
    if name in known:
        return name
    if name:
        raise ConfigError(f"model: {name!r} is not known; there are {list(known)}")
    if not settings.model and len(known) != 1:
        raise ConfigError(f"model: there is no [model] table and {len(known)} models were imported; name one: {known}")
    return known[0]
