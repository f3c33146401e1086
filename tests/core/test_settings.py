"""Where settings come from, what takes precedence, and what a wrong one says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from plaudit.compose.learner import data_config
from plaudit.compose.settings import load_settings, settings_from
from plaudit.core.errors import ConfigError
from plaudit.core.settings import EncoderSettings, Settings
from plaudit_models.data.config import DEFAULT_DATA


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "plaudit.toml"


def test_defaults_need_no_file() -> None:
    settings = load_settings(None)
    assert (settings.serving.port, settings.serving.metrics_port, settings.learner.metrics_port) == (8001, 8002, 8003)


def test_flags_win_over_the_environment_and_that_over_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("data_dir = 'from-file'\n[serving]\nport = 1\nmetrics_port = 1\nthreads = 1\n")
    monkeypatch.setenv("PLAUDIT_SERVING__PORT", "2")
    monkeypatch.setenv("PLAUDIT_SERVING__METRICS_PORT", "2")
    settings = load_settings(config, {"serving": {"port": 3}})

    serving = settings.serving
    assert (serving.port, serving.metrics_port, serving.threads) == (3, 2, 1)
    assert settings.data_dir == Path("from-file")


def test_the_environment_reaches_top_level_settings_and_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_DATA_DIR", "/somewhere")
    monkeypatch.setenv("PLAUDIT_SERVING__ADMIN_TOKEN", "sesame-sesame-sesame")
    settings = load_settings(None)
    assert settings.data_dir == Path("/somewhere")
    assert settings.serving.admin_token == "sesame-sesame-sesame"
    assert "sesame-sesame-sesame" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serving]\nprot = 1", "serving.prot: unknown setting"),
        ("serv = 1", "serv: unknown setting"),
        ("[serving]\nport = 70000", r"serving.port: .*less than or equal to 65535, got 70000"),
        ("[serving]\ndevice = 'tpu'", r"serving.device: .*'auto', 'cuda' or 'cpu', got 'tpu'"),
        ("[gate]\nalpha = 0", r"gate.alpha: .*greater than 0, got 0"),
        ("[finetune]\nmethod = 'dora'", r"finetune.method: .*'full' or 'lora', got 'dora'"),
        ("[finetune]\nobjective = 'ppo'", r"finetune.objective: .*'likelihood', 'target' or 'sampled', got 'ppo'"),
        ("[finetune]\nsamples = 1", r"finetune.samples: .*greater than or equal to 2, got 1"),
        ("[finetune]\nclip = 1.0", r"finetune.clip: .*less than 1, got 1"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_the_file(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        load_settings(config)
    assert str(refused.value).startswith(f"{config}: ")


def test_all_problems_are_named_at_once(config: Path) -> None:
    config.write_text("[serving]\nport = -1\n[learner]\nbatch = 0\n")
    with pytest.raises(ConfigError, match=r"serving\.port.*; learner\.batch"):
        load_settings(config)


def test_the_environment_can_give_a_table_whole_and_entries_of_it_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_CANARY__MODELS", '{"pets": {"share": 0.3, "max_events": 7}}')
    monkeypatch.setenv("PLAUDIT_CANARY__MODELS__PETS__SHARE", "0.5")
    monkeypatch.setenv("PLAUDIT_SERVING", '{"port": 1, "threads": 2}')
    monkeypatch.setenv("PLAUDIT_SERVING__PORT", "3")
    monkeypatch.setenv("PLAUDIT_KAFKA__SASL_PASSWORD", '{"not": "a table"}')
    monkeypatch.setenv("PLAUDIT_NO_SETTING", "ignored")
    settings = load_settings(None)
    assert (settings.canary.of("pets").share, settings.canary.of("pets").max_events) == (0.5, 7)
    assert (settings.serving.port, settings.serving.threads) == (3, 2)
    assert settings.kafka.sasl_password == '{"not": "a table"}'


def test_an_unknown_setting_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_SERVING__PROT", "1")
    with pytest.raises(ConfigError, match=r"serving\.prot: unknown setting"):
        load_settings(None)


def test_a_file_that_is_not_there_is_named(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"plaudit\.toml: .*No such file"):
        load_settings(config)


def test_a_file_that_is_not_toml_is_named_with_the_line(config: Path) -> None:
    config.write_text("[serving\n")
    with pytest.raises(ConfigError, match=r"plaudit\.toml: .*line 1"):
        load_settings(config)


def test_the_model_table_becomes_the_spec(config: Path) -> None:
    config.write_text(
        "[model]\nname = 'pets'\nactions = ['cat', 'dog']\n"
        "[model.modalities.photo]\nkind = 'image'\nheight = 8\nwidth = 8\n"
    )
    spec = load_settings(config).spec()
    assert (spec.name, spec.actions, list(spec.modalities)) == ("pets", ("cat", "dog"), ["photo"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[model\] table"),
        ("[model]\nname = 'pets'\nactions = ['cat', 'dog']", "model.modalities: missing"),
        (
            "[model]\nname = 'pets'\nactions = ['cat', 'dog']\nmodalities = {x = {kind = 'smell'}}",
            "model.modalities.x: kind: 'smell' is not one of",
        ),
    ],
)
def test_a_wrong_model_table_is_a_config_error(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings(config).spec()


def test_decisions_stay_as_long_as_feedback_about_them_is_taken() -> None:
    store = {"retention_s": 3600, "url": "postgresql://me:secret@db/plaudit"}
    with pytest.raises(
        ConfigError, match=r"^store\.retention_s: 3600 is less than serving\.feedback_window_s"
    ) as refused:
        load_settings(None, {"store": store, "serving": {"feedback_window_s": 86400}})
    assert "secret" not in str(refused.value)


def test_the_password_for_kafka_is_not_shown() -> None:
    settings = load_settings(None, {"kafka": {"sasl_password": "sesame-sesame-sesame"}})
    assert settings.kafka.sasl_password == "sesame-sesame-sesame"
    assert "sesame-sesame-sesame" not in repr(settings)


def test_the_password_of_the_store_is_not_shown() -> None:
    settings = load_settings(None, {"store": {"url": "postgresql://me:secret@db/plaudit"}})
    assert "secret" not in repr(settings)


# --- the canary's policy ---------------------------------------------------------------------------------------------


def test_a_model_has_the_canary_policy_it_is_given_and_the_common_one_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "plaudit.toml"
    path.write_text(
        "[canary]\nshare = 0.2\nmax_events = 700\n[canary.models.pets]\nshare = 0.05\npromote = false\n", "utf-8"
    )
    canary = load_settings(path).canary
    assert (canary.of("pets").share, canary.of("pets").promote, canary.of("pets").max_events) == (0.05, False, 700)
    assert (canary.of("other").share, canary.of("other").promote) == (0.2, True)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("[canary.models.pets]\nshares = 0.1\n", "canary.models.pets.shares: unknown setting"),
        ("[canary.models.pets]\nshare = 1.0\n", "canary.models.pets.share"),
        ("[canary]\nslow_factor = 0.5\n", "canary.slow_factor"),
    ],
)
def test_wrong_canary_policies_name_the_setting(tmp_path: Path, lines: str, complaint: str) -> None:
    path = tmp_path / "plaudit.toml"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        load_settings(path)


def test_a_model_with_rules_of_its_own_has_the_common_ones_for_the_rest_from_flags_and_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PLAUDIT_CANARY__SHARE", "0.2")
    settings = load_settings(None, {"canary": {"models": {"pets": {"promote": False}}}})
    assert (settings.canary.of("pets").share, settings.canary.of("pets").promote) == (0.2, False)


def test_sections_come_out_as_they_are_declared() -> None:
    """Plain objects, equal to those that are built without validation."""
    assert load_settings(None) == Settings()


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", "has 0 bytes, and at least 16 are needed"),
        ("short", "has 5 bytes"),
        ("pass phrase of words", "no call can carry"),
    ],
)
def test_an_admin_token_that_could_be_guessed_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    """An empty one was accepted from `Bearer `."""
    monkeypatch.setenv("PLAUDIT_SERVING__ADMIN_TOKEN", token)
    with pytest.raises(ConfigError, match=f"serving.admin_token: .*{said}.*secrets.token_urlsafe") as refused:
        load_settings(None)
    assert not token or token not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        {"serving": {"admin_token": ["hush-hush-hush"]}},
        {"kafka": {"sasl_password": {"secret": "hush-hush-hush"}}},
        {"store": {"url": 5, "retention_s": "hush-hush-hush"}},
        {"serving": '{"admin_token": "hush-hush-hush'},
    ],
)
def test_a_secret_of_the_wrong_type_is_not_repeated(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, given)
    if "retention_s" not in str(refused.value):
        assert "hush" not in str(refused.value)


def test_what_an_error_repeats_of_a_wrong_setting_is_bounded() -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, {"serving": {"port": "x" * 10_000}})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("umask", ["", "8", "rwx", "0777777"])
def test_a_umask_is_octal(umask: str) -> None:
    with pytest.raises(ConfigError, match=r"umask: .* is not three octal digits, such as 077"):
        load_settings(None, {"umask": umask})


def _with_encoder(**entries: object) -> Settings:
    note = {"kind": "text", **entries}
    return settings_from({"model": {"name": "pets", "actions": ["cat", "dog"], "modalities": {"note": note}}})


def test_an_encoder_is_a_setting_and_no_part_of_the_contract() -> None:
    settings = _with_encoder(encoder="weights/minilm", tune_encoder=True)
    assert settings.encoders() == {"note": EncoderSettings(Path("weights/minilm"), tuned=True)}
    assert settings.spec() == _with_encoder().spec()
    assert _with_encoder().encoders() == {}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"encoder": 3}, "model.modalities.note.encoder: 3 is not the path of a folder"),
        ({"tune_encoder": True}, "model.modalities.note.tune_encoder: true, but there is no encoder to tune"),
        ({"encoder": "minilm", "tune_encoder": "yes"}, "'yes' is neither true nor false"),
        ({"kind": "tensor", "shape": [3], "encoder": "minilm"}, "the modality is of kind tensor; leave it out"),
    ],
)
def test_an_encoder_that_is_described_wrongly_is_refused(entries: dict[str, object], told: str) -> None:
    settings = _with_encoder(**entries)
    with pytest.raises(ConfigError, match=re.escape(told)):
        settings.encoders()


def test_data_sets_are_read_by_the_defaults_of_the_library() -> None:
    """They are declared twice, as the library knows no settings."""
    assert data_config(Settings()) == DEFAULT_DATA
