"""Access keys: who may call the service, and which chunks they may see.

A key file has one key a line, as JSON, with the SHA-256 of the key instead of the key itself:

    {"name": "team-a", "sha256": "9f86d0…", "filter": {"field": "metadata.team", "equal": "a"}}

A key is 32 random bytes, so its hash needs no salt and no slow function. A key with a filter sees only the chunks that
the filter takes, whatever a request asks for. The file is read again when it changes: to revoke a key, delete its line.
"""

import hashlib
import logging
import secrets
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stream.errors import ConfigurationError
from stream.search import filters
from stream.search.filters import AllOf, Filter
from stream.search.request import Request, request
from stream.stores.base import Shown

log = logging.getLogger(__name__)

PREFIX = "stream_"  # scanners for leaked secrets recognise a key by it


class Key(BaseModel):
    """Who calls, and the filter that each of their requests gets; None: they see every chunk, and the flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    filter: Filter | None = None

    def among(self, asked: Filter | None) -> Filter | None:
        """The filter that a request gets: the key's and its own; None for every chunk."""
        if self.filter is None or asked is None:
            return self.filter or asked
        return AllOf(parts=[self.filter, asked])

    def narrowed(self, asked: Request) -> Request:
        """The request among the chunks that this key may see. Raises `InvalidRequest` if both filters are too large."""
        if self.filter is None:
            return asked
        fields = asked.model_copy(update={"filter": None}).model_dump()
        return request(**fields | {"filter": self.among(asked.filter)})

    def sees(self, chunk: Shown) -> bool:
        """Whether this key may see a chunk."""
        return filters.takes(self.filter, chunk)


EVERYONE = Key(name="-", sha256="0" * 64)  # the caller of a service without keys


class Keys:
    """The keys of a file; without a file everyone may call. Raises `ConfigurationError` for a file that is wrong."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}
        if file:
            self._keys, self._seen = _read(file), _state(file)

    @property
    def required(self) -> bool:
        """Whether a caller needs a key."""
        return self._file is not None

    def find(self, secret: str | None) -> Key | None:
        """Who has this key; None for an unknown or missing key."""
        if self._file is None:
            return EVERYONE
        self._read_again(self._file)
        return self._keys.get(hashed(secret)) if secret else None

    def _read_again(self, file: Path) -> None:
        """A file that has become wrong or unreadable changes nothing, because a service must not lose all its keys."""
        if (state := _state(file)) == self._seen:
            return
        self._seen = state
        try:
            self._keys = _read(file)
        except ConfigurationError as error:
            log.error("the keys are not changed: %s", error)  # noqa: TRY400 - the sentence says all
        else:
            log.info("%d keys read again", len(self._keys))


def made(name: str, condition: Filter | None = None) -> tuple[str, Key]:
    """A new key, and what the file says of it."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, Key(name=name, sha256=hashed(secret), filter=condition)


def hashed(secret: str) -> str:
    """The hash of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


def _read(file: Path) -> dict[str, Key]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"cannot read the keys in {file}: {reason}; see STREAM_SERVE_KEYS") from None
    keys = [_key(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return {key.sha256: key for key in keys}


def _key(file: Path, number: int, line: str) -> Key:
    try:
        return Key.model_validate_json(line)
    except ValidationError as error:
        found: dict[str, Any] = dict(error.errors(include_input=False, include_url=False)[0])
        field = found["loc"][0] if found["loc"] else "it"
        raise ConfigurationError(
            f"line {number} of {file} is not a key: {field}: {found['msg']}; `stream keys new NAME` prints one"
        ) from None
