"""Every error Plaudit raises on purpose. No transport words: the serving edge maps classes to statuses.

PlauditError
├── InvalidInput            the caller sent something wrong: field, value, way out
│   └── InvalidPredictionId     not signed by this service, or damaged
├── NotFound
│   ├── UnknownModel
│   ├── UnknownVersion
│   └── UnknownFeedback
├── Conflict                the request is fine, the state does not allow it
│   ├── ExpiredPredictionId     older than the feedback window
│   ├── RolloutMoved            somebody else changed the rollout meanwhile
│   ├── NoPreviousVersion
│   ├── StoreMoved              another learner was faster, or has taken over
│   ├── WrongStore              an experience store of another version of Plaudit
│   ├── ExperimentActive           one candidate at a time
│   ├── NoActiveExperiment                 there is nothing to stop or to show
│   ├── VersionAlreadyLive             what serves everybody cannot be tried out
│   ├── IncompatibleContract           another version takes or gives other things than the live one
│   └── VersionPinned
├── Overloaded              a bounded queue is full; try again later
├── Expired                 the deadline passed before the work began
├── Unavailable
│   ├── NoLiveModel
│   ├── Draining            the server is shutting down
│   ├── LogUnavailable
│   ├── RegistryUnavailable the registry is gone, or not what it was
│   └── StoreUnavailable    the experience store could not save or read
├── Unauthorized            an admin call without the admin token
│   └── WrongToken              with a wrong one
├── UnprovenVersion         a version failed its proof; it will never serve
└── ConfigError             a setting is wrong; names the setting and the value
"""

from __future__ import annotations


class PlauditError(Exception):
    """Root of every error raised on purpose."""


class InvalidInput(PlauditError):
    """A field of a request is wrong.

    Args:
        field: path of the field, such as ``content["image"]``.
        problem: what is wrong with which value, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class InvalidPredictionId(InvalidInput):
    """A prediction id that this service did not sign, or that was damaged on the way."""

    def __init__(self, problem: str) -> None:
        super().__init__("prediction_id", problem)


class NotFound(PlauditError):
    """Something named in a request does not exist."""


class UnknownModel(NotFound):
    """No model of that name is served."""

    def __init__(self, model: str, known: list[str]) -> None:
        super().__init__(f"model: {model!r} is not served here; served are {known}")


class UnknownVersion(NotFound):
    """The registry has no such version."""

    def __init__(self, version: int, known: list[int]) -> None:
        listed = f"{known[0]} to {known[-1]}" if known else "none"
        super().__init__(f"version: {version} does not exist; there are {listed}")


class UnknownFeedback(NotFound):
    """No feedback with that id was recorded."""

    def __init__(self, feedback_id: str) -> None:
        super().__init__(f"feedback_id: {feedback_id!r} was never recorded")


class Conflict(PlauditError):
    """The request is well formed, but the present state does not allow it."""


class ExpiredPredictionId(Conflict):
    """Feedback came after the feedback window."""

    def __init__(self, age_s: float, window_s: float) -> None:
        super().__init__(f"prediction_id: is {age_s:.0f} s old; feedback is taken for {window_s:.0f} s")


class RolloutMoved(Conflict):
    """The rollout is not at the generation that the change was decided on."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(f"expected_generation: the rollout is at generation {found}, not {expected}; look again")


class NoPreviousVersion(Conflict):
    """Rollback with nothing to go back to."""

    def __init__(self) -> None:
        super().__init__("rollback: there is no previous version to go back to")


class StoreMoved(Conflict):
    """Somebody else saved to the experience store what this learner was about to change; nothing was saved."""

    def __init__(self, way_out: str = "look again") -> None:
        super().__init__(f"another learner works on this experience store; {way_out}")


class WrongStore(Conflict):
    """The tables of an experience store are of another version of Plaudit."""

    def __init__(self, place: str, found: int, expected: int) -> None:
        super().__init__(
            f"the experience store {place} has schema version {found}, this Plaudit has {expected}; move it away, "
            "and the learner makes another one from the log"
        )


class VersionPinned(Conflict):
    """A version is pinned, so nothing else may go live."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} is pinned; unpin it first")


class ExperimentActive(Conflict):
    """Another version is in an experiment already."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"version: {version} is in an experiment already; stop that experiment first (plaudit canary stop)"
        )


class NoActiveExperiment(Conflict):
    """No version is in an experiment, or not the one that was meant."""

    def __init__(self, meant: int, found: int) -> None:
        which = f"version {meant} is not in an experiment" if meant else "no version is in an experiment"
        super().__init__(f"version: {which}" + (f"; version {found} is" if found and meant else ""))


class VersionAlreadyLive(Conflict):
    """A version that is live cannot go in an experiment beside itself."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version: {version} is live; it serves everybody, there is nothing to try out")


class IncompatibleContract(Conflict):
    """A version takes or gives something else than the live one, so clients of the one would fail with the other."""

    def __init__(self, version: int, live: int, difference: str) -> None:
        super().__init__(
            f"version: {version} is not what version {live} is to its clients: {difference}; "
            "serve it under a model name of its own"
        )


class Overloaded(PlauditError):
    """A bounded queue is full."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is full ({limit} at once); try again shortly")


class Expired(PlauditError):
    """The caller's deadline passed before the work began; nothing was computed."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the request was computed")


class Unavailable(PlauditError):
    """Not now; trying again later can succeed."""


class NoLiveModel(Unavailable):
    """No version of the model serves yet."""

    def __init__(self, model: str) -> None:
        super().__init__(f"model {model!r} has no live version yet; run `plaudit pretrain` or `plaudit promote N`")


class Draining(Unavailable):
    """The server is shutting down and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send again what was not answered")


class LogUnavailable(Unavailable):
    """The event log could not make an event durable, or cannot tell; appending it again is safe."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the event log is away, this is not known to be recorded; send it again: {problem}")
        self.problem = problem


class StoreUnavailable(Unavailable):
    """The experience store could not be read or written; nothing was saved."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the experience store is away, nothing was saved: {problem}")


class RegistryUnavailable(Unavailable):
    """The registry cannot be read or changed; what is loaded goes on serving."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the registry is away, nothing was changed and what serves goes on: {problem}")


class Unauthorized(PlauditError):
    """An admin call without the admin token."""

    def __init__(self, problem: str = "needs") -> None:
        super().__init__(f"authorization: this call {problem} the admin token as `authorization: Bearer TOKEN`")


class WrongToken(Unauthorized):
    """An admin call with a token that is not the admin token."""

    def __init__(self) -> None:
        super().__init__("came with a wrong token; it needs")


class UnprovenVersion(PlauditError):
    """A version failed its proof (digest, golden outputs, contract) and must not serve."""

    def __init__(self, version: int, problem: str) -> None:
        super().__init__(f"version {version} failed its proof: {problem}")
        self.version = version


class ConfigError(PlauditError):
    """The configuration is wrong; the message lists every problem with its setting and value."""
