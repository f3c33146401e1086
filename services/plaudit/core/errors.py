"""Errors that Plaudit raises on purpose. They name no transport: the servicers map classes to statuses."""

from __future__ import annotations

from plaudit.core.limits import MAX_NAMED_MODELS, MAX_SHOWN_CHARACTERS
from plaudit.core.text.reasons import told_reason


def _shown(value: str) -> str:
    return f"{value[:MAX_SHOWN_CHARACTERS]!r}{'…' if len(value) > MAX_SHOWN_CHARACTERS else ''}"


class PlauditError(Exception):
    """Root of every error raised on purpose."""

    @property
    def for_clients(self) -> str:
        """The message without what concerns this machine alone, such as paths."""
        return str(self)


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
    """A model, version or feedback that a request names does not exist."""


class UnknownModel(NotFound):
    """No model of that name is served."""

    def __init__(self, model: str, known: list[str]) -> None:
        super().__init__(f"model: {_shown(model)} is not served here; served are {known[:MAX_NAMED_MODELS]}")


class UnknownVersion(NotFound):
    """The registry has no such version."""

    def __init__(self, version: int, known: list[int]) -> None:
        listed = f"{known[0]} to {known[-1]}" if known else "none"
        super().__init__(f"version: {version} does not exist; there are {listed}")


class UnknownFeedback(NotFound):
    """No feedback with that id was recorded."""

    def __init__(self, feedback_id: str) -> None:
        super().__init__(f"feedback_id: {_shown(feedback_id)} was never recorded")


class OtherFeedback(PlauditError):
    """A feedback id that was used before, for another signal, prediction or user; what was sent is not recorded."""

    def __init__(self, feedback_id: str) -> None:
        super().__init__(
            f"feedback_id: {_shown(feedback_id)} is recorded with other contents, and this was not; send it with an id "
            "of its own"
        )


class Conflict(PlauditError):
    """The request is valid, but the present state does not allow it."""


class ExpiredPredictionId(Conflict):
    """The prediction id is older than the feedback window."""

    def __init__(self, age_s: float, window_s: float) -> None:
        super().__init__(f"prediction_id: is {age_s:.0f} s old; feedback is accepted for {window_s:.0f} s")


class RolloutMoved(Conflict):
    """The rollout is not at the generation that the change was decided on."""

    def __init__(self, expected: int, found: int) -> None:
        super().__init__(
            f"expected_generation: the rollout is at generation {found}, not {expected}; read it and try again"
        )


class NoPreviousVersion(Conflict):
    """There is no previous version to roll back to."""

    def __init__(self) -> None:
        super().__init__("rollback: there is no previous version to return to")


class StoreMoved(Conflict):
    """Another learner changed the experience store meanwhile; nothing was saved."""

    def __init__(self, way_out: str = "read it and try again") -> None:
        super().__init__(f"another learner changed this experience store; {way_out}")


class WrongStore(Conflict):
    """The tables of an experience store have another schema version than this Plaudit reads."""

    def __init__(self, place: str, found: int, expected: int) -> None:
        super().__init__(
            f"the experience store {place} has schema version {found}, this Plaudit has {expected}; move it away, "
            "and the learner makes another one from the log"
        )


class WrongLog(Conflict):
    """The positions of an experience store are of another event log than the one that is read."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"the experience store is of another event log ({problem}); set [log] back to what it was, or move the "
            "store away, and the learner makes another one from this log"
        )


class VersionPinned(Conflict):
    """A version is pinned, so no other may go live."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} is pinned; unpin it first")


class ExperimentActive(Conflict):
    """Another version is in an experiment already."""

    def __init__(self, version: int) -> None:
        super().__init__(
            f"version: {version} is in an experiment already; stop that experiment first (plaudit canary stop)"
        )


class NoActiveExperiment(Conflict):
    """No version is in an experiment, or not the one that the request names."""

    def __init__(self, version: int, found: int) -> None:
        which = f"version {version} is not in an experiment" if version else "no version is in an experiment"
        super().__init__(f"version: {which}" + (f"; version {found} is" if found and version else ""))


class VersionAlreadyLive(Conflict):
    """The live version cannot be the candidate of an experiment."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version: {version} is live already; start an experiment with another version")


class IncompatibleContract(Conflict):
    """A version has other inputs or actions than the live one, so clients of the one would fail with the other."""

    def __init__(self, version: int, live: int, difference: str) -> None:
        super().__init__(
            f"version: {version} is incompatible with clients of version {live}: {difference}; "
            "serve it under another model name"
        )


class Overloaded(PlauditError):
    """A bounded queue is full."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"{what} is full ({limit} at once); try again shortly")


class Expired(PlauditError):
    """The deadline of a call passed before its evaluation began; nothing was computed."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the request was computed")


class RunStopped(Expired):
    """A run of the graph lasted beyond the deadlines of all its requests, and was ended."""

    def __init__(self, lasted_s: float) -> None:
        PlauditError.__init__(self, f"the model was still computing after {lasted_s:.1f} s, when it was stopped")


class Unavailable(PlauditError):
    """The request cannot be served now; the same request can succeed later."""


class NoLiveModel(Unavailable):
    """No version of the model serves yet.

    Args:
        problem: why the version that should be live does not run here; "" if there is none.
    """

    def __init__(self, model: str, problem: str = "") -> None:
        way_out = problem or "run `plaudit pretrain`, `plaudit import` or `plaudit promote N`"
        super().__init__(f"model {model!r} has no live version yet; {way_out}")


class Draining(Unavailable):
    """The server is shutting down and takes no new work."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; send requests without an answer again")


class StreamClosed(Unavailable):
    """The server ended a stream because its client was silent; what was read is answered."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the stream is closed: {why}")


class LogUnavailable(Unavailable):
    """The event log could not make an event durable, or cannot say whether it did; appending it again is safe."""

    def __init__(self, problem: str) -> None:
        told = "the event log is unavailable, the event may not be recorded; send it again"
        super().__init__(f"{told}: {problem}")
        self.problem = problem
        self._told = told

    @property
    def for_clients(self) -> str:
        return f"{self._told}: {told_reason(self.problem)}"


class StateTooLarge(Unavailable):
    """A part of the learner's state is larger than what is saved at once; nothing was saved."""

    def __init__(self, part: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{part}: {size_bytes} bytes of the learner's state are more than the {limit_bytes} that are saved at "
            f"once; nothing new is learned until it is smaller: see `plaudit doctor` for what makes it large"
        )


class StoreUnavailable(Unavailable):
    """The experience store could not be read or written; nothing was saved."""

    def __init__(self, problem: str) -> None:
        told = "the experience store is unavailable, nothing was saved"
        super().__init__(f"{told}: {problem}")
        self._told, self._problem = told, problem

    @property
    def for_clients(self) -> str:
        return f"{self._told}: {told_reason(self._problem)}"


class UnstorableValue(PlauditError):
    """A value that the database of the experience store does not keep, such as a text with a NUL."""


class LogDamaged(LogUnavailable):
    """The file of the event log is no database, or a damaged one: trying again will not help."""


class StoreDamaged(StoreUnavailable):
    """The file of the experience store is no database, or a damaged one: trying again will not help."""


class RegistryUnavailable(Unavailable):
    """The registry cannot be read or changed; loaded versions go on serving.

    Args:
        problem: what is wrong, and the way out.
        place: file or folder that it is about; clients are not told.
    """

    def __init__(self, problem: str, place: str = "") -> None:
        told = f"the registry is unavailable, nothing was changed and loaded versions go on serving: {problem}"
        super().__init__(f"{told} ({place})" if place else told)
        self._told = told

    @property
    def for_clients(self) -> str:
        return self._told


class Unauthorized(PlauditError):
    """A call without the credentials that it needs; without keys, an admin call without the admin token."""

    def __init__(self, problem: str = "needs") -> None:
        super().__init__(f"authorization: this call {problem} the admin token as `authorization: Bearer TOKEN`")


class WrongToken(Unauthorized):
    """An admin call with a token that is not the admin token."""

    def __init__(self) -> None:
        super().__init__("came with a wrong token; it needs")


class NeedsCredentials(Unauthorized):
    """A call without a key, where the service asks for one."""

    def __init__(self) -> None:
        PlauditError.__init__(
            self,
            "authorization: this call needs a key as `authorization: Bearer KEY`; `plaudit keys create` makes one",
        )


class UnknownCredentials(Unauthorized):
    """A key or token that this service does not know, or not any more.

    Args:
        problem: what is wrong with it; never the token itself.
    """

    def __init__(self, problem: str = "is none of this service's keys, or was revoked") -> None:
        PlauditError.__init__(self, f"authorization: the key {problem}; ask the operator for another")


class Forbidden(PlauditError):
    """A caller who is known may not make this call."""


class NeedsRole(Forbidden):
    """A method needs a role that the caller does not have."""

    def __init__(self, role: str, roles: list[str]) -> None:
        super().__init__(f"authorization: this call needs the role {role}; the key has {roles}")


class OnAdminPortOnly(Forbidden):
    """A call of an admin came to the port that everybody reaches."""

    def __init__(self) -> None:
        super().__init__(
            "authorization: calls of admins are answered on the admin port alone (serving.admin_address), "
            "which only the service's own machine reaches by default"
        )


class NoRoleForMethod(Forbidden):
    """A method that says of no role that it may call it."""

    def __init__(self, method: str) -> None:
        super().__init__(f"authorization: nobody may call {_shown(method)}, as it names no role")


class OtherUser(Forbidden):
    """A request in the name of another user than the caller's."""

    def __init__(self, claimed: str, user_id: str) -> None:
        super().__init__(
            f"user_id: {_shown(claimed)} is not who the key belongs to ({_shown(user_id)}); leave it out, or use a key "
            "that may speak for others"
        )


class NotTheAsker(Forbidden):
    """Feedback of another user than the one who asked, where only that one may rate."""

    def __init__(self, user_id: str) -> None:
        super().__init__(
            f"user_id: {_shown(user_id)} is not who asked for this prediction; send the user_id of its request, or set "
            'feedback.raters = "anyone"'
        )


class TooMuchFeedback(Conflict):
    """A user has given all the feedback on one prediction that is taken."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"prediction_id: this user has given {limit} pieces of feedback on it, which is the most")


class QuotaSpent(PlauditError):
    """A caller has made more calls than its key allows."""

    def __init__(self, calls_per_minute: int) -> None:
        super().__init__(f"authorization: the key's {calls_per_minute} calls a minute are spent; try again shortly")


class UnprovenVersion(PlauditError):
    """A version failed its proof (digest, golden outputs, contract) and must not serve."""

    def __init__(self, version: int, problem: str) -> None:
        super().__init__(f"version {version} failed its proof: {problem}")
        self.version = version


class ConfigError(PlauditError):
    """A setting is wrong; the message lists every problem with its setting and value."""
