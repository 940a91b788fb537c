"""The local profile: its folder, its ports, and the settings with which the package reaches its servers.

home/            default .local
├── artifacts/       jars and unpacked distributions; several homes can share one
├── conf/            each server's configuration, written by `servers.install`
├── data/            the servers' data
├── logs/            one log for each program, and supervisord's
├── models/          the trained models
├── neo4j-password   generated once, readable by its owner only
├── stream.env       the settings, as a file for STREAM_ENV_FILE
└── supervisor/      supervisord's configuration
"""

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from stream.errors import ConfigurationError
from stream.local.trained import MINILM, SPLADE_TINY

HOST = "127.0.0.1"  # the local profile must not be reachable from another machine


@dataclass(frozen=True)
class Profile:
    """A folder and the ports of its programs. A relative `artifacts` is below `home`."""

    home: Path = Path(".local")
    artifacts: Path = Path("artifacts")
    kafka_port: int = 19092
    kafka_controller_port: int = 19093
    neo4j_port: int = 17687
    opensearch_port: int = 19200
    opensearch_transport_port: int = 19300
    embedder_port: int = 18000
    embed_port: int = 19101
    expand_port: int = 19102
    index_port: int = 19103
    serve_port: int = 18080

    def __post_init__(self) -> None:
        object.__setattr__(self, "home", self.home.resolve())
        object.__setattr__(self, "artifacts", self.home / self.artifacts)

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Self:
        """A profile with the ports that `STREAM_LOCAL_KAFKA_PORT` and the like set, and the defaults for the others.

        Raises `ConfigurationError` if a value is not a port.
        """
        ports: dict[str, Any] = {
            field.name: _port(variable(field.name), os.environ[variable(field.name)])
            for field in fields(cls)
            if field.name.endswith("_port") and variable(field.name) in os.environ
        }
        return cls(home or cls.home, **ports)

    def make(self) -> None:
        """Creates the home. Raises `ConfigurationError` if this user cannot write it or Java cannot read it."""
        if ":" in str(self.home):
            raise ConfigurationError(
                f"Java cannot read from {self.home}, because the path has a colon; choose another home"
            )
        try:
            self.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"cannot create {self.home} ({error.strerror}); choose another home") from None
        if not os.access(self.home, os.W_OK | os.X_OK):
            raise ConfigurationError(f"this user cannot write {self.home}; choose another home")

    @property
    def models(self) -> Path:
        """The folder of the trained models."""
        return self.home / "models"

    @property
    def env_file(self) -> Path:
        """The file for `STREAM_ENV_FILE`."""
        return self.home / "stream.env"

    @property
    def neo4j_password(self) -> str:
        """Neo4j's password: random, generated on first use, in a file that only its owner can read."""
        path = self.home / "neo4j-password"
        if not path.exists():
            self.make()
            draft = self.home / f"neo4j-password.{os.getpid()}"
            write_private(draft, secrets.token_hex(16))
            with suppress(FileExistsError):  # unlike a rename, a link does not replace another process's file
                os.link(draft, path)
            draft.unlink()
        return path.read_text()

    def environment(self) -> dict[str, str]:
        """The settings (`stream.config.Settings`, as variables) with which the package reaches these servers."""
        return {
            "STREAM_KAFKA_SERVERS": f"{HOST}:{self.kafka_port}",
            "STREAM_PARTITIONS": "2",
            "STREAM_EMBED_URL": f"http://{HOST}:{self.embedder_port}",
            "STREAM_EMBED_MODEL": MINILM.name,
            "STREAM_EMBED_REVISION": MINILM.revision,
            "STREAM_EMBED_DIMENSIONS": "384",
            "STREAM_EMBED_INSTRUCTION": "",
            "STREAM_EMBED_LONG_TEXTS": "truncate",
            "STREAM_SPLADE_MODEL": str(SPLADE_TINY.folder(self.models)),
            "STREAM_SPLADE_REVISION": SPLADE_TINY.revision,
            "STREAM_NEO4J_URI": f"bolt://{HOST}:{self.neo4j_port}",
            "STREAM_NEO4J_USER": "neo4j",
            "STREAM_NEO4J_PASSWORD": self.neo4j_password,
            "STREAM_OPENSEARCH_URL": f"http://{HOST}:{self.opensearch_port}",
            "REQUIRE_GPU": "0",
        }

    def write_env_file(self) -> Path:
        """Writes `environment()` to `env_file`, readable by its owner only."""
        self.make()
        lines = [f"{name}='{_escaped(value)}'\n" for name, value in self.environment().items()]
        write_private(self.env_file, "".join(lines))
        return self.env_file


def variable(name: str) -> str:
    """The environment variable that sets a port or a version: `STREAM_LOCAL_KAFKA_PORT` sets `kafka_port`."""
    return f"STREAM_LOCAL_{name.upper()}"


def write_private(path: Path, text: str) -> None:
    """Writes a file with mode 0600, atomically."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, encoding="utf-8", delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Waits for the folder's lock and holds it; yields the lock's file descriptor.

    A child process that inherits the descriptor holds the lock until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


def _port(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1024 <= int(text) < 2**16):
        raise ConfigurationError(f"{name} is {text!r}; it must be a port, 1024 to 65535")
    return int(text)
