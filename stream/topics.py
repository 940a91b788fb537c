"""The topics: their names, what Kafka is told to keep of them, and who reads and writes which."""

from collections.abc import Iterable, Iterator

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from stream.config import STAGES, Settings, StageName
from stream.errors import ConfigurationError
from stream.kafka import admin, partitions, require_all

DAY_MS = 86_400_000
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
        "delete.retention.ms": str(7 * DAY_MS),
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
    await _largest_records(client, names)


async def _largest_records(client: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, int]:
    """`max.message.bytes` by topic."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name, {"max.message.bytes": ""}) for name in names]
    found = [answer for response in await client.describe_configs(wanted) for answer in response.resources]
    require_all((name, code) for code, _, _, name, _ in found)
    return {name: int(limit) for _, _, _, name, ((_, limit, *_),) in found}


async def check(settings: Settings, names: Iterable[str]) -> None:
    """Raises `ConfigurationError` if a topic is missing or carries smaller records than the settings say.

    Both must be known before the first send: one to a missing topic would hang rather than fail, and a batch that the
    broker finds too large leaves an idempotent producer out of sequence for good.
    """
    async with admin(settings) as client:
        limits = await _largest_records(client, names)
    for name, limit in limits.items():
        needed = settings.max_letter_bytes if name.endswith(DLQ) else settings.max_message_bytes
        if limit < needed:
            raise ConfigurationError(
                f"the topic {name} carries records of {limit:,} bytes at most, but {needed:,} are needed: "
                "raise its max.message.bytes (and the broker's message.max.bytes), or lower STREAM_MAX_MESSAGE_BYTES"
            )
