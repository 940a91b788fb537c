"""How far a consumer group is behind the end of its topics."""

from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, GroupLoadInProgressError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed


async def uncommitted(
    admin: AIOKafkaAdminClient, client: AIOKafkaConsumer, group: str, partitions: Collection[TopicPartition]
) -> int:
    """Offsets up to the high watermarks that a group has not committed; `client` comes from `clients.offsets`."""
    done = await committed(admin, group)
    starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
    return behind(starts, ends, within_ends(done, ends))


def within_ends(done: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """The committed offsets without those beyond the end: there Kafka has lost records, or the topic was recreated.

    Workers read such a partition from its beginning. Get `done` before `ends`; otherwise an offset that was committed
    in between could also be beyond the end.
    """
    return {tp: offset for tp, offset in done.items() if offset <= ends.get(tp, offset)}


# On the first request for a consumer group, the brokers first create the topic for committed offsets.
@retry(
    retry=retry_if_exception_type((GroupCoordinatorNotAvailableError, GroupLoadInProgressError)),
    wait=wait_fixed(0.2),
    stop=stop_after_delay(15),
    reraise=True,
)
async def committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    """The committed offsets of a consumer group; a partition without a commit is absent."""
    committed = await admin.list_consumer_group_offsets(group)
    return {tp: meta.offset for tp, meta in committed.items() if meta.offset >= 0}


def behind(
    starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], done: Mapping[TopicPartition, int]
) -> int:
    """The sum over all partitions: offsets from the committed one, or from the partition's first, to its end."""
    return sum(max(end - max(done.get(tp, 0), starts[tp]), 0) for tp, end in ends.items())
