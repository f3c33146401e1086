"""Bounds for everyone: lengths, counts and waits of the contract that no setting moves; the unit is in the name.

What users may want to move is a setting (:mod:`plaudit.core.settings`). Whatever comes from outside is compared with a
bound before it becomes memory, time or a name in somebody's list. ``docs/reference/limits.md`` is made of this module.
"""

from typing import Final

# --- ids and texts ---------------------------------------------------------------------------------------------------

MAX_ID_CHARACTERS: Final = 128
"""Longest id that is taken: of a user, request, feedback, action or correction, and the longest name of a model.
Control characters, invisible directions of text (U+202E) and lone surrogates are refused."""
MAX_ACTOR_CHARACTERS: Final = 128
"""Longest name of whoever changes which version serves."""
MAX_REASON_CHARACTERS: Final = 1_024
"""Longest reason for a change."""
MAX_FEEDBACK_PER_PREDICTION: Final = 16
"""Pieces of feedback that one user gives on one prediction, retractions among them; counted by each process."""
MAX_COUNTED_PREDICTIONS: Final = 100_000
"""Latest predictions and users whose feedback a process counts."""
MAX_PREDICTION_ID_CHARACTERS: Final = 4_096
"""Longest prediction id that is looked at."""
MAX_SHOWN_CHARACTERS: Final = 80
"""Characters of a refused value that its error repeats."""
MAX_STATUS_BYTES: Final = 2_048
"""UTF-8 bytes of an error's text in a gRPC status; the rest is cut off."""
MIN_ADMIN_TOKEN_BYTES: Final = 16
"""Shortest admin token that a configuration may set."""
MAX_TOKEN_CHARACTERS: Final = 8_192
"""Longest `authorization` of a call that is looked at: a key is short, a JWT may be long."""
MAX_KEYS: Final = 10_000
"""API keys of one deployment."""
MAX_REMEMBERED_TOKENS: Final = 4_096
"""Verified JWTs that a process remembers, so that each is verified once."""
MAX_JWKS_BYTES: Final = 2**20
"""Largest set of public keys for JWTs that is read."""
JWKS_COOLDOWN_S: Final = 60.0
"""Time between two readings of the set from its URL, whatever keys tokens name."""
JWKS_TIMEOUT_S: Final = 5.0
"""Time that the server of the set has to answer."""

# --- content ---------------------------------------------------------------------------------------------------------

MAX_TENSOR_RANK: Final = 8
"""Axes of a tensor, the batch axis not counted."""
MAX_MODALITIES: Final = 1_024
"""Modalities of one request or record, whatever they are called."""
MAX_ALLOWED_ACTIONS: Final = 65_536
"""Allowed actions that one request lists; each must be one of the model's."""
MAX_DYNAMIC_ACTIONS: Final = 256
"""Dynamic actions of one request."""
MAX_DYNAMIC_ACTIONS_BYTES: Final = 2**20
"""UTF-8 bytes of all texts of the dynamic actions of one request together."""
MAX_EXPLAINED_MODALITIES: Final = 6
"""Modalities of a request that asks for an explanation, which evaluates every subset of them."""

# --- times -----------------------------------------------------------------------------------------------------------

MIN_EVENT_TIME_S: Final = 946_684_800.0
"""Earliest time of an event that is read, UTC seconds: the year 2000."""
MAX_EVENT_TIME_S: Final = 4_102_444_800.0
"""Latest time of an event that is read, UTC seconds: the year 2100."""
LOG_GAP_S: Final = 3_600.0
"""Seconds without an event after which the log's own time goes on only once the far side of the gap is proven."""
LOG_GAP_PROVEN_S: Final = 86_400.0
"""Seconds that events on the far side of a gap must span before the log's own time goes on there."""

# --- records ---------------------------------------------------------------------------------------------------------

MAX_POLL_BYTES: Final = 64 * 2**20
"""Bytes of records after which a reader of the log returns what it has: a thousand images would not fit into memory."""
MIN_PROPENSITY: Final = 1e-9
"""Smallest probability of an answer that is learned from: its inverse weighs the answer."""
MAX_FEATURE_VALUES: Final = 65_536
"""Values of the embedding, or of the base logits, in one record."""
MAX_STORED_ID_CHARACTERS: Final = 2_048
"""Longest id of a record that is kept: PostgreSQL indexes no longer ones."""
MAX_FEATURE: Final = 1e6
"""Largest absolute value of an embedding or base logit that is learned from: sums of squares stay exact enough."""

# --- calls and connections -------------------------------------------------------------------------------------------

MAX_CALLS_PER_CONNECTION: Final = 1_024
"""Calls, streams included, that one connection may have open at once. A client keeps further ones back instead of being
refused, so there is room for more than the places of all kinds."""
MAX_LATE_CALLS: Final = 128
"""Calls whose message has not arrived; each has a thread, but no place among `serving.max_calls`."""
MAX_MESSAGE_WAIT_S: Final = 120.0
"""Time that the message of a unary call has to arrive; then the call is cancelled. Where threads run out, 1 s."""
MIN_STREAM_SILENCE_S: Final = 5.0
"""Silence after which a stream gives way to another one where places run out. A stream of a connection with more than a
quarter of the places does so at once."""
MAX_HEALTH_CALLS: Final = 64
"""Calls for health that are answered at once, beside all others."""
MAX_SMALL_CALL_BYTES: Final = 64 * 2**10
"""Size of a message that does not count among `serving.max_bytes_in_flight`."""
MAX_FIELD_COST: Final = 81_920
"""Fields of a message of more than `MAX_SMALL_CALL_BYTES`, its messages' fields included. One of another number than
the field before it counts five times. An empty field of two bytes would become an object of 90."""
MAX_SHAPE_BYTES: Final = 2**20
"""Size of all shapes in one message, each axis taking at least a byte: it becomes eight."""
KEEPALIVE_S: Final = 30.0
"""Interval at which the server asks a silent connection whether its peer is there."""
KEEPALIVE_TIMEOUT_S: Final = 10.0
"""Time that the peer has to say so; then the connection is closed with its calls."""
MIN_CLIENT_KEEPALIVE_S: Final = 30.0
"""Shortest interval at which clients may ask the same of the server."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
"""Time that a new connection has to begin speaking HTTP/2."""
MAX_CONNECTION_IDLE_S: Final = 600.0
"""Time without a call after which a connection is closed; clients open another one by themselves."""
MAX_CONNECTION_AGE_S: Final = 1_800.0
"""Age at which a connection takes no new calls; clients open another one by themselves."""
CONNECTION_AGE_GRACE_S: Final = 3_600.0
"""Time that calls under way on such a connection have; then it is closed with them."""
MAX_ADMIN_CALLS: Final = 16
"""Unary calls on an admin port of its own that are worked on at once, and as many streams."""
MAX_METRICS_ANSWERS: Final = 8
"""Requests to a metrics port that are answered at once; further ones wait."""
MAX_METRICS_CONNECTIONS: Final = 64
"""Connections to a metrics port whose request has not arrived; a further one takes the place of the oldest."""
METRICS_TIMEOUT_S: Final = 5.0
"""Time that a connection to a metrics port has for its request and for taking the answer."""
MAX_CONSOLE_CONNECTIONS: Final = 128
"""Connections to the console. A further one takes the place of the one that has waited longest for its request."""
CONSOLE_REQUEST_S: Final = 10.0
"""Time that the head of a request to the console has to arrive, and that a connection may idle."""
CONSOLE_CALL_S: Final = 120.0
"""Time that the body of a request to the console has to arrive, and its answer to be taken."""

# --- the learner -----------------------------------------------------------------------------------------------------

MAX_ACTIONS: Final = 16_384
"""Actions of a model. The learner's state and a version's head grow with them, by about 4 kB and 2 kB an action."""
MAX_STATE_PART_BYTES: Final = 256 * 2**20
"""Largest part of the learner's state that is saved at once; SQLite takes no more than 2 GiB, PostgreSQL 1 GiB."""

# --- the registry ----------------------------------------------------------------------------------------------------

MAX_ROLLOUT_BYTES: Final = 64 * 2**20
"""Largest rollout that is read, and longest line of the ledger: a reason of 16 MiB, once written, is still read."""
MAX_IGNORED_ENTRIES: Final = 100
"""Entries of the registry that are no model and no version which are named; beyond them they are only counted."""
MAX_NAMED_MODELS: Final = 20
"""Models that an error names to a client."""
MAX_REGISTRY_LOCK_WAIT_S: Final = 30.0
"""Longest wait for another process that publishes a version or changes the rollout."""
MAX_LEDGER_SHOWN: Final = 2_000
"""Latest rollouts that the console looks at."""
MAX_CACHED_MANIFESTS: Final = 2_048
"""Manifests that one process keeps in memory for each model."""

# --- runs of graphs --------------------------------------------------------------------------------------------------

MAX_TOLD_REASON_CHARACTERS: Final = 300
"""Longest part of a library's own error that an error to a client repeats."""
MAX_RUN_S: Final = 60.0
"""Longest run of a graph whose callers set no deadline; where they did, the latest deadline ends it."""
