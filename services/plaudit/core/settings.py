"""Settings of every part, declared once as plain dataclasses. :mod:`plaudit.compose.settings` reads and validates them.

Precedence: command-line flags, then ``PLAUDIT_…`` environment (``PLAUDIT_SERVING__PORT=9001``), then the TOML file,
then the defaults below. A component is given its section, or plain values out of it. The docstring of a field is its
text in the reference; its limits are metadata that pydantic checks without being imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from annotated_types import Ge, Gt, Interval, MultipleOf

from plaudit.core.errors import ConfigError
from plaudit.core.host.addresses import is_loopback, reachable, split
from plaudit.core.limits import MIN_ADMIN_TOKEN_BYTES
from plaudit_models.spec import InvalidSpec, ModelSpec, spec_from_dict

Port = Annotated[int, Interval(ge=0, le=65535)]
Share = Annotated[float, Interval(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Interval(gt=0.0, le=1.0)]
ShareBelowOne = Annotated[float, Interval(ge=0.0, lt=1.0)]
Positive = Annotated[float, Gt(0.0)]
NotNegative = Annotated[float, Ge(0.0)]
Count = Annotated[int, Gt(0)]

_ADMIN_PLACE: Final = ("127.0.0.1", 8005)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """[serving.tls] Certificate of the gRPC port. Files are read again when they change."""

    certificate: Path | None = None
    """Certificate, PEM, followed by those that lead to its authority; None: the port speaks plain text."""
    key: Path | None = None
    """Private key of the certificate, PEM."""
    client_ca: Path | None = None
    """Certificates of the authorities, PEM, one of which must have signed the client's own; None: clients need none."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            missing, given = ("key", "certificate") if self.key is None else ("certificate", "key")
            raise ValueError(f"serving.tls.{missing}: is missing; serving.tls.{given} needs it")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("serving.tls.certificate: is missing; serving.tls.client_ca needs it")


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtSettings:
    """[serving.jwt] Tokens of an identity provider, beside API keys. A caller is the token's subject."""

    jwks: str = ""
    """Public keys of the provider (JWKS): a file, or a URL that begins with https://. Empty: no tokens are taken."""
    issuer: str = ""
    """Issuer (`iss`) that tokens must have."""
    audience: str = ""
    """Audience (`aud`) that tokens must have, which is this service."""
    algorithms: Sequence[Literal["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA"]] = ("RS256", "ES256")
    """Algorithms that tokens may be signed with; the token's own word decides nothing."""
    roles_claim: str = "plaudit_roles"
    """Claim with the caller's roles, a list or words with spaces between: `predict`, `feedback`, `admin`."""
    roles: Sequence[Literal["predict", "feedback", "admin"]] = ("predict", "feedback")
    """Roles of tokens without that claim."""
    calls_per_minute: Annotated[int, Ge(0)] = 0
    """Calls, and messages on streams, that one subject may make in a minute in a process; 0: any number."""

    def __post_init__(self) -> None:
        if not self.jwks:
            return
        for name in ("issuer", "audience", "algorithms"):
            if not getattr(self, name):
                raise ValueError(f"serving.jwt.{name}: is empty; a token would be believed whoever it was made for")
        if self.jwks.startswith("http://") and not is_loopback(urlsplit(self.jwks).hostname or ""):
            raise ValueError(f"serving.jwt.jwks: {self.jwks[:80]!r} could be changed on its way; use https://")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSettings:
    """[serving] The inference service."""

    host: str = "127.0.0.1"
    """Address that the gRPC port listens on; 0.0.0.0 or ::: all addresses of the machine. Off this machine it needs
    [serving.tls] and keys."""
    port: Port = 8001
    """gRPC port; 0: a free one."""
    tls: TlsSettings = TlsSettings()
    jwt: JwtSettings = JwtSettings()
    admin_address: str | None = None
    """Address of the admin port, host:port: changes of versions, the repository, reflection, whole manifests. None:
    `127.0.0.1:8005` where the gRPC port is reached from elsewhere, and the gRPC port itself where only this machine
    reaches it."""
    open: bool = False
    """Listening off this machine without TLS or keys, as behind a proxy that has both. Whoever reaches the port may
    then predict and give feedback in any user's name."""
    metrics_host: str = "127.0.0.1"
    """Address that the metrics port listens on. It asks for no key; metrics hold no content and no user ids."""
    metrics_port: Port = 8002
    """Port of the Prometheus metrics; 0: a free one."""
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Device that models run on. `cuda` where there is no GPU is an error, never a silent fallback."""
    gpu_mem_limit_bytes: Count | None = None
    """GPU memory that one graph may take for weights and activations; None: no limit."""
    cuda_graphs: bool = False
    """Capture of a CUDA graph for each batch size, with batches padded to 1, 2, 4, 8, …: less work for the processor. A
    graph of which a part runs on the processor cannot be captured, and its version does not serve."""
    tensorrt: bool = False
    """TensorRT for whatever it can run. It builds engines when a version is loaded, which takes seconds to minutes, and
    keeps them in the data directory."""
    threads: Count = 1
    """Threads that one model evaluation may use."""
    processes: Count = 1
    """Processes that share the port, each with all models: for more cores than one process can keep busy. A connection
    stays with one of them. `metrics_port` shows the metrics of all, with a label `process`."""
    workers: Count | None = None
    """Evaluations of one model that may run at once in a process; None: as many as there are cores for."""
    max_batch: Count = 8
    """Upper bound on the requests that share one model evaluation. The best number for a model, up to this bound, is
    measured when the model is loaded."""
    queue_limit: Count = 40
    """Requests of one model that may be decoded, queued or computed; one more is refused at once with
    RESOURCE_EXHAUSTED."""
    max_calls: Count = 128
    """Unary calls that may be worked on at once; each has a thread. One more is refused at once, unread. A lower limit
    refuses faster under overload."""
    max_streams: Count = 128
    """Streams that may be open at once, beside the calls; each has a thread. One more is refused, unless another one
    has been silent long enough to be closed for it."""
    stream_idle_s: Positive = 60.0
    """Silence after which a stream is closed: nothing has arrived on it, and nothing was sent. A stream on which
    clients only listen, such as WatchVersions, may be silent."""
    max_bytes_in_flight: Count = 256 * 1024 * 1024
    """Size of all messages that are worked on at once, of unary calls and again of streams; one more is refused. Unary
    calls of up to 64 KiB do not count."""
    max_message_bytes: Count = 16 * 1024 * 1024
    """Size of the largest gRPC message that is accepted."""
    max_image_bytes: Count = 8 * 1024 * 1024
    """Size of the largest encoded image that is accepted."""
    max_image_pixels: Count = 4 * 1024 * 1024
    """Pixels of the largest image that is decoded. A larger JPEG is decoded at a half, a quarter or an eighth of its
    size, in milliseconds. Other formats are decoded whole: a photo of 4 Mpx as PNG or WebP takes 0.1 to 0.25 s of a
    core, one of 12 Mpx 0.3 to 0.6 s. Screenshots of telephones have up to 5 Mpx: whoever takes them sets 5_242_880."""
    max_audio_bytes: Count = 8 * 1024 * 1024
    """Size of the largest encoded audio that is accepted."""
    max_audio_duration_s: Positive = 60.0
    """Duration of the longest audio that is accepted. No more of it is decoded than the model takes."""
    max_text_bytes: Count = 64 * 1024
    """Size of the longest text that is accepted, in UTF-8."""
    feedback_window_s: Positive = 30 * 86_400.0
    """Time after a prediction during which its feedback is accepted."""
    decision_queue_limit: Count = 10_000
    """Decisions that may wait to be logged; further ones are dropped and counted."""
    store_content: bool = True
    """Logging of the content of requests; without it fine-tuning has nothing to learn from."""
    log_requests: bool = False
    """A line in the service's log for every decision, piece of feedback and refused call, with their ids: no content,
    no actions, no user ids."""
    watch_interval_s: Positive = 0.05
    """Interval between two polls of the registry for a new live version."""
    drain_s: Positive = 10.0
    """Time that requests in flight may take to finish at shutdown."""
    admin_token: str | None = field(default=None, repr=False)
    """Token that calls of admins require where no keys are in use: promote, roll back, pin, experiments, loading of
    models, reflection. None: they are open to every client that reaches their port."""


def admin_place(serving: ServingSettings) -> tuple[str, int] | None:
    """Host and port of the admin port; None: the gRPC port answers calls of admins too."""
    if serving.admin_address is not None:
        return split(serving.admin_address)
    return None if is_loopback(serving.host) else _ADMIN_PLACE


def admin_target(serving: ServingSettings) -> str | None:
    """Address to reach the admin port; None: calls of admins go where all others go, or nobody knows the port."""
    own = admin_place(serving)
    return None if own is None or own[1] == 0 else reachable(*own)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackSettings:
    """[feedback] Feedback, as the inference service takes it."""

    raters: Literal["asker", "anyone"] = "asker"
    """Who may give feedback on a prediction: the user who asked for it, or anyone who has its id. A request without a
    user id is anyone's to rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """[log] The event log."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    """Kind of log: one SQLite file in the data directory, or Kafka, as [kafka] says."""
    synchronous: Literal["FULL", "NORMAL"] = "FULL"
    """Durability of a commit: FULL survives power loss; NORMAL survives kill -9 but can lose the last commits on power
    loss."""
    spool_limit_bytes: Annotated[int, Ge(0)] = 1024 * 1024 * 1024
    """Size of the spool, `spool/` in the data directory, in which the inference service keeps events while Kafka is
    away, to replay them later. Once it is full, feedback is refused. 0: no spool, feedback is refused at once."""
    spool_after_s: Positive = 1.0
    """Time that Kafka has to acknowledge before events go into the spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """[kafka] Connection to Kafka and use of it, if `log.kind` is "kafka"."""

    bootstrap_servers: str = "127.0.0.1:9092"
    """Brokers to connect to first, as host:port, separated by commas."""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Security protocol of the brokers' port: TLS (SSL), authentication (SASL), both or neither."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-256"
    """SASL mechanism."""
    sasl_username: str = ""
    """User name for SASL."""
    sasl_password: str = field(default="", repr=False)
    """Password for SASL. Best set as PLAUDIT_KAFKA__SASL_PASSWORD."""
    tls_ca_file: Path | None = None
    """Certificates of the authorities that may sign brokers' certificates, PEM; None: those that the system trusts."""
    tls_cert_file: Path | None = None
    """Client certificate, PEM, for brokers that ask for one."""
    tls_key_file: Path | None = None
    """Private key of the client certificate, PEM; None: it is in the same file."""
    topic_prefix: str = ""
    """Prefix of the names of topics and consumer groups, such as "test.", where deployments share a cluster."""
    partitions: Count = 6
    """Partitions of `plaudit.decisions` and of `plaudit.feedback`, when they are made: the number of learners that can
    share the work. It must not change later: a decision and its feedback meet by partition."""
    replication_factor: Count = 1
    """Copies of each record, when topics are made; 3 survives the loss of brokers."""
    min_insync_replicas: Count = 1
    """Copies that must be written before a record counts as durable, when topics are made; 2 goes with 3 copies."""
    retention_s: Positive = 60 * 86_400.0
    """Time that decisions and feedback stay, when topics are made; at least `serving.feedback_window_s`."""
    retention_bytes: Count | None = None
    """Bytes that stay of a partition, when topics are made; None: no limit."""
    max_record_bytes: Annotated[int, Ge(64 * 1024)] = 20 * 1024 * 1024
    """Size of the largest record; larger than `serving.max_message_bytes`, so that every decision fits with its
    content."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of records. Images and audio are compressed already."""
    linger_s: Share = 0.0
    """Time that a record may wait to share a request, up to 1 s; concurrent records share requests without it."""
    delivery_timeout_s: Positive = 10.0
    """Time that the brokers have to acknowledge; then appending fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """[store] The experience store: decisions joined with their feedback, and the learner's state."""

    url: str | None = field(default=None, repr=False)
    """URL of the database: `postgresql://user:password@host/database` for several learners; None: a SQLite file in the
    data directory, for one."""
    retention_s: Positive = 90 * 86_400.0
    """Time that decisions stay, with their content and feedback; at least `serving.feedback_window_s`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySettings:
    """[policy] Action selection, and how the head learns."""

    floor: PositiveShare = 0.01
    """Exploration floor: probability mass spread evenly over the allowed actions."""
    beta: Positive = 0.03
    """Temperature β of the policy improvement π ∝ π_ref·exp(q/β): the price of moving away from the base policy."""
    optimism: NotNegative = 3.0
    """Posterior standard deviations that are added to the predicted reward of an action that was hardly tried."""
    benefit_of_doubt: NotNegative = 0.7
    """Posterior standard deviations that a confident base policy is given before other actions are tried."""
    reference_mix: ShareBelowOne = 0.1
    """Share of the uniform policy that is mixed into the base policy where feedback contradicts it."""
    caution: NotNegative = 0.0
    """Factor, at most, by which the price of leaving the base policy grows where it is half sure and users agree with
    it."""
    reward_low: Annotated[float, Interval(le=0.0)] = -0.2
    """Lower bound on predicted rewards."""
    exclusivity: Share = 0.1
    """Evidence that praise of one action is against each other action, in thumbs; 0 where several may be right at
    once."""
    prior_precision: Positive = 1.0
    """Ridge penalty λ of the Bayesian ridge reward model, in thumbs."""
    base_precision: Positive = 3.0
    """Ridge penalty λ of the base policy's own opinion of an action: that many thumbs' worth of trust in it."""
    embedding_features: Annotated[int, Ge(0), MultipleOf(2)] = 192
    """Features made of the embedding, which count where the base policy is unsure; 0 leaves the embedding out."""
    embedding_precision: Positive = 0.1
    """Ridge penalty λ of the embedding's features, in thumbs."""
    max_kl: Positive = 0.5
    """Bound on how far one head refresh may move the policy, as mean KL divergence on recent contexts, in nats;
    contexts count in proportion to how sure the base policy is of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """[learner] The learner."""

    host: str = "127.0.0.1"
    """Address that the metrics port listens on; 0.0.0.0: all addresses of the machine."""
    metrics_port: Port = 8003
    """Port of the Prometheus metrics; 0: a free one."""
    batch: Count = 64
    """Experiences in a batch: every batch updates the reward model and refreshes the head."""
    max_wait_s: Positive = 2.0
    """Time after which an incomplete batch is learned from."""
    drift_detection: bool = True
    """Whether evidence from before users changed what they want counts no more; drift is found for each slice of
    contexts with the same base answer."""
    poll_limit: Count = 4096
    """Records read, and experiences learned, at once."""
    silence_reward: Share | None = None
    """Reward of a decision without any feedback; None: no feedback means nothing."""
    silence_after_s: Positive = 300.0
    """Time without feedback after which `silence_reward` applies."""
    user_cap: PositiveShare = 0.1
    """Largest share of the experiences that one user's are learned from, or five equal shares if that is more; 1: no
    cap."""
    unused_versions_kept: Count = 20
    """Head refreshes, and as many fine-tuned versions, kept in the registry besides those in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """[finetune] The fine-tuning job."""

    enabled: bool = True
    """Start of fine-tuning jobs when they are due."""
    every: Count = 1000
    """New experiences after which a job is due."""
    max_duration_s: Positive = 600.0
    """Time that a job may train."""
    steps_per_event: Positive = 4.0
    """Times that a job replays each experience."""
    learning_rate: Positive = 1e-3
    """Peak of a job's learning-rate schedule."""
    method: Literal["full", "lora"] = "full"
    """Weights that change: all of text encoder, fusion layers and head, or low-rank updates of their matrices, which
    are merged before export."""
    lora_rank: Count = 8
    """Rank r of the low-rank updates."""
    lora_alpha: Positive = 16.0
    """Scale α of the low-rank updates, which count α/r times."""
    objective: Literal["likelihood", "target", "sampled"] = "likelihood"
    """Objective of a job: the likelihood of users' feedback (`likelihood`); or, by a reward model which the job trains
    first, the distance to the best policy near the one that serves, π ∝ π_served·exp(q / policy.beta) (`target`), or
    the expected reward of actions sampled from the policy (`sampled`; clipped, relative to each other), for action sets
    too large to enumerate."""
    kl_weight: NotNegative | None = None
    """Price of a nat of divergence from the parent version; None: 0.04 where actions are sampled, else 0."""
    pessimism: NotNegative = 0.0
    """Standard deviations subtracted from the reward model's prediction of an action (`target`, `sampled`): the larger,
    the less a job prefers actions with little feedback. The prediction allows for its uncertainty without that."""
    samples: Annotated[int, Ge(2)] = 16
    """Actions sampled at once for each content."""
    clip: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.2
    """Bound ε on the change of a sampled action's probability, as a ratio, beyond which it adds no gradient."""
    sample_reuse: Count = 4
    """Gradient steps on the same samples, which bounds how stale they get."""
    max_experiences: Count = 20_000
    """Most recent experiences that a job trains on."""
    max_versions_behind: Count = 5_000
    """Distance from the live version, in versions, at which experiences are too stale to train on."""
    checkpoint_steps: Count = 200
    """Gradient steps between checkpoints, from which a job that was killed goes on."""
    rehearsal: Path | None = None
    """Labelled data folder that is rehearsed beside the experiences; None: that of the latest pre-training."""
    threads: Count = 1
    """Threads that a job may use."""
    seed: int = 0
    """Random seed. The same seed and experiences give the same model, unless the time limit cuts the job short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """[gate] The proof that a version needs before, and while, it serves."""

    alpha: Annotated[float, Interval(gt=0.0, lt=1.0)] = 0.05
    """Probability of a wrong verdict, over all looks together."""
    margin: Share = 0.0
    """Loss of reward against live that still counts as not worse."""
    slice_margin: Share = 0.03
    """Loss of reward against live that still counts as not worse on a single slice of the traffic."""
    user_cap: PositiveShare = 0.01
    """Largest share of the evidence that one user may have, or an equal share if there are so few users that it is
    more. Decisions without a user id count as one user's."""
    min_events: Count = 100
    """Experiences before a verdict. None of them is one that the candidate was trained on."""
    max_events: Count = 5_000
    """Experiences after which the verdict is "not enough evidence"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryPolicy:
    """Rules for experiments on the users of one model."""

    share: ShareBelowOne = 0.0
    """Share of the users, the same ones throughout, that a fine-tuned version serves which the gate could neither prove
    better nor worse; 0: it is never tried on users, unless `plaudit canary start` does it."""
    max_events: Count = 5_000
    """Experiences after which an experiment ends without proof, and live goes on serving all users."""
    promote: bool = True
    """Promotion of a candidate that has proven better; otherwise its experiment goes on until an operator ends it."""
    error_margin: Share = 0.01
    """Excess of the candidate's share of failed answers over live's at which it is withdrawn."""
    slow_factor: Annotated[float, Ge(1.0)] = 2.0
    """Multiple of the 95th percentile of live's latency above which an answer counts as slow."""
    slow_margin: Share = 0.05
    """Excess of the candidate's share of slow answers over live's at which it is withdrawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanarySettings(CanaryPolicy):
    """[canary] Experiments: versions beside live, with a share of the users. [canary.models.NAME] has what is different
    for one model."""

    models: Mapping[str, CanaryPolicy] = field(default_factory=dict)
    """Rules by model name, any of the settings above that are different for it."""

    def of(self, model: str) -> CanaryPolicy:
        """Rules of one model."""
        return self.models.get(model, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleSettings:
    """[console] The web page to try the model and watch the loop."""

    host: str = "127.0.0.1"
    """Address that the page listens on. Off this machine users log in: any name, and an API key as the password."""
    port: Port | None = None
    """Port of the page; 0: a free one. None: `plaudit up` serves no page."""
    hosts: Sequence[str] = ()
    """Further host names that browsers may call the page by, such as that of a proxy in front of it; `*`: any. Without
    them: `host`, `localhost`, and where all addresses are listened on, every IP address and the machine's own names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingSettings:
    """[tracing] OpenTelemetry traces of requests and feedback; needs the extra `tracing`."""

    endpoint: str | None = None
    """OTLP endpoint that traces are sent to: `http://collector:4317`. None: OTEL_EXPORTER_OTLP_ENDPOINT; where that is
    not set either, nothing is traced, at no cost."""
    protocol: Literal["grpc", "http/protobuf"] | None = None
    """OTLP protocol. None: OTEL_EXPORTER_OTLP_PROTOCOL, otherwise grpc."""
    sample_ratio: Share | None = None
    """Share of the traces that begin here and are kept; a trace that a client began is kept or not as the client
    decided. None: OTEL_TRACES_SAMPLER, otherwise all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """[data] The labelled data folder: names of its columns, and bounds on what is read. Every default fits a folder as
    docs/how-to/data-sets.md describes it."""

    manifest: str | None = None
    """Path of the manifest within the folder: `.csv`, `.tsv`, `.jsonl`, `.parquet` or a Croissant `.json`; None: it is
    found."""
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """Source of each modality whose column is called otherwise: a column, a template such as `images.zip#{file}`, or
    for a tensor a list of columns with numbers."""
    target: str | None = None
    """Column of the target; None: `action`, or `label` where there is none."""
    target_kind: Literal["action", "actions", "number", "ranking"] = "action"
    """One right action; several (`a|b` or a JSON list); a number between actions that are numbers; a ranking with the
    best first (`a>b` or a JSON list)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Values of the target and the actions that they mean, where the two differ."""
    split: str = "split"
    """Column of the split."""
    group: str = "group"
    """Column that says whose row it is: patient, speaker, drive. A group stays in one split."""
    slice: str = "slice"
    """Column of a name by which accuracy is reported; where there is none, the group's."""
    weight: str = "weight"
    """Column of the weight of a row in the loss."""
    user: str = "user"
    """Column of the user, who is the group of rows without one."""
    ignore: Sequence[str] = ()
    """Columns that are not used; `*`: all that no setting names."""
    exclude: str | None = None
    """List of rows to leave out, as `plaudit data clean` writes it; a path within the folder."""
    val_share: ShareBelowOne = 0.1
    """Share of the groups for validation where the data has no such split."""
    test_share: ShareBelowOne = 0.1
    """Share of the groups for testing where the data has no splits."""
    workers: Count = 2
    """Threads that read and decode ahead of training."""
    cache_bytes: Annotated[int, Ge(0)] = 2 * 1024 * 1024 * 1024
    """Memory for decoded items of one split; what does not fit is decoded again in every pass."""
    max_item_bytes: Count = 64 * 1024 * 1024
    """Size of the largest file, or member of an archive."""
    max_image_pixels: Count = 32_000_000
    """Pixels of the largest image."""
    max_audio_duration_s: Positive = 60.0
    """Duration of the longest sound. No more of it is decoded than the model takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainSettings:
    """[pretrain] Supervised training on a labelled data folder."""

    max_duration_s: Positive = 600.0
    """Time that the training may take."""
    max_epochs: Count = 50
    """Passes over the data."""
    batch: Count = 128
    """Rows per gradient step."""
    learning_rate: Positive = 3e-3
    """Peak of the learning-rate schedule."""
    patience: Count = 5
    """Validations without improvement before training stops."""
    threads: Count = 2
    """Threads that the training may use."""
    seed: int = 0
    """Random seed. The same seed and data give the same model, unless the time limit cuts training short."""


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """`encoder` and `tune_encoder` of one [model.modalities] table: a pretrained encoder that pre-training starts from.

    Attributes:
        folder: local folder in the Hugging Face format.
        tuned: its weights are trained too.
    """

    folder: Path
    tuned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """plaudit.toml

    Raises:
        ValueError: settings contradict each other.
    """

    data_dir: Path = Path("plaudit-data")
    """Directory with all state of the embedded default: event log, registry, experience store, signing key."""
    umask: str = "077"
    """Permissions that files and folders which a command makes do not have, in octal: by default they are for its user
    alone. `027` lets the group read them."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """[model] Name, modalities and actions of the model; see docs/tutorials/your-own-model.md."""
    serving: ServingSettings = ServingSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    log: LogSettings = LogSettings()
    kafka: KafkaSettings = KafkaSettings()
    store: StoreSettings = StoreSettings()
    policy: PolicySettings = PolicySettings()
    learner: LearnerSettings = LearnerSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    gate: GateSettings = GateSettings()
    canary: CanarySettings = CanarySettings()
    data: DataSettings = DataSettings()
    pretrain: PretrainSettings = PretrainSettings()
    console: ConsoleSettings = ConsoleSettings()
    tracing: TracingSettings = TracingSettings()

    def __post_init__(self) -> None:
        if not re.fullmatch("0?[0-7]{1,3}", self.umask):
            raise ValueError(f"umask: {self.umask[:20]!r} is not three octal digits, such as 077")
        _check_admin_token(self.serving.admin_token)
        try:
            admin_place(self.serving)
        except ValueError as error:
            raise ValueError(f"serving.admin_address: {error}") from error
        if self.store.retention_s < self.serving.feedback_window_s:
            raise ValueError(
                f"store.retention_s: {self.store.retention_s:g} is less than serving.feedback_window_s "
                f"({self.serving.feedback_window_s:g}); feedback would outlive the decision it is about"
            )

    def spec(self) -> ModelSpec:
        """The model's contract. Raises ConfigError if the [model] table is missing or wrong."""
        if not self.model:
            raise ConfigError("model: the configuration has no [model] table; it names the modalities and actions")
        described = dict(self.model)
        if isinstance(modalities := self.model.get("modalities"), Mapping):
            described["modalities"] = {name: _without_encoder(fields) for name, fields in modalities.items()}
        try:
            return spec_from_dict(described)
        except InvalidSpec as error:
            raise ConfigError(str(error)) from error

    def encoders(self) -> dict[str, EncoderSettings]:
        """Pretrained encoders by the name of the modality. Raises ConfigError if one is described wrongly."""
        found = {}
        for name, modality in self.spec().modalities.items():
            told = self.model["modalities"][name]
            folder, tuned = told.get("encoder"), told.get("tune_encoder", False)
            if not isinstance(tuned, bool):
                raise ConfigError(f"model.modalities.{name}.tune_encoder: {tuned!r} is neither true nor false")
            if folder is None:
                if tuned:
                    raise ConfigError(f"model.modalities.{name}.tune_encoder: true, but there is no encoder to tune")
                continue
            if not isinstance(folder, str) or not folder:
                raise ConfigError(f"model.modalities.{name}.encoder: {folder!r} is not the path of a folder")
            if modality.kind == "tensor":
                raise ConfigError(
                    f"model.modalities.{name}.encoder: encoders read text, images and sounds, and the modality is of "
                    "kind tensor; leave it out"
                )
            found[name] = EncoderSettings(Path(folder), tuned)
        return found


def _without_encoder(modality: Any) -> Any:
    """What a [model.modalities] table says of the contract; where weights come from is no part of it."""
    if not isinstance(modality, Mapping):
        return modality
    return {key: value for key, value in modality.items() if key not in ("encoder", "tune_encoder")}


def _check_admin_token(token: str | None) -> None:
    """Raises ValueError, without the token, if it could be guessed or no client could send it."""
    if token is None:
        return
    make = 'python -c "import secrets; print(secrets.token_urlsafe(32))"'
    way_out = f"make one with `{make}`, or leave it out to need none"
    size_bytes = len(token.encode(errors="replace"))
    if size_bytes < MIN_ADMIN_TOKEN_BYTES:
        raise ValueError(
            f"serving.admin_token: has {size_bytes} bytes, and at least {MIN_ADMIN_TOKEN_BYTES} are needed; {way_out}"
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"serving.admin_token: has characters that no call can carry; {way_out}")
