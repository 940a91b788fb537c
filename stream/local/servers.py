"""The three servers of the local profile. `install` prepares them; `supervisor.up` runs them."""

from collections.abc import Callable

from stream.local import kafka, neo4j, opensearch
from stream.local.profile import Profile, locked
from stream.local.supervisor import Program

SERVERS = (kafka, neo4j, opensearch)


def install(profile: Profile, on_event: Callable[[str], None] = print) -> None:
    """Assembles what is missing and writes every configuration. Safe to repeat, to kill and to run concurrently.

    Raises `ConfigurationError` if Java or Maven is missing or does not fit, `Outage` if Maven cannot download.
    """
    profile.make()
    with locked(profile.home):
        for server in SERVERS:
            server.install(profile, on_event)


def servers(profile: Profile) -> list[Program]:
    """Kafka, Neo4j and OpenSearch as programs. Raises `ConfigurationError` if Java is missing or does not fit."""
    return [server.program(profile) for server in SERVERS]
