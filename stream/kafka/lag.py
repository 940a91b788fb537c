"""How far a consumer group is behind the end of its topics."""

from collections.abc import Collection, Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, GroupLoadInProgressError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed


async def uncommitted(
    admin: AIOKafkaAdminClient, client: AIOKafkaConsumer, group: str, partitions: Collection[TopicPartition]
) -> int:
    """Offsets that a group has not committed, up to the high watermarks; `client` is one of `clients.offsets`."""
    done = await committed(admin, group)
    starts, ends = await client.beginning_offsets(partitions), await client.end_offsets(partitions)
    return behind(starts, ends, within_ends(done, ends))


def within_ends(done: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    """What was committed, but for offsets beyond the end: Kafka has lost records, or the topic was made again.

    Workers read such a partition from its beginning. `done` must be asked for before `ends`, or the flow's progress
    would look the same.
    """
    return {tp: offset for tp, offset in done.items() if offset <= ends.get(tp, offset)}


# A broker that has never seen a group makes the topic of offsets first.
@retry(
    retry=retry_if_exception_type((GroupCoordinatorNotAvailableError, GroupLoadInProgressError)),
    wait=wait_fixed(0.2),
    stop=stop_after_delay(15),
    reraise=True,
)
async def committed(admin: AIOKafkaAdminClient, group: str) -> dict[TopicPartition, int]:
    """What a consumer group has committed; nothing for a partition of which it has not."""
    committed = await admin.list_consumer_group_offsets(group)
    return {tp: meta.offset for tp, meta in committed.items() if meta.offset >= 0}


def behind(
    starts: Mapping[TopicPartition, int], ends: Mapping[TopicPartition, int], done: Mapping[TopicPartition, int]
) -> int:
    """Offsets from what is committed, or where the partition begins, to its end."""
    return sum(max(end - max(done.get(tp, 0), starts[tp]), 0) for tp, end in ends.items())
