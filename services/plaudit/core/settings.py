"""Every setting there is. Read once by a composition root, then taken apart: components get plain values.

Precedence: command-line flags, then ``PLAUDIT_…`` environment (``PLAUDIT_SERVING__PORT=9001``), then the TOML file,
then the defaults below. Nothing else reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from plaudit.core.errors import ConfigError
from plaudit_models.spec import InvalidSpec, ModelSpec, spec_from_dict

Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ServingSettings(_Section):
    """[serving] The inference service."""

    host: str = "127.0.0.1"
    """Address the gRPC port and the metrics port listen on; 0.0.0.0 for all."""
    port: Port = 8001
    """gRPC port; 0 picks a free one."""
    metrics_port: Port = 8002
    """Prometheus metrics port; 0 picks a free one."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where models run. Asking for `cuda` where there is none is an error, never a silent fallback."""
    gpu_mem_limit_bytes: Count | None = None
    """The most GPU memory that one graph may take for weights and activations; None: all there is."""
    cuda_graphs: bool = False
    """Capture a CUDA graph for each batch size, and pad batches to 1, 2, 4, 8, …: less work for the processor. A graph
    of which a part runs on the processor cannot be captured, and its version does not serve."""
    tensorrt: bool = False
    """Run what TensorRT can on TensorRT. It builds engines when a version is loaded, which takes seconds to minutes,
    and keeps them in the data directory."""
    threads: Count = 1
    """Threads one model evaluation may use."""
    processes: Count = 1
    """Processes that share the port, each with all models: for more cores than one process can keep busy. A connection
    stays with one of them. `metrics_port` shows the metrics of all, with a label `process`."""
    workers: Count | None = None
    """Evaluations of one model that may run at once in a process; None: as many as there are cores for."""
    max_batch: Count = 8
    """The most requests that share one model evaluation; what is best for a model, up to this, is measured when it is
    loaded."""
    queue_limit: Count = 40
    """Requests of one model that may be decoded, wait or be computed; one more is refused at once with
    RESOURCE_EXHAUSTED."""
    max_calls: Count = 128
    """Calls that may be open at once, streams included; each has a thread. One more is refused at once, unread: fewer
    make that faster in a flood, more are needed for more streams than that."""
    max_message_bytes: Count = 16 * 1024 * 1024
    """The largest gRPC message taken."""
    max_image_bytes: Count = 8 * 1024 * 1024
    """The largest encoded image taken."""
    max_image_pixels: Count = 16_000_000
    """The largest image decoded."""
    max_audio_bytes: Count = 8 * 1024 * 1024
    """The largest encoded sound taken."""
    max_audio_duration_s: Positive = 60.0
    """The longest sound decoded."""
    max_text_bytes: Count = 64 * 1024
    """The longest text taken."""
    feedback_window_s: Positive = 30 * 86_400.0
    """How long after a prediction its feedback is taken."""
    decision_queue_limit: Count = 10_000
    """Decisions that may wait to be logged; what comes on top is dropped and counted."""
    store_content: bool = True
    """Log the content of requests; without it fine-tuning has nothing to learn from."""
    log_requests: bool = False
    """Write a line to the service's log for every decision, piece of feedback and refused call, with their ids: no
    content, no answers, no user ids."""
    watch_interval_s: Positive = 0.05
    """How often the registry is looked at for a new live version."""
    drain_s: Positive = 10.0
    """How long requests in flight may take to finish at shutdown."""
    admin_token: SecretStr | None = None
    """What Promote, Rollback and Pin must present. None: they are open to whoever reaches the port."""


class LogSettings(_Section):
    """[log] The event log."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    """Where events are kept: one SQLite file in the data directory, or Kafka, as [kafka] says."""
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """FULL survives power loss; NORMAL survives kill -9 but can lose the last commits on power loss."""
    spool_limit_bytes: Annotated[int, Field(ge=0)] = 1024 * 1024 * 1024
    """While Kafka is away, the inference service keeps up to this much in `spool/` of the data directory and hands it
    on later; what comes on top is refused. 0: everything is refused at once."""
    spool_after_s: Positive = 1.0
    """How long Kafka may take to acknowledge before events go into the spool."""


class KafkaSettings(_Section):
    """[kafka] Where Kafka is and how it is used, if `log.kind` is "kafka"."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """Brokers to begin with, host:port, with commas between."""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """TLS (SSL) and authentication (SASL) of the brokers' port."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-256"
    """How to authenticate."""
    sasl_username: str = ""
    """Who we are to the brokers."""
    sasl_password: SecretStr = SecretStr("")
    """Best set as PLAUDIT_KAFKA__SASL_PASSWORD."""
    tls_ca_file: Path | None = None
    """Certificates of the authorities that may vouch for brokers, PEM; None: those the system trusts."""
    tls_cert_file: Path | None = None
    """Our own certificate, PEM, for brokers that ask for one."""
    tls_key_file: Path | None = None
    """Its private key, PEM; None: it is in the same file."""
    topic_prefix: str = ""
    """What the names of topics and consumer groups begin with, such as "test.", where deployments share a cluster."""
    partitions: Count = 6
    """Of `plaudit.decisions` and `plaudit.feedback` each, when they are made: as many learners can share the work. It
    must not change later: a decision and its feedback meet by partition."""
    replication_factor: Count = 1
    """Copies of each record, when topics are made; 3 survives the loss of brokers."""
    min_insync_replicas: Count = 1
    """Copies that must be written before a record counts as durable, when topics are made; 2 goes with 3 copies."""
    retention_s: Positive = 60 * 86_400.0
    """How long decisions and feedback stay, when topics are made; at least `serving.feedback_window_s`."""
    retention_bytes: Count | None = None
    """The most bytes that stay of a partition, when topics are made; None: as many as come."""
    max_record_bytes: Annotated[int, Field(ge=64 * 1024)] = 20 * 1024 * 1024
    """The largest record; larger than `serving.max_message_bytes`, so that every decision fits with its content."""
    compression: Literal["none", "gzip", "lz4"] = "none"
    """Of what is sent. Images and sound are compressed already."""
    linger_s: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How long a record may wait for company; concurrent ones share requests without it."""
    delivery_timeout_s: Positive = 10.0
    """How long until the brokers must have acknowledged; then appending fails."""


class StoreSettings(_Section):
    """[store] The experience store: what the learners keep of decisions and feedback."""

    url: SecretStr | None = None
    """Where it is: `postgresql://user:password@host/database` for several learners; None: a SQLite file in the data
    directory, for one."""
    retention_s: Positive = 90 * 86_400.0
    """How long decisions stay, with their content and feedback; at least `serving.feedback_window_s`."""


class PolicySettings(_Section):
    """[policy] How answers are picked and how the head learns."""

    floor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Exploration floor: probability mass spread evenly over the allowed actions."""
    beta: Positive = 0.03
    """Temperature of the policy improvement π ∝ π_ref·exp(q/β): the price of moving away from the base policy."""
    optimism: Annotated[float, Field(ge=0.0)] = 3.0
    """How many posterior standard deviations are added to the predicted reward of an answer hardly tried."""
    benefit_of_doubt: Annotated[float, Field(ge=0.0)] = 0.7
    """How many posterior standard deviations a sure base policy is given before other answers are tried."""
    reference_mix: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    """How far the base policy is loosened towards uniform where feedback knows better."""
    caution: Annotated[float, Field(ge=0.0)] = 0.0
    """How many times dearer leaving the base policy is where it is half sure and users agree with it, at most."""
    reward_low: Annotated[float, Field(le=0.0)] = -0.2
    """The lowest predicted reward that is believed."""
    exclusivity: Share = 0.1
    """How much praise of one answer speaks against each other one, in thumbs; 0 where several may be right at once."""
    prior_precision: Positive = 1.0
    """λ of the Bayesian ridge reward model, in thumbs."""
    base_precision: Positive = 3.0
    """λ of what the base policy thinks of an answer: that many thumbs' worth of trust in it."""
    embedding_features: Annotated[int, Field(ge=0, multiple_of=2)] = 192
    """Features made of the embedding, which count where the base policy is unsure; 0 leaves the embedding out."""
    embedding_precision: Positive = 0.1
    """λ of the embedding's features, in thumbs."""
    max_kl: Positive = 0.5
    """The most one head refresh may move the policy, as mean KL divergence on recent contexts, in nats; contexts count
    as far as the base policy is sure of them."""


class LearnerSettings(_Section):
    """[learner] The learner."""

    host: str = "127.0.0.1"
    """Address the metrics port listens on; 0.0.0.0 for all."""
    metrics_port: Port = 8003
    """Prometheus metrics port; 0 picks a free one."""
    batch: Count = 64
    """Experiences that make one batch: every batch updates the reward model and refreshes the head."""
    max_wait_s: Positive = 2.0
    """An incomplete batch is learned from after this long."""
    poll_limit: Count = 1024
    """The most records read at once."""
    silence_reward: Share | None = None
    """Reward of a decision nobody said anything about; None: silence means nothing."""
    silence_after_s: Positive = 300.0
    """How long nobody must have said anything for that."""
    user_cap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """The largest share of the experiences that one user's are learned from, or five equal shares if that is more; 1
    means no cap."""
    dead_versions_kept: Count = 20
    """Head refreshes kept in the registry besides those in use."""


class FinetuneSettings(_Section):
    """[finetune] The fine-tuning job."""

    enabled: bool = True
    """Start fine-tuning jobs when due."""
    every: Count = 1000
    """New experiences after which a job is due."""
    max_duration_s: Positive = 600.0
    """Time a job may train."""
    steps_per_event: Positive = 4.0
    """How often a job replays each experience."""
    learning_rate: Positive = 1e-3
    """Peak of a job's learning-rate schedule."""
    method: Literal["full", "lora"] = "full"
    """What changes: all weights of text encoder, fusion layers and head, or low-rank updates of their matrices, which
    are merged before export."""
    lora_rank: Count = 8
    """Rank of those updates."""
    lora_alpha: Positive = 16.0
    """Their scale: an update counts alpha / rank times."""
    objective: Literal["likelihood", "target", "sampled"] = "likelihood"
    """What a job descends: the likelihood of what users said; or, by a reward model which it trains first, the distance
    to the best policy near what is served, π ∝ π_served·exp(q / policy.beta) (`target`), or what is expected of answers
    sampled from the policy (`sampled`; clipped, relative to each other), for action sets too large to enumerate."""
    kl_weight: Annotated[float, Field(ge=0.0)] | None = None
    """Price of a nat of divergence from the version it starts from; None: 0.04 where answers are sampled, else 0."""
    pessimism: Annotated[float, Field(ge=0.0)] = 0.0
    """How many standard deviations are taken off what the reward model expects of an answer (`target`, `sampled`): the
    more, the less is tried that users hardly spoke of. What it expects allows for its uncertainty without that."""
    samples: Annotated[int, Field(ge=2)] = 16
    """Answers sampled for each content at once."""
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """How far the probability of a sampled answer may move, as a ratio, before it has no more say."""
    sample_reuse: Count = 4
    """Gradient steps on the same samples, which bounds how stale they get."""
    max_experiences: Count = 20_000
    """The most recent experiences a job trains on."""
    max_versions_behind: Count = 5_000
    """Experiences served by a version that many before the live one are too stale to train on."""
    checkpoint_steps: Count = 200
    """Gradient steps between checkpoints, from which a job that was killed goes on."""
    rehearsal: Path | None = None
    """Labelled data folder rehearsed beside the experiences; None: the one of the latest pre-training."""
    threads: Count = 1
    """Threads a job may use."""
    seed: int = 0
    """The same seed and experiences give the same model, unless the time limit cuts the job short."""


class GateSettings(_Section):
    """[gate] What a version must prove before, and while, it serves."""

    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.05
    """Probability of a wrong verdict, over all looks together."""
    margin: Share = 0.0
    """How much worse than live, in reward, still counts as not worse."""
    slice_margin: Share = 0.03
    """The same on a single slice of the traffic."""
    user_cap: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """The largest share of the evidence one user may have, or an equal share if there are so few users that it is
    more. Decisions without a user id count as one user's."""
    min_events: Count = 100
    """Experiences before a verdict. None of them is one that the candidate was trained on."""
    max_events: Count = 5_000
    """Experiences after which the verdict is "not enough evidence"."""


class CanaryPolicy(_Section):
    """How dynamic actions of a model are tried out."""

    share: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the users, the same ones throughout, that a fine-tuned version serves which the gate could neither prove
    better nor worse; 0: it is never tried on users, unless `plaudit canary start` does it."""
    max_events: Count = 5_000
    """Experiences after which an experiment ends without proof, and live goes on serving everybody."""
    promote: bool = True
    """Make a candidate live that has proven better; otherwise its experiment goes on until somebody ends it."""
    error_margin: Share = 0.01
    """How many more of the candidate's answers may fail than of live's, as a share of all, before it is withdrawn."""
    slow_factor: Annotated[float, Field(ge=1.0)] = 2.0
    """An answer is slow if it takes more than this many times the time within which 95 % of live's answers come."""
    slow_margin: Share = 0.05
    """How many more of the candidate's answers may be slow, as a share of all, before it is withdrawn."""


class CanarySettings(CanaryPolicy):
    """[canary] Experiments: versions beside live, with a share of the users. [canary.models.NAME] has what is different
    for one model."""

    models: dict[str, CanaryPolicy] = Field(default_factory=dict)
    """By model name, any of the settings above that are different for it."""

    def of(self, model: str) -> CanaryPolicy:
        """The policy of one model."""
        own = self.models.get(model)
        common = CanaryPolicy(**{name: getattr(self, name) for name in CanaryPolicy.model_fields})
        return common if own is None else common.model_copy(update=own.model_dump(exclude_unset=True))


class ConsoleSettings(_Section):
    """[console] The web page to try the model and watch the loop."""

    host: str = "127.0.0.1"
    """Address the page listens on. Whoever reaches it can ask the model and send feedback."""
    port: Port | None = None
    """Port of the page; 0 picks a free one. None: `plaudit up` serves no page."""


class TracingSettings(_Section):
    """[tracing] OpenTelemetry traces of requests and feedback; needs the extra `tracing`."""

    endpoint: str | None = None
    """Where traces are sent, OTLP: `http://collector:4317`. None: where OTEL_EXPORTER_OTLP_ENDPOINT says; where that is
    not set either, nothing is traced, and that costs nothing."""
    protocol: Literal["grpc", "http/protobuf"] | None = None
    """How they are sent. None: as OTEL_EXPORTER_OTLP_PROTOCOL says, otherwise grpc."""
    sample_ratio: Share | None = None
    """Share of the traces that begin here and are kept; whoever calls with a trace has decided. None: as
    OTEL_TRACES_SAMPLER says, otherwise all."""

    @property
    def on(self) -> bool:
        """Whether anything is traced."""
        if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return False
        return self.endpoint is not None or bool(_otlp("ENDPOINT"))

    @property
    def wire(self) -> str:
        """The protocol, wherever it was said."""
        return self.protocol or _otlp("PROTOCOL") or "grpc"


def _otlp(what: str) -> str | None:
    """What the environment says of the exporter of traces, as OpenTelemetry has it."""
    of_traces = os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{what}")
    return of_traces or os.environ.get(f"OTEL_EXPORTER_OTLP_{what}")


class PretrainSettings(_Section):
    """[pretrain] Supervised training on a labelled data folder."""

    max_duration_s: Positive = 600.0
    """Time the training may take."""
    max_epochs: Count = 50
    """Passes over the data."""
    batch: Count = 128
    """Rows per gradient step."""
    learning_rate: Positive = 3e-3
    """Peak of the learning-rate schedule."""
    patience: Count = 5
    """Validations without improvement before training stops."""
    threads: Count = 2
    """Threads the training may use."""
    seed: int = 0
    """The same seed and data give the same model, unless the time limit cuts training short."""


class Settings(BaseSettings):
    """plaudit.toml"""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PLAUDIT_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    data_dir: Path = Path("plaudit-data")
    """All state of the embedded default lives here: event log, registry, experience store, signing key."""
    model: dict[str, Any] = Field(default_factory=dict)
    """[model] Name, modalities and actions; see "Describe your model" in the README."""
    serving: ServingSettings = ServingSettings()
    log: LogSettings = LogSettings()
    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    policy: PolicySettings = PolicySettings()
    learner: LearnerSettings = LearnerSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    gate: GateSettings = GateSettings()
    canary: CanarySettings = CanarySettings()
    pretrain: PretrainSettings = PretrainSettings()
    console: ConsoleSettings = ConsoleSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what :func:`load_settings` hands in: it alone decides what takes precedence."""
        return (init_settings,)

    @model_validator(mode="after")
    def _feedback_outlives_no_decision(self) -> Self:
        if self.store.retention_s < self.serving.feedback_window_s:
            raise ValueError(
                f"store.retention_s: {self.store.retention_s:g} is less than serving.feedback_window_s "
                f"({self.serving.feedback_window_s:g}); feedback would outlive the decision it is about"
            )
        return self

    def spec(self) -> ModelSpec:
        """The model's contract. Raises ConfigError if the [model] table is missing or wrong."""
        if not self.model:
            raise ConfigError("model: the configuration has no [model] table; it names the modalities and actions")
        try:
            return spec_from_dict(self.model)
        except InvalidSpec as error:
            raise ConfigError(str(error)) from error


def load_settings(config: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Read the TOML file (if one is given), the environment and the flags, in growing precedence.

    Args:
        flags: nested as the settings are, such as ``{"serving": {"port": 9001}}``.

    Raises:
        ConfigError: with every problem found, each naming the setting and the value.
    """
    raw: dict[str, Any] = {}
    if config is not None:
        try:
            raw = tomllib.loads(config.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{config}: {error}") from error
    merged = _merge(_merge(raw, EnvSettingsSource(Settings)()), flags or {})
    try:
        return Settings(**merged)
    except ValidationError as error:
        raise ConfigError(_explain(error, config)) from error


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        inner = merged.get(key)
        merged[key] = _merge(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _explain(error: ValidationError, config: Path | None) -> str:
    lines = []
    for problem in error.errors():
        setting = ".".join(str(part) for part in problem["loc"])
        if not setting:  # of several settings together; the input is all of them, passwords too
            lines.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] == "extra_forbidden":
            lines.append(f"{setting}: unknown setting")
        else:
            lines.append(f"{setting}: {problem['msg']}, got {problem['input']!r}")
    where = f"{config}: " if config is not None else ""
    return where + "; ".join(lines)
