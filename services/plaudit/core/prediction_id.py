"""Prediction ids: opaque and signed; they carry what feedback is checked against, so that no look-up is needed.

Layout before base64url: ``format (1) | key id (4) | time_us (8) | window_s (4) | nonce (8) | version (4) |
propensity (8) | user tag (8) | model length (1) | model | action | tag (16)``, big-endian, the tag being HMAC-SHA256
over all that precedes it, cut to 128 bits. The format is 3 where the action is one of the model's, and 4 where it is a
dynamic action of the request. The user tag is HMAC-SHA256 of the user id, cut to 64 bits; zeros where nobody was named.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import math
import os
import secrets
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from plaudit.core.errors import ConfigError, ExpiredPredictionId, InvalidPredictionId
from plaudit.core.host.os_errors import explain
from plaudit.core.limits import MAX_PREDICTION_ID_CHARACTERS

_FIXED_ACTION: Final = 3
_DYNAMIC_ACTION: Final = 4
_HEADER: Final = struct.Struct(">B4sQI8sId8sB")
_TAG_BYTES: Final = 16
_USER_TAG_BYTES: Final = 8
_KEY_ID_BYTES: Final = 4
_NO_USER: Final = bytes(_USER_TAG_BYTES)
_MAX_WINDOW_S: Final = 2**32 - 1
_ID_OF_KEY: Final = b"plaudit prediction id: id of the key"
_TAG_OF_USER: Final = b"plaudit prediction id: user\0"
"""What derived values are made of, so that no two kinds can be taken for each other."""
KEY_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class SignedPrediction:
    """Content of a prediction id.

    Attributes:
        time_s: UTC seconds since the epoch.
        dynamic: ``action`` is the id of one of the request's own dynamic actions.
        user_tag: stands for the user who asked, see :meth:`PredictionIds.is_asker`; b"" before it is signed.
        key_id: stands for the key that signed it; b"" before.
    """

    time_s: float
    model: str
    version: int
    action: str
    propensity: float
    dynamic: bool = False
    user_tag: bytes = field(default=b"", compare=False, repr=False)
    key_id: bytes = field(default=b"", compare=False, repr=False)


class PredictionIds:
    """Signs and checks prediction ids. An id expires when the window is over that it was signed with.

    Args:
        key: at least 32 secret bytes, shared by all servers of one deployment.
        window_s: seconds after a prediction in which feedback is accepted.
        others: further keys whose ids are accepted: the one before, or the next.
        reread: all keys as they are now, asked for where an id names one that is not known; None: no others.
    """

    def __init__(
        self,
        key: bytes,
        window_s: float,
        *,
        others: Sequence[bytes] = (),
        reread: Callable[[], Sequence[bytes]] | None = None,
    ) -> None:
        for each in (key, *others):
            if len(each) < KEY_BYTES:
                raise ValueError(f"the signing key has {len(each)} bytes, at least {KEY_BYTES} are needed")
        self._key = key
        self._key_id = _id_of(key)
        self._keys = {_id_of(each): each for each in (key, *others)}
        self._window_s = min(math.ceil(window_s), _MAX_WINDOW_S)
        self._reread = reread

    def sign(self, prediction: SignedPrediction, user_id: str = "") -> str:
        """The id of a prediction for a user; "": for nobody in particular."""
        model = prediction.model.encode()
        header = _HEADER.pack(
            _DYNAMIC_ACTION if prediction.dynamic else _FIXED_ACTION,
            self._key_id,
            round(prediction.time_s * 1e6),
            self._window_s,
            secrets.token_bytes(8),
            prediction.version,
            prediction.propensity,
            _user_tag(self._key, user_id),
            len(model),
        )
        body = header + model + prediction.action.encode()
        return base64.urlsafe_b64encode(body + _tag(self._key, body)).rstrip(b"=").decode()

    def is_asker(self, prediction: SignedPrediction, user_id: str) -> bool:
        """True if the user is who asked for a prediction that was checked, or nobody in particular did."""
        if prediction.user_tag == _NO_USER:
            return True
        return hmac.compare_digest(prediction.user_tag, _user_tag(self._keys[prediction.key_id], user_id))

    def check(self, prediction_id: str, *, now_s: float) -> SignedPrediction:
        """Read an id that this service signed.

        Raises:
            InvalidPredictionId: it is empty, damaged, or signed with another key.
            ExpiredPredictionId: it is older than the feedback window was when it was signed.
        """
        body = self._verified(prediction_id)
        form, key_id, time_us, window_s, _, version, propensity, user_tag, model_length = _HEADER.unpack_from(body)
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
            user_tag=user_tag,
            key_id=key_id,
        )
        age_s = now_s - prediction.time_s
        if age_s > window_s:
            raise ExpiredPredictionId(age_s, window_s)
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
        key = self._key_of(body[1 : 1 + _KEY_ID_BYTES]) if canonical and len(body) >= _HEADER.size else None
        if key is None or not hmac.compare_digest(tag, _tag(key, body)):
            raise InvalidPredictionId(f"{prediction_id[:80]!r} was not signed by this service")
        return body

    def _key_of(self, key_id: bytes) -> bytes | None:
        if key_id not in self._keys and self._reread is not None:
            self._keys = self._keys | {_id_of(each): each for each in self._reread()}
        return self._keys.get(key_id)


def _tag(key: bytes, body: bytes) -> bytes:
    return hmac.digest(key, body, hashlib.sha256)[:_TAG_BYTES]


def _id_of(key: bytes) -> bytes:
    return hmac.digest(key, _ID_OF_KEY, hashlib.sha256)[:_KEY_ID_BYTES]


def _user_tag(key: bytes, user_id: str) -> bytes:
    if not user_id:
        return _NO_USER
    return hmac.digest(key, _TAG_OF_USER + user_id.encode(), hashlib.sha256)[:_USER_TAG_BYTES]


class SigningKeys:
    """The signing key in ``path``, and beside it in ``path.previous`` the one before, whose ids are accepted still.

    Services sign with the key that was there when they started, and learn of a new one from the first id it signed; a
    key may be replaced while several of them run, which are then started anew one after the other.

    Raises:
        ConfigError: a file cannot be read, or is too short for a key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._previous = path.with_name(f"{path.name}.previous")
        self._lock = threading.Lock()
        self.current = load_or_create_key(path)
        self._stamp: object = None
        self._read: Sequence[bytes] = ()

    def all(self) -> Sequence[bytes]:
        """Both keys as they are now; those that were read before, where they cannot be read."""
        with self._lock:
            stamp = [_stamp(each) for each in (self._path, self._previous)]
            if stamp != self._stamp:
                with contextlib.suppress(ConfigError):
                    self._read = [_read_key(each) for each in (self._path, self._previous) if os.path.lexists(each)]
                self._stamp = stamp
            return self._read

    def rotate(self) -> None:
        """Make a new key; the present one becomes the one before, and the one before that is forgotten."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                fresh = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
                _write_key(fresh)
                # The present key is under both names for a moment, so that no service finds none.
                copy = fresh.with_suffix(".previous")
                copy.touch(mode=0o600)
                copy.write_bytes(_read_key(self._path))
                copy.replace(self._previous)
                fresh.replace(self._path)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(f"signing key: {explain(error)}") from error


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def load_or_create_key(path: Path) -> bytes:
    """Signing key in ``path``; the file is made, readable by its owner alone, if it is missing.

    Safe when several processes start at once: all of them get the same key, and none reads half of one.

    Raises:
        ConfigError: the file cannot be read, or is too short for a key.
    """
    try:
        if not os.path.lexists(path):  # a link whose target is not mounted is no reason for another key
            _make_key(path)
    except OSError as error:
        raise ConfigError(f"signing key: {explain(error)}") from error
    return _read_key(path)


def _read_key(path: Path) -> bytes:
    try:
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
            _write_key(fresh)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    finally:
        os.close(folder)


def _write_key(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_bytes(secrets.token_bytes(KEY_BYTES))
