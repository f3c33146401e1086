"""Prediction ids: opaque and signed; they carry what feedback is checked against, so that no look-up is needed.

Layout before base64url: ``format (1) | time_us (8) | nonce (8) | version (4) | propensity (8) | model length (1) |
model | action | tag (16)``, big-endian, the tag being HMAC-SHA256 over all that precedes it, cut to 128 bits. The
format is 1 where the action is one of the model's, and 2 where it is a dynamic action of the request.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hashlib
import hmac
import os
import secrets
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from plaudit.core.errors import ConfigError, ExpiredPredictionId, InvalidPredictionId
from plaudit.core.host.os_errors import explain
from plaudit.core.limits import MAX_PREDICTION_ID_CHARACTERS

_FIXED_ACTION: Final = 1
_DYNAMIC_ACTION: Final = 2
_HEADER: Final = struct.Struct(">BQ8sIdB")
_TAG_BYTES: Final = 16
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SignedPrediction:
    """Content of a prediction id.

    Attributes:
        time_s: UTC seconds since the epoch.
        dynamic: ``action`` is the id of one of the request's own dynamic actions.
    """

    time_s: float
    model: str
    version: int
    action: str
    propensity: float
    dynamic: bool = False


class PredictionIds:
    """Signs and checks prediction ids.

    Args:
        key: at least 32 secret bytes, shared by all servers of one deployment.
        window_s: seconds after a prediction in which feedback is accepted.
    """

    def __init__(self, key: bytes, window_s: float) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"the signing key has {len(key)} bytes, at least {KEY_BYTES} are needed")
        self._key = key
        self._window_s = window_s

    def sign(self, prediction: SignedPrediction) -> str:
        model = prediction.model.encode()
        header = _HEADER.pack(
            _DYNAMIC_ACTION if prediction.dynamic else _FIXED_ACTION,
            round(prediction.time_s * 1e6),
            secrets.token_bytes(8),
            prediction.version,
            prediction.propensity,
            len(model),
        )
        body = header + model + prediction.action.encode()
        return base64.urlsafe_b64encode(body + self._tag(body)).rstrip(b"=").decode()

    def check(self, prediction_id: str, *, now_s: float) -> SignedPrediction:
        """Read an id that this service signed.

        Raises:
            InvalidPredictionId: it is empty, damaged, or signed with another key.
            ExpiredPredictionId: it is older than the feedback window.
        """
        body = self._verified(prediction_id)
        form, time_us, _, version, propensity, model_length = _HEADER.unpack_from(body)
        names = body[_HEADER.size :]
        if form not in (_FIXED_ACTION, _DYNAMIC_ACTION):
            raise InvalidPredictionId(f"is of format {form}, which another release of this service signs")
        try:
            model, action = names[:model_length].decode(), names[model_length:].decode()
        except UnicodeDecodeError:
            raise InvalidPredictionId("was signed by this service's key, but not by this service") from None
        prediction = SignedPrediction(
            time_s=time_us / 1e6,
            model=model,
            version=version,
            action=action,
            propensity=propensity,
            dynamic=form == _DYNAMIC_ACTION,
        )
        age_s = now_s - prediction.time_s
        if age_s > self._window_s:
            raise ExpiredPredictionId(age_s, self._window_s)
        return prediction

    def _verified(self, prediction_id: str) -> bytes:
        if not prediction_id:
            raise InvalidPredictionId("is empty; send the prediction_id of a PredictResponse")
        if len(prediction_id) > MAX_PREDICTION_ID_CHARACTERS:
            raise InvalidPredictionId(
                f"has {len(prediction_id)} characters; at most {MAX_PREDICTION_ID_CHARACTERS} are possible"
            )
        try:
            padded = prediction_id.encode("ascii") + b"=" * (-len(prediction_id) % 4)
            raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise InvalidPredictionId(
                f"{prediction_id[:80]!r} is not a prediction id; send the one of a PredictResponse"
            ) from None
        body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        canonical = base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == prediction_id
        if len(body) < _HEADER.size or not canonical or not hmac.compare_digest(tag, self._tag(body)):
            raise InvalidPredictionId(f"{prediction_id[:80]!r} was not signed by this service")
        return body

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)[:_TAG_BYTES]


def load_or_create_key(path: Path) -> bytes:
    """Signing key in ``path``; the file is made, readable by its owner alone, if it is missing.

    Safe when several processes start at once: all of them get the same key, and none reads half of one.

    Raises:
        ConfigError: the file cannot be read, or is too short for a key.
    """
    try:
        if not os.path.lexists(path):  # a link whose target is not mounted is no reason for another key
            _make_key(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"signing key: {explain(error)}") from error
    if len(key) < KEY_BYTES:
        raise ConfigError(
            f"signing key: {path} has {len(key)} bytes, and a key has at least {KEY_BYTES}; put it back from a backup, "
            "or move it away and a new one is made, which refuses feedback on answers given before"
        )
    return key


def _make_key(path: Path) -> None:
    """Make the file whole, under another name first; the first of several processes wins, the others leave it."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # a hard link would do without, but not every file system has them
        if os.path.lexists(path):
            return
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        try:
            fresh.touch(mode=0o600)
            fresh.write_bytes(secrets.token_bytes(KEY_BYTES))
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    finally:
        os.close(folder)
