"""Finds Java, and assembles the servers' jars and distributions with Maven from the POMs in `pom/`."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from stream.errors import ConfigurationError, Outage
from stream.local.profile import Profile, locked, variable

OLDEST = 17  # Kafka, Neo4j and OpenSearch 2 need it
SIMD = "jdk.incubator.vector"  # Lucene computes distances with it; some Java runtimes lack it
REMEDY = (
    "install one (Debian: apt install openjdk-17-jre-headless maven), "
    "or run the servers with `docker compose -f compose/docker-compose.yml up`"
)
POMS = Path(__file__).parent / "pom"

Event = Callable[[str], None]


@dataclass(frozen=True)
class Java:
    """A Java runtime."""

    executable: str
    version: int
    modules: frozenset[str]


def find() -> Java:
    """The Java of `JAVA_HOME`, else of `PATH`. Raises `ConfigurationError` if it is missing or does not fit."""
    home = os.environ.get("JAVA_HOME")
    executable = shutil.which(f"{home}/bin/java" if home else "java")
    if executable is None:
        place = f"JAVA_HOME ({home}) has no bin/java" if home else "there is no java on PATH"
        raise ConfigurationError(f"the local servers need Java {OLDEST} or newer, but {place}: {REMEDY}")
    java = _inspect(executable)
    if java.version < OLDEST:
        raise ConfigurationError(f"the local servers need Java {OLDEST} or newer, but {executable} is older: {REMEDY}")
    return java


@cache
def _inspect(executable: str) -> Java:
    command = [executable, "--list-modules"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (the user's own Java)
    modules = dict(re.findall(r"^([\w.]+)@(\d+)", done.stdout, re.MULTILINE))
    return Java(executable, int(modules.get("java.base", 8)), frozenset(modules))  # 8 has no modules to list


def run(java: Java, arguments: Sequence[str], directory: Path, **environment: str) -> None:
    """Runs a tool of a server. Raises `Outage` with the end of its output if it fails."""
    _run([java.executable, *arguments], " ".join(arguments[-3:]), cwd=directory, env=os.environ | environment)


def environment(configuration: str) -> dict[str, str]:
    """A server's environment. With the digest, `up` restarts the server if its configuration changed.

    Java uses only its quick compiler: the other one takes a quarter of the time of a demo on two cores.
    """
    return {
        "LC_ALL": "C.UTF-8",
        "CONFIGURATION": hashlib.sha256(configuration.encode()).hexdigest(),
        "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1",
    }


def version(pom: str) -> str:
    """A server's version: that of `STREAM_LOCAL_KAFKA_VERSION` and the like, else the POM's.

    Raises `ConfigurationError` if the variable is not a version.
    """
    name = variable(f"{_server(pom)}_version")
    wanted = os.environ.get(name)
    if wanted is None:
        (wanted,) = re.findall(r"<revision>(.+?)</revision>", (POMS / f"{pom}.xml").read_text())
    elif not re.fullmatch(r"\d+(\.\d+)+", wanted):
        raise ConfigurationError(f"{name} is {wanted!r}; it must be a version like 4.4.0")
    return wanted


def distribution(profile: Profile, pom: str) -> Path:
    """The folder of the server's files. It exists only once they are complete."""
    return profile.artifacts / f"{_server(pom)}-{version(pom)}"


def _server(pom: str) -> str:
    """The server that a POM assembles: `opensearch-3` assembles opensearch."""
    return pom.partition("-")[0]


def assemble(
    profile: Profile, pom: str, on_event: Event, complete: Callable[[Path], None] = lambda folder: None
) -> Path:
    """Returns the folder of the server's files. If it is missing, Maven fetches them and `complete` adds the rest.

    The folder gets its name once it is complete. Several processes may call this at the same time. Raises
    `ConfigurationError` if there is no Maven and `Outage` if Maven fails.
    """
    folder = distribution(profile, pom)
    if folder.exists():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ConfigurationError(f"the local servers need Maven, but there is no mvn on PATH: {REMEDY}")
    with locked(profile.artifacts) as lock:
        if folder.exists():
            return folder
        on_event(f"assembling {folder.name}; the first time Maven downloads it, which takes a minute")
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        # Maven inherits the lock: if this process is killed, the next one waits until Maven has ended. With this umask
        # OpenSearch, which may run as another user, can read its files.
        options = ["-B", "-q", "-C", "-Dstyle.color=never", f"-Drevision={version(pom)}", f"-Dhome={part}"]
        command = [maven, *options, "-f", str(POMS / f"{pom}.xml"), "process-resources"]
        _run(command, f"assembling {folder.name} with Maven", pass_fds=(lock,), umask=0o022)
        complete(part)
        part.rename(folder)
    return folder


def _run(command: Sequence[str], what: str, **options: Any) -> None:
    done = subprocess.run(  # noqa: S603 (programs that the user installed)
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options
    )
    if done.returncode != 0:
        raise Outage(f"{what} failed; the end of its output:\n" + "\n".join(done.stdout.splitlines()[-20:]))
