"""API keys in one JSON file: digests of random secrets, with what each may do. Read again whenever the file changes.

A key is ``plk_ID_SECRET``: the secret has 256 random bits, so its SHA-256 tells nothing and no slow hash is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import structlog

from plaudit.core.access import CallerRole, Principal
from plaudit.core.errors import ConfigError, UnknownCredentials
from plaudit.core.host.os_errors import explain
from plaudit.core.limits import MAX_KEYS
from plaudit.core.text.identifiers import check_given_id, check_id

PREFIX: Final = "plk_"
_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 5
_FORMAT: Final = 1

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """An API key as it is at rest.

    Attributes:
        id: public part of the key.
        name: what it is for.
        sha256: hex digest of the whole key.
        roles: names of its roles.
        user_id: user that it belongs to; "" where it speaks for others.
        speaks_for_others: True: its requests may be of any user.
        calls_per_minute: 0: any number.
        created_at_s: UTC seconds since the epoch.
    """

    id: str
    name: str
    sha256: str
    roles: Sequence[str]
    user_id: str
    speaks_for_others: bool
    calls_per_minute: int
    created_at_s: float

    def principal(self) -> Principal:
        return Principal(
            self.id,
            frozenset(CallerRole(role) for role in self.roles),
            self.user_id,
            self.speaks_for_others,
            self.calls_per_minute,
        )


class KeyFile:
    """The file, as commands change it.

    Raises:
        ConfigError: the file cannot be read or written, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> Sequence[KeyEntry]:
        """Keys in the order of their making; none where there is no file."""
        return [] if not self._path.exists() else _read(self._path)

    def create(
        self,
        name: str,
        roles: Sequence[CallerRole],
        *,
        user_id: str = "",
        speaks_for_others: bool = False,
        calls_per_minute: int = 0,
    ) -> tuple[KeyEntry, str]:
        """Add a key; returns it as it is at rest, and the key itself, which is nowhere else.

        Args:
            user_id: user that it belongs to; "": the name.

        Raises:
            InvalidInput: the name or the user id can be none.
        """
        check_given_id("name", name)
        check_id("user", user_id)
        id_ = secrets.token_hex(_ID_BYTES)
        key = f"{PREFIX}{id_}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        entry = KeyEntry(
            id_,
            name,
            _digest(key),
            sorted(roles),
            "" if speaks_for_others else user_id or name,
            speaks_for_others,
            calls_per_minute,
            time.time(),
        )
        with self._changing() as entries:
            if len(entries) >= MAX_KEYS:
                raise ConfigError(f"{self._path}: holds {MAX_KEYS} keys, which is the most; revoke one first")
            entries.append(entry)
        return entry, key

    def revoke(self, id_: str) -> KeyEntry:
        """Remove a key, by its id. Raises ConfigError: there is none with that id."""
        with self._changing() as entries:
            found = next((each for each in entries if each.id == id_), None)
            if found is None:
                raise ConfigError(f"{id_[:80]!r} is the id of no key; `plaudit keys list` shows them")
            entries.remove(found)
        return found

    @contextmanager
    def _changing(self) -> Iterator[list[KeyEntry]]:
        """The keys to be changed; written whole at the end, while no other command changes them."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                entries = list(self.entries())
                yield entries
                self._write(entries)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(f"keys: {explain(error)}") from error

    def _write(self, entries: Sequence[KeyEntry]) -> None:
        fresh = self._path.with_name(f".{self._path.name}.{secrets.token_hex(8)}")
        try:
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                json.dump({"format": _FORMAT, "keys": [asdict(each) for each in entries]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        finally:
            fresh.unlink(missing_ok=True)


class KeyAuthenticator:
    """Checks keys against the file, which is looked at on every call: a key that was revoked opens nothing more.

    Once there was a file, keys are needed until the process ends, even if the file is gone. While it is damaged, the
    keys that were read last go on to be good.

    Raises:
        ConfigError: the file cannot be read, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: object = None
        self._by_id: dict[str, tuple[bytes, Principal]] = {}
        self._asks = False
        self._refresh(strict=True)

    def asks(self) -> bool:
        self._refresh()
        return self._asks

    def principal(self, token: str) -> Principal:
        self._refresh()
        id_ = token.removeprefix(PREFIX).partition("_")[0]
        known = self._by_id.get(id_)
        if not token.startswith(PREFIX) or known is None:
            raise UnknownCredentials
        digest, principal = known
        if not hmac.compare_digest(digest, _digest(token).encode()):
            raise UnknownCredentials
        return principal

    def _refresh(self, *, strict: bool = False) -> None:
        try:
            status = os.stat(self._path)
            stamp: object = (status.st_ino, status.st_size, status.st_mtime_ns)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        with self._lock:
            try:
                entries = [] if stamp is None else _read(self._path)
            except ConfigError as error:
                if strict:
                    raise
                logger.error("keys_not_read", problem=str(error), stays="the keys that were read before")
            else:
                self._by_id = {each.id: (each.sha256.encode(), each.principal()) for each in entries}
                self._asks = self._asks or stamp is not None
            self._stamp = stamp


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


def _read(path: Path) -> Sequence[KeyEntry]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        entries = [_entry(each) for each in raw["keys"]]
        if raw["format"] != _FORMAT or len(entries) > MAX_KEYS:
            raise ValueError("another format")
    except OSError as error:
        raise ConfigError(f"keys: {explain(error)}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"keys: {path} is damaged ({type(error).__name__}); put it back from a backup, or move it away and make "
            "new keys with `plaudit keys create`"
        ) from error
    return entries


def _entry(raw: dict[str, Any]) -> KeyEntry:
    entry = KeyEntry(**{each.name: raw[each.name] for each in fields(KeyEntry)})
    entry.principal()
    return entry
