"""Three brokers of Kafka in place of the local profile's one, each also a controller and in a rack of its own.

Workers are in the rack of one broker, so they read from followers while that broker is up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from support import changed_properties

from stream.local import java, kafka
from stream.local.profile import HOST, Profile
from stream.local.supervisor import Program

SELECTOR = "org.apache.kafka.common.replica.RackAwareReplicaSelector"


@dataclass(frozen=True)
class Cluster(Profile):
    """The local profile with several brokers; `brokers` has the ports of each: as broker and as controller."""

    brokers: tuple[tuple[int, int], ...] = ()

    def environment(self) -> dict[str, str]:
        servers = ",".join(f"{HOST}:{port}" for port, _ in self.brokers)
        return super().environment() | {"STREAM_KAFKA_SERVERS": servers, "STREAM_KAFKA_RACK": "rack-1"}


def install(cluster: Cluster) -> None:
    """Writes each broker's configuration and formats its storage. The jars are those of the local profile."""
    uuid = kafka.cluster_id()
    jars = java.distribution(cluster, kafka.NAME) / "lib"
    for number in range(1, len(cluster.brokers) + 1):
        conf = _conf(cluster, number)
        conf.write_text(_properties(cluster, number))
        tool = ["kafka.tools.StorageTool", "format", "-t", uuid, "-c", str(conf)]
        java.run(java.find(), [*kafka.LOG_FORMAT, "-cp", f"{jars}/*", *tool], cluster.home)


def programs(cluster: Cluster) -> Iterator[Program]:
    """The brokers as supervised programs, kafka-1 and so on."""
    one = kafka.program(cluster)
    for number, (port, _) in enumerate(cluster.brokers, 1):
        yield replace(
            one,
            name=f"{one.name}-{number}",
            command=[*one.command[:-1], str(_conf(cluster, number))],
            log=one.log.with_stem(f"kafka-{number}"),
            ready=partial(kafka._ready, port),
            address=f"{HOST}:{port}",
            ports=(),
        )


def _conf(cluster: Cluster, number: int) -> Path:
    return kafka._conf(cluster).with_stem(f"server-{number}")


def _properties(cluster: Cluster, number: int) -> str:
    """The local profile's, except for what concerns several brokers: three replicas, two of which must be in sync."""
    port, controller = cluster.brokers[number - 1]
    replicas = len(cluster.brokers)
    changed = {
        "node.id": number,
        "controller.quorum.voters": ",".join(f"{n}@{HOST}:{port}" for n, (_, port) in enumerate(cluster.brokers, 1)),
        "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
        "log.dirs": f"data/kafka-{number}",
        "default.replication.factor": replicas,
        "offsets.topic.replication.factor": replicas,
        "transaction.state.log.replication.factor": replicas,
        "transaction.state.log.min.isr": replicas - 1,
        "broker.rack": f"rack-{number}",
        "replica.selector.class": SELECTOR,
    }
    return changed_properties(kafka._properties("", cluster), changed)
