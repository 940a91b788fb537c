"""Kafka: one node that is broker and controller."""

import asyncio
import secrets
import socket
from base64 import urlsafe_b64encode
from functools import partial
from pathlib import Path

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from stream.local import java
from stream.local.profile import HOST, Profile
from stream.local.supervisor import Program

NAME = "kafka"
DATA, PART = "data/kafka", "data/kafka.part"
MAX_MESSAGE_BYTES = 40 * 2**20  # larger than the package's largest record and largest dead letter
LOG_FORMAT = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
]


def install(profile: Profile, on_event: java.Event) -> None:
    """Assembles Kafka, writes its configuration and formats its storage."""
    runtime = java.find()
    folder = java.assemble(profile, NAME, on_event)
    conf = _conf(profile)
    conf.parent.mkdir(parents=True, exist_ok=True)
    data = profile.home / DATA
    if not data.exists():
        data.parent.mkdir(exist_ok=True)
        conf.write_text(_properties(PART, profile))
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster_id(), "-c", str(conf)]
        java.run(runtime, [*LOG_FORMAT, "-cp", f"{folder}/lib/*", *tool], profile.home)
        (profile.home / PART).rename(data)
    conf.write_text(_properties(DATA, profile))


def cluster_id() -> str:
    """A random UUID in Kafka's format. It has no "-", because a leading one would be read as an option."""
    return urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=").replace("-", "A")


def program(profile: Profile) -> Program:
    """Kafka as a supervised program. It is ready when its metadata has a broker."""
    return Program(
        name=NAME,
        command=[
            java.find().executable,
            *("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-Djava.awt.headless=true", "-Dfile.encoding=UTF-8"),
            *LOG_FORMAT,
            *("-cp", f"{java.distribution(profile, NAME)}/lib/*", "kafka.Kafka", str(_conf(profile))),
        ],
        log=profile.home / "logs" / "kafka.log",
        ready=partial(_ready, profile.kafka_port),
        address=f"{HOST}:{profile.kafka_port}",
        directory=profile.home,
        environment=java.environment(_properties(DATA, profile)),
        ports=("kafka_port", "kafka_controller_port"),
    )


def _conf(profile: Profile) -> Path:
    return profile.home / "conf" / "kafka" / "server.properties"


def _properties(log_dirs: str, profile: Profile) -> str:
    """The broker's configuration.

    Timeouts are short, so that a restart takes seconds. `log_dirs` is relative, so that the home may have any name. The
    log cleaner checks for work every second instead of every 15, so that a topic can be compacted within seconds; it
    zeroes its buffer before each log, 128 MiB by default.
    """
    return f"""\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{HOST}:{profile.kafka_controller_port}
listeners=PLAINTEXT://{HOST}:{profile.kafka_port},CONTROLLER://{HOST}:{profile.kafka_controller_port}
advertised.listeners=PLAINTEXT://{HOST}:{profile.kafka_port}
inter.broker.listener.name=PLAINTEXT
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dirs}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
message.max.bytes={MAX_MESSAGE_BYTES}
replica.fetch.max.bytes={MAX_MESSAGE_BYTES}
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.retention.hours=168
log.segment.bytes=268435456
log.cleaner.backoff.ms=1000
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=4
"""


def _ready(port: int) -> bool:
    try:  # checks the port first: the client logs an error for each failed attempt
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return asyncio.run(_has_broker(port))


async def _has_broker(port: int) -> bool:
    client = AIOKafkaAdminClient(bootstrap_servers=f"{HOST}:{port}", request_timeout_ms=2000)
    try:
        await client.start()
        return bool((await client.describe_cluster())["brokers"])
    except KafkaError:
        return False
    finally:
        await client.close()
