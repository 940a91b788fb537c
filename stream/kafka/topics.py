"""The topics: their names, their settings in Kafka, and which stage reads and writes each of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from stream.config import STAGES, Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka.clients import admin, partitions, require_all

DAY_MS = 86_400_000
TOMBSTONES_MS = 7 * DAY_MS
SOCKET = "socket.request.max.bytes"
REQUEST_OVERHEAD = 2**20  # bytes of a request in addition to its largest record
UNLIMITED = "-1"  # retention.ms and retention.bytes
DLQ = ".dlq"


def source(settings: Settings, stage: StageName) -> str:
    """The topic that a stage consumes."""
    own = _own(settings)
    return {"embed": settings.topic, "expand": f"{own}.embedded", "index": f"{own}.expanded"}[stage]


def target(settings: Settings, stage: StageName) -> str | None:
    """The topic that a stage publishes to; None for the last, which writes to the stores."""
    return {"embed": source(settings, "expand"), "expand": source(settings, "index"), "index": None}[stage]


def dead_letters(settings: Settings, stage: StageName) -> str:
    """The topic of a stage's dead letters."""
    return f"{_own(settings)}.{stage}{DLQ}"


def of(settings: Settings, stage: StageName) -> list[str]:
    """The topics that a stage uses: source, target if it has one, dead letters."""
    used = source(settings, stage), target(settings, stage), dead_letters(settings, stage)
    return [name for name in used if name]


def group(settings: Settings, stage: StageName) -> str:
    """The consumer group of a stage; each generation that is not live has its own group of index workers."""
    generation = f".{settings.generation}" if settings.generation and stage == "index" else ""
    return f"{_own(settings)}.{stage}{generation}"


def _own(settings: Settings) -> str:
    return f"{settings.topic}.{settings.flow}" if settings.flow else settings.topic


def definitions(settings: Settings, replicas: int) -> Iterator[NewTopic]:
    """All topics of the flow, as `create` makes them.

    The stages' source topics are compacted: Kafka keeps the newest record of each chunk, whatever the lag of a stage,
    and a replay reads these records. Kafka keeps a tombstone for a week after compaction, so that a stage that was down
    over a weekend still reads it. Dead letters are kept for a time. With three replicas, an acknowledged record is in
    at least two of them.
    """
    durable = {"min.insync.replicas": str(max(replicas - 1, 1))}
    compacted = durable | {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(TOMBSTONES_MS),
        "max.message.bytes": str(settings.max_message_bytes),
    }
    kept = durable | {
        "cleanup.policy": "delete",
        "retention.ms": str(int(settings.dlq_retention_days * DAY_MS)),
        "max.message.bytes": str(settings.max_letter_bytes),
    }
    for stage in STAGES:
        yield NewTopic(source(settings, stage), settings.partitions, replicas, topic_configs=compacted)
    for stage in STAGES:
        yield NewTopic(dead_letters(settings, stage), 1, replicas, topic_configs=kept)


async def create(settings: Settings) -> list[str]:
    """Creates the missing topics and returns their names; does not change existing ones."""
    async with admin(settings) as client:
        existing = set(await client.list_topics())
        replicas = settings.replication_factor or min(3, len((await client.describe_cluster())["brokers"]))
        wanted = [topic for topic in definitions(settings, replicas) if topic.name not in existing]
        if not wanted:
            return []
        response = await client.create_topics(wanted)
        for name, code, *details in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise ConfigurationError(f"Kafka did not create the topic {name}: {(details and details[0]) or error}")
        names = [topic.name for topic in wanted]
        await _until_known(client, names)
    return names


# The controller creates a topic before all brokers know it: publishing at once would fail with an unknown topic.
@retry(retry=retry_if_exception_type(ConfigurationError), wait=wait_fixed(0.1), stop=stop_after_delay(30), reraise=True)
async def _until_known(client: AIOKafkaAdminClient, names: list[str]) -> None:
    await partitions(client, names)
    await _settings(client, names)


async def _settings(client: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Each topic's settings in Kafka, defaults included."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = [answer for response in await client.describe_configs(wanted) for answer in response.resources]
    require_all((name, code) for code, _, _, name, _ in found)
    return {name: {key: value for key, value, *_ in entries} for _, _, _, name, entries in found}


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic as it is in Kafka: `replicas` is the lowest number of replicas of any partition."""

    name: str
    partitions: int
    replicas: int
    config: Mapping[str, str]

    def number(self, key: str) -> int:
        return int(self.config[key])

    @property
    def policies(self) -> set[str]:
        return {policy.strip() for policy in self.config["cleanup.policy"].split(",")} - {""}

    def command(self, key: str, value: object) -> str:
        return (
            f"kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {self.name} "
            f"--add-config {key}={value}"
        )


async def check(settings: Settings, names: Sequence[str]) -> list[str]:
    """Warnings about settings that weaken a guarantee; raises `ConfigurationError` for a topic that would lose data.

    Call this before the first send: a send to a missing topic hangs instead of failing, and after a batch that the
    broker rejects as too large, an idempotent producer stays out of sequence.
    """
    async with admin(settings) as client:
        configs = await _settings(client, names)
        described = {topic["topic"]: topic["partitions"] for topic in await client.describe_topics(list(names))}
        brokers = (await client.describe_cluster())["brokers"]
        found = [
            _Topic(name, len(described[name]), min(len(each["replicas"]) for each in described[name]), configs[name])
            for name in names
        ]
        too_small = await _small_request_limits(client, settings, [str(broker["node_id"]) for broker in brokers])
    if refused := [*(sentence for topic in found for sentence in _refused(settings, topic)), *too_small]:
        raise ConfigurationError("; ".join(refused))
    replicas = settings.replication_factor or min(3, len(brokers))
    return [*(sentence for topic in found for sentence in _weak(settings, topic, replicas)), *_unequal_counts(found)]


def _refused(settings: Settings, topic: _Topic) -> Iterator[str]:
    """Settings that would lose records or reject every record."""
    letters = topic.name.endswith(DLQ)
    needed = settings.max_letter_bytes if letters else settings.max_message_bytes
    if (limit := topic.number("max.message.bytes")) < needed:
        yield (
            f"the topic {topic.name} accepts records of at most {limit:,} bytes, but {needed:,} are needed: "
            "raise its max.message.bytes (and the broker's message.max.bytes), or lower STREAM_MAX_MESSAGE_BYTES"
        )
    if topic.number("min.insync.replicas") > topic.replicas:
        yield (
            f"the topic {topic.name} accepts no record: it has {topic.replicas} replicas, fewer than "
            f"min.insync.replicas={topic.config['min.insync.replicas']}: "
            + topic.command("min.insync.replicas", max(topic.replicas - 1, 1))
        )
    if letters and "compact" in topic.policies:
        yield (
            f"the topic {topic.name} is compacted, so a newer dead letter of a key would delete the older one: "
            + topic.command("cleanup.policy", "delete")
        )
    expires = topic.config["retention.ms"] != UNLIMITED or topic.config["retention.bytes"] != UNLIMITED
    if not letters and "delete" in topic.policies and expires:
        yield (
            f"the topic {topic.name} has cleanup.policy={topic.config['cleanup.policy']}, so Kafka would delete chunks "
            f"when they are old: {topic.command('cleanup.policy', 'compact')}"
        )


def _weak(settings: Settings, topic: _Topic, replicas: int) -> Iterator[str]:
    """Settings that make a guarantee weaker than docs/guarantees.md states."""
    if topic.replicas < replicas:
        yield (
            f"the topic {topic.name} has {topic.replicas} replicas, not {replicas}: acknowledged records may be lost "
            "if a disk fails; kafka-reassign-partitions.sh adds replicas"
        )
    if topic.number("min.insync.replicas") < (enough := max(topic.replicas - 1, 1)):
        yield (
            f"the topic {topic.name} acknowledges records that only {topic.config['min.insync.replicas']} of "
            f"{topic.replicas} replicas have, so acknowledged records may be lost if a disk fails: "
            + topic.command("min.insync.replicas", enough)
        )
    if topic.config["unclean.leader.election.enable"] == "true":
        yield (
            f"the topic {topic.name} may elect a leader that lacks acknowledged records: "
            + topic.command("unclean.leader.election.enable", "false")
        )
    if topic.name.endswith(DLQ):
        wanted = int(settings.dlq_retention_days * DAY_MS)
        if (kept := topic.number("retention.ms")) != int(UNLIMITED) and kept < wanted:
            yield (
                f"the topic {topic.name} keeps dead letters for {kept / DAY_MS:g} days, but "
                f"STREAM_DLQ_RETENTION_DAYS is {settings.dlq_retention_days:g}: {topic.command('retention.ms', wanted)}"
            )
        if topic.config["retention.bytes"] != UNLIMITED:
            yield (
                f"the topic {topic.name} deletes dead letters beyond {topic.number('retention.bytes'):,} bytes, "
                f"however new they are: {topic.command('retention.bytes', UNLIMITED)}"
            )
        return
    if "compact" not in topic.policies:
        yield (
            f"the topic {topic.name} is never compacted and grows without limit: "
            + topic.command("cleanup.policy", "compact")
        )
    if topic.number("delete.retention.ms") < TOMBSTONES_MS:
        yield (
            f"the topic {topic.name} keeps a tombstone for {topic.number('delete.retention.ms') / DAY_MS:g} days after "
            "compaction, so a stage that lags for longer misses deletes: "
            + topic.command("delete.retention.ms", TOMBSTONES_MS)
        )


async def _small_request_limits(client: AIOKafkaAdminClient, settings: Settings, brokers: Iterable[str]) -> list[str]:
    """Brokers whose request limit is too small: they close the connection on a request with the largest record.

    A broker is skipped if it is down, or if its settings may not be read.
    """
    needed = settings.max_letter_bytes + REQUEST_OVERHEAD
    found = []
    for broker in brokers:
        asked = ConfigResource(ConfigResourceType.BROKER, broker, {SOCKET: ""})
        try:
            (answer,) = await client.describe_configs([asked])
        except KafkaError:
            continue
        for code, _, _, name, entries in answer.resources:
            if not code and (limit := int(entries[0][1])) < needed:
                found.append(
                    f"the broker {name} accepts requests of at most {limit:,} bytes, but {needed:,} are needed: "
                    f"raise its {SOCKET}, or lower STREAM_MAX_MESSAGE_BYTES"
                )
    return found


def _unequal_counts(found: Iterable[_Topic]) -> Iterator[str]:
    """A warning if source topics differ in their number of partitions; partitioning by key still keeps the order."""
    counts = {topic.name: topic.partitions for topic in found if not topic.name.endswith(DLQ)}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} has {count}" for name, count in counts.items())
        yield (
            f"topics have different numbers of partitions ({each}): a stage can use at most one worker for each "
            "partition of its source topic"
        )
