"""The three servers of the local profile: installed once, then run by `supervisor.up`."""

from collections.abc import Callable

from stream.local import kafka, neo4j, opensearch
from stream.local.profile import Profile, locked
from stream.local.supervisor import Program

SERVERS = (kafka, neo4j, opensearch)


def install(profile: Profile, on_event: Callable[[str], None] = print) -> None:
    """Assembles what is missing and writes every configuration; safe to repeat, to kill and to run twice at once.

    Raises `ConfigurationError` if Java or Maven is missing or does not fit, `Outage` if Maven cannot download.
    """
    profile.make()
    with locked(profile.home):
        for server in SERVERS:
            server.install(profile, on_event)


def servers(profile: Profile) -> list[Program]:
    """Kafka, Neo4j and OpenSearch as programs; raises `ConfigurationError` if there is no Java that fits."""
    return [server.program(profile) for server in SERVERS]
