"""The topics: their names, what Kafka is told to keep of them, and who reads and writes which."""

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
REQUEST_BYTES = 2**20  # of a request beside its largest record
KEPT = "-1"  # of retention.ms and retention.bytes: for ever
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
    """The consumer group of a stage; whoever writes a generation that is not live has one of its own."""
    generation = f".{settings.generation}" if settings.generation and stage == "index" else ""
    return f"{_own(settings)}.{stage}{generation}"


def _own(settings: Settings) -> str:
    return f"{settings.topic}.{settings.flow}" if settings.flow else settings.topic


def definitions(settings: Settings, replicas: int) -> Iterator[NewTopic]:
    """All topics of the flow, as `create` makes them.

    The topics between the stages are compacted: the newest record of each chunk stays, however far a stage lags
    behind, and that is what a replay reads. A tombstone stays for a week after compaction, so that a stage which was
    down over a weekend still sees it. Dead letters are kept by time. An acknowledgement means two replicas, where
    there are three.
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
    """Makes the topics that are missing and returns their names; existing ones are left as they are."""
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
                raise ConfigurationError(f"Kafka refused to make the topic {name}: {(details and details[0]) or error}")
        names = [topic.name for topic in wanted]
        await _until_known(client, names)
    return names


# The controller makes a topic before the brokers learn of it: who published at once would be told that it is missing.
@retry(retry=retry_if_exception_type(ConfigurationError), wait=wait_fixed(0.1), stop=stop_after_delay(30), reraise=True)
async def _until_known(client: AIOKafkaAdminClient, names: list[str]) -> None:
    await partitions(client, names)
    await _settings(client, names)


async def _settings(client: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """What Kafka is told of each topic, its defaults included."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = [answer for response in await client.describe_configs(wanted) for answer in response.resources]
    require_all((name, code) for code, _, _, name, _ in found)
    return {name: {key: value for key, value, *_ in entries} for _, _, _, name, entries in found}


@dataclass(frozen=True, slots=True)
class _Topic:
    """A topic as it is: `replicas` are those of the partition that has the fewest."""

    name: str
    partitions: int
    replicas: int
    told: Mapping[str, str]

    def number(self, key: str) -> int:
        return int(self.told[key])

    @property
    def policies(self) -> set[str]:
        return {policy.strip() for policy in self.told["cleanup.policy"].split(",")} - {""}

    def cure(self, key: str, value: object) -> str:
        return (
            f"kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {self.name} "
            f"--add-config {key}={value}"
        )


async def check(settings: Settings, names: Sequence[str]) -> list[str]:
    """Sentences about what weakens a guarantee; raises `ConfigurationError` for a topic that would lose data.

    All of it must be known before the first send: one to a missing topic would hang rather than fail, and a batch that
    the broker finds too large leaves an idempotent producer out of sequence for good.
    """
    async with admin(settings) as client:
        told = await _settings(client, names)
        described = {topic["topic"]: topic["partitions"] for topic in await client.describe_topics(list(names))}
        brokers = (await client.describe_cluster())["brokers"]
        found = [
            _Topic(name, len(described[name]), min(len(each["replicas"]) for each in described[name]), told[name])
            for name in names
        ]
        narrow = await _narrow(client, settings, [str(broker["node_id"]) for broker in brokers])
    if refused := [*(sentence for topic in found for sentence in _refused(settings, topic)), *narrow]:
        raise ConfigurationError("; ".join(refused))
    replicas = settings.replication_factor or min(3, len(brokers))
    return [*(sentence for topic in found for sentence in _weak(settings, topic, replicas)), *_uneven(found)]


def _refused(settings: Settings, topic: _Topic) -> Iterator[str]:
    """What would lose records, or let none through."""
    letters = topic.name.endswith(DLQ)
    needed = settings.max_letter_bytes if letters else settings.max_message_bytes
    if (limit := topic.number("max.message.bytes")) < needed:
        yield (
            f"the topic {topic.name} carries records of {limit:,} bytes at most, but {needed:,} are needed: "
            "raise its max.message.bytes (and the broker's message.max.bytes), or lower STREAM_MAX_MESSAGE_BYTES"
        )
    if topic.number("min.insync.replicas") > topic.replicas:
        yield (
            f"the topic {topic.name} has {topic.replicas} replicas and takes nothing with fewer than "
            f"{topic.told['min.insync.replicas']}: {topic.cure('min.insync.replicas', max(topic.replicas - 1, 1))}"
        )
    if letters and "compact" in topic.policies:
        yield (
            f"the topic {topic.name} is compacted, so a newer dead letter of a key would delete the older one: "
            + topic.cure("cleanup.policy", "delete")
        )
    expires = topic.told["retention.ms"] != KEPT or topic.told["retention.bytes"] != KEPT
    if not letters and "delete" in topic.policies and expires:
        yield (
            f"the topic {topic.name} has cleanup.policy={topic.told['cleanup.policy']}, so Kafka would delete chunks "
            f"when they are old: {topic.cure('cleanup.policy', 'compact')}"
        )


def _weak(settings: Settings, topic: _Topic, replicas: int) -> Iterator[str]:
    """What makes a guarantee weaker than docs/guarantees.md has it."""
    if topic.replicas < replicas:
        yield (
            f"the topic {topic.name} has {topic.replicas} replicas, not {replicas}: what Kafka has acknowledged may be "
            "lost with a disk; kafka-reassign-partitions.sh adds replicas"
        )
    if topic.number("min.insync.replicas") < (enough := max(topic.replicas - 1, 1)):
        yield (
            f"the topic {topic.name} acknowledges what only {topic.told['min.insync.replicas']} of {topic.replicas} "
            f"replicas may have, so one disk can lose it: {topic.cure('min.insync.replicas', enough)}"
        )
    if topic.told["unclean.leader.election.enable"] == "true":
        yield (
            f"the topic {topic.name} may be led by a replica that lacks acknowledged records: "
            + topic.cure("unclean.leader.election.enable", "false")
        )
    if topic.name.endswith(DLQ):
        wanted = int(settings.dlq_retention_days * DAY_MS)
        if (kept := topic.number("retention.ms")) != int(KEPT) and kept < wanted:
            yield (
                f"the topic {topic.name} keeps dead letters for {kept / DAY_MS:g} days, STREAM_DLQ_RETENTION_DAYS says "
                f"{settings.dlq_retention_days:g}: {topic.cure('retention.ms', wanted)}"
            )
        if topic.told["retention.bytes"] != KEPT:
            yield (
                f"the topic {topic.name} deletes dead letters beyond {topic.number('retention.bytes'):,} bytes, "
                f"however new they are: {topic.cure('retention.bytes', KEPT)}"
            )
        return
    if "compact" not in topic.policies:
        yield f"the topic {topic.name} is never compacted and grows for ever: {topic.cure('cleanup.policy', 'compact')}"
    if topic.number("delete.retention.ms") < TOMBSTONES_MS:
        yield (
            f"the topic {topic.name} keeps a tombstone for {topic.number('delete.retention.ms') / DAY_MS:g} days after "
            "compaction, so a stage that lags for longer misses deletes: "
            + topic.cure("delete.retention.ms", TOMBSTONES_MS)
        )


async def _narrow(client: AIOKafkaAdminClient, settings: Settings, brokers: Iterable[str]) -> list[str]:
    """Brokers that close the connection on a request that carries the largest record.

    A broker that is down, or that lets nobody see its settings, is passed over.
    """
    needed = settings.max_letter_bytes + REQUEST_BYTES
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
                    f"the broker {name} takes requests of {limit:,} bytes at most, but {needed:,} are needed: "
                    f"raise its {SOCKET}, or lower STREAM_MAX_MESSAGE_BYTES"
                )
    return found


def _uneven(found: Iterable[_Topic]) -> Iterator[str]:
    """Topics between stages with different numbers of partitions: outputs go by their key, so order is kept."""
    counts = {topic.name: topic.partitions for topic in found if not topic.name.endswith(DLQ)}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        yield f"topics differ in their partitions ({said}): a stage has work for as many workers as its source has"
