"""Settings read from the TOML file, the environment and the flags, and validated by pydantic.

The declarations are :mod:`plaudit.core.settings`; no service imports pydantic for them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import bare
from plaudit.core.limits import MAX_SHOWN_CHARACTERS
from plaudit.core.settings import CanaryPolicy, Settings

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rules = TypeVar("Rules", bound="DataclassInstance")

_PREFIX: Final = "plaudit_"
_API_KEY: Final = "PLAUDIT_API_KEY"
_TABLES: Final = (("canary", "models"), ("data", "columns"), ("data", "labels"))

ADAPTER: Final = TypeAdapter(with_config(ConfigDict(extra="forbid", use_attribute_docstrings=True))(Settings))
"""Validator of settings from nested mappings; its ``json_schema()`` describes plaudit.toml."""


def load_settings(config: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Settings from the TOML file (if one is given), the environment and the flags, in increasing precedence.

    Args:
        flags: nested as the settings are, such as ``{"serving": {"port": 9001}}``.

    Raises:
        ConfigError: with every problem found, each naming the setting and the value.
    """
    raw: dict[str, Any] = {}
    if config is not None:
        try:
            raw = tomllib.loads(config.read_text(encoding="utf-8"))
        except RecursionError as error:
            raise ConfigError(f"{config}: is nested too deep") from error
        except (OSError, ValueError) as error:  # a number of 5,000 digits is no TOMLDecodeError
            raise ConfigError(f"{config}: {error}") from error
    merged = _merge(_merge(raw, _environment(os.environ)), flags or {})
    try:
        return settings_from(merged)
    except ConfigError as error:
        if config is None:
            raise
        raise ConfigError(f"{config}: {error}") from error


def settings_from(sections: Mapping[str, Any]) -> Settings:
    """Settings from nested mappings, laid over the defaults.

    Raises:
        ConfigError: as :func:`load_settings`.
    """
    try:
        settings = ADAPTER.validate_python(sections)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    return _with_bare_hosts(_with_common_canary(settings, sections))


def from_section(rules: type[Rules], *sections: object, **others: object) -> Rules:
    """Rules of a part: a dataclass with the settings of the same names, of later sections first, and ``others``."""
    names = [each.name for each in fields(rules)]
    shared = {name: getattr(section, name) for section in sections for name in names if hasattr(section, name)}
    return rules(**shared | others)


def api_key_in_environment() -> str | None:
    """API key of commands that call a server; an option would show it to every user of the machine."""
    return os.environ.get(_API_KEY) or None


def environment_without_settings() -> Mapping[str, str]:
    """Environment for a child process that needs no settings, which may hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.lower().startswith(_PREFIX)}


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Settings named as ``PLAUDIT_SECTION__NAME``, in any case. A table may be given whole, as a JSON object."""
    known = {section.name for section in fields(Settings)}
    read: dict[str, Any] = {}
    for name in sorted(environ, key=str.lower):  # a table comes before its entries, which take precedence
        section, *path = name.lower().removeprefix(_PREFIX).split("__")
        if name.lower().startswith(_PREFIX) and section in known:
            value: Any = environ[name]
            if _is_table(section, path):
                value = _object_or_text(value)
            for part in reversed((section, *path)):
                value = {part: value}
            read = _merge(read, value)
    return read


def _is_table(section: str, path: Sequence[str]) -> bool:
    return not path or section == "model" or (section, path[0]) in _TABLES


def _object_or_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, dict) else text


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _with_common_canary(settings: Settings, raw: Mapping[str, Any]) -> Settings:
    """Rules of [canary] in every [canary.models.NAME] that does not set its own."""
    canary = settings.canary
    common = {rule.name: getattr(canary, rule.name) for rule in fields(CanaryPolicy)}
    models = {
        name: CanaryPolicy(**{**common, **{rule: getattr(own, rule) for rule in raw["canary"]["models"][name]}})
        for name, own in canary.models.items()
    }
    return replace(settings, canary=replace(canary, models=models))


def _with_bare_hosts(settings: Settings) -> Settings:
    """Hosts without the brackets in which IPv6 literals may be written."""
    serving, learner, console = settings.serving, settings.learner, settings.console
    return replace(
        settings,
        serving=replace(serving, host=bare(serving.host)),
        learner=replace(learner, host=bare(learner.host)),
        console=replace(console, host=bare(console.host)),
    )


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        setting = ".".join(str(part) for part in problem["loc"])
        if not setting:  # of several settings together; the input is all of them, passwords too
            lines.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] == "unexpected_keyword_argument":
            lines.append(f"{setting}: unknown setting")
        else:
            got = "" if _is_secret(problem["loc"]) else f", got {_shown(problem['input'])}"
            lines.append(f"{setting}: {problem['msg']}{got}")
    return "; ".join(lines)


def _is_secret(place: Sequence[int | str]) -> bool:
    """True if a value there is a secret, or may hold one: fields that their dataclass does not show."""
    cls: Any = Settings
    for name in place:
        field = next((each for each in fields(cls) if each.name == name), None)
        if field is None:
            return False
        if not field.repr:
            return True
        cls = type(field.default)
        if not is_dataclass(cls):
            return False
    return any(not each.repr for each in fields(cls))


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= MAX_SHOWN_CHARACTERS else f"{shown[:MAX_SHOWN_CHARACTERS]}…"
