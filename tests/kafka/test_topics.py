"""If these fail, Kafka throws away what a replay needs, or a worker starts on topics that cannot carry its records."""

import re
import signal
from collections.abc import Sequence

import pytest
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from ports import free_ports
from support import Worker, until

from stream.config import STAGES, Settings
from stream.errors import ConfigurationError
from stream.health import doctor
from stream.kafka import clients, topics

pytestmark = pytest.mark.servers


def everything(settings: Settings) -> list[str]:
    return [name(settings, stage) for name in (topics.source, topics.dead_letters) for stage in STAGES]


async def kept(settings: Settings, names: Sequence[str] = ()) -> dict[str, dict[str, str]]:
    """Each topic's settings in Kafka."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names or everything(settings)]
    async with clients.admin(settings) as admin:
        answers = [answer for response in await admin.describe_configs(wanted) for answer in response.resources]
    return {name: {key: value for key, value, *_ in config} for _, _, _, name, config in answers}


async def test_kafka_keeps_of_each_topic_what_was_asked(flow):
    found = await kept(flow)
    wanted = {topic.name: topic.topic_configs for topic in topics.definitions(flow, replicas=1)}
    assert {name: {key: found[name][key] for key in config} for name, config in wanted.items()} == wanted


async def test_the_newest_record_of_each_chunk_is_kept_for_good_and_dead_letters_for_a_time(settings):
    settings = settings.model_copy(update={"dlq_retention_days": 0.5})
    await topics.create(settings)
    found = await kept(settings)
    for stage in STAGES:
        assert found[topics.source(settings, stage)]["cleanup.policy"] == "compact"
        letters = found[topics.dead_letters(settings, stage)]
        assert (letters["cleanup.policy"], letters["retention.ms"]) == ("delete", str(topics.DAY_MS // 2))


async def test_topics_between_stages_have_the_partitions_that_were_asked_for(flow):
    async with clients.admin(flow) as admin:
        for stage in STAGES:
            assert len(await clients.partitions(admin, [topics.source(flow, stage)])) == flow.partitions
            assert len(await clients.partitions(admin, [topics.dead_letters(flow, stage)])) == 1


async def test_topics_that_are_there_are_left_as_they_are(flow):
    before = await kept(flow)
    assert await topics.create(flow.model_copy(update={"dlq_retention_days": 1})) == []
    assert await kept(flow) == before


async def test_only_what_is_missing_is_made(flow):
    missing = topics.dead_letters(flow, "index")
    async with clients.admin(flow) as admin:
        await admin.delete_topics([missing])

        async def gone() -> bool:
            return missing not in await admin.list_topics()

        await until(gone)
    assert await topics.create(flow) == [missing]


async def test_more_replicas_than_brokers_are_refused_in_a_sentence(settings):
    with pytest.raises(ConfigurationError, match=settings.topic):
        await topics.create(settings.model_copy(update={"replication_factor": 100}))


async def test_topics_that_were_made_pass(flow):
    assert await topics.check(flow, everything(flow)) == []


async def test_a_missing_topic_is_named_and_a_present_one_is_not(flow):
    absent = f"{flow.topic}.absent"
    with pytest.raises(ConfigurationError, match=f"missing: {absent};"):
        await topics.check(flow, [flow.topic, absent])


@pytest.mark.parametrize("stage", STAGES)
async def test_a_topic_that_carries_too_small_records_is_named_with_the_cure(flow, stage):
    larger = flow.model_copy(update={"max_message_bytes": flow.max_message_bytes + 1})
    for name in (topics.source(flow, stage), topics.dead_letters(flow, stage)):
        with pytest.raises(ConfigurationError, match=rf"{name} accepts records of at most .*max\.message\.bytes"):
            await topics.check(larger, [name])


# Topics made by hand: the settings that differ from those of `create`, and words of the message about them.

CHUNKS, LETTERS = "", ".embed.dlq"
LOSES = [
    (CHUNKS, {"cleanup.policy": "delete"}, "delete chunks"),
    (CHUNKS, {"cleanup.policy": "compact,delete"}, "delete chunks"),
    (CHUNKS, {"cleanup.policy": "compact,delete", "retention.ms": "-1", "retention.bytes": "1000000"}, "delete chunks"),
    (CHUNKS, {"min.insync.replicas": "2"}, "accepts no record"),
    (LETTERS, {"cleanup.policy": "compact"}, "is compacted"),
    (LETTERS, {"cleanup.policy": "compact,delete"}, "is compacted"),
]
WEAKENS = [
    (CHUNKS, {"unclean.leader.election.enable": "true"}, "lacks acknowledged records"),
    (CHUNKS, {"delete.retention.ms": "86400000"}, "misses deletes"),
    (CHUNKS, {"cleanup.policy": "delete", "retention.ms": "-1"}, "never compacted"),
    (LETTERS, {"retention.ms": "3600000"}, "STREAM_DLQ_RETENTION_DAYS"),
    (LETTERS, {"retention.bytes": "1000000"}, "however new"),
]


async def make(settings: Settings, suffix: str, told: dict[str, str], partitions: int | None = None) -> str:
    """A topic as `create` makes it, except for these settings."""
    name = settings.topic + suffix
    (usual,) = [topic for topic in topics.definitions(settings, replicas=1) if topic.name == name]
    partitions = partitions or usual.num_partitions
    made = NewTopic(name, partitions, 1, topic_configs={**usual.topic_configs, **told})
    async with clients.admin(settings) as admin:
        await admin.create_topics([made])
        await topics._until_known(admin, [name])
    return name


async def do(settings: Settings, sentence: str) -> None:
    """Does what the kafka-configs.sh command in the message would do."""
    name, key, value = re.search(
        r"kafka-configs\.sh .*--entity-name (\S+) --add-config (\S+)=(\S+)$", sentence
    ).groups()
    found = (await kept(settings, [name]))[name]
    ours = next(topic for topic in topics.definitions(settings, replicas=1) if topic.name == name).topic_configs
    own = {one: found[one] for one in {*ours, "unclean.leader.election.enable", "retention.ms", "retention.bytes"}}
    async with clients.admin(settings) as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, own | {key: value})])

    async def is_done() -> bool:
        return (await kept(settings, [name]))[name][key] == value

    await until(is_done)


@pytest.mark.parametrize(("suffix", "told", "words"), LOSES)
async def test_a_topic_that_would_lose_records_is_refused_until_its_command_was_run(settings, suffix, told, words):
    name = await make(settings, suffix, told)
    with pytest.raises(ConfigurationError, match=f"{name} .*{words}") as refused:
        await topics.check(settings, [name])
    await do(settings, str(refused.value))
    assert await topics.check(settings, [name]) == []


@pytest.mark.parametrize(("suffix", "told", "words"), WEAKENS)
async def test_a_topic_that_weakens_a_promise_is_named_until_its_command_was_run(settings, suffix, told, words):
    name = await make(settings, suffix, told)
    (warning,) = await topics.check(settings, [name])
    assert name in warning
    assert words in warning
    await do(settings, warning)
    assert await topics.check(settings, [name]) == []


async def test_fewer_replicas_than_there_should_be_are_named(flow):
    three = flow.model_copy(update={"replication_factor": 3})
    assert ["has 1 replicas, not 3" in warning for warning in await topics.check(three, [flow.topic])] == [True]


async def test_a_topic_with_other_partitions_than_its_neighbour_is_named_and_dead_letters_are_not(settings):
    await make(settings, CHUNKS, {}, partitions=4)
    await topics.create(settings)
    (warning,) = await topics.check(settings, everything(settings))
    assert f"{settings.topic} has 4" in warning
    assert f"{settings.topic}.embedded has 2" in warning


async def test_a_broker_that_takes_no_request_of_our_largest_record_is_named(settings):
    large = settings.model_copy(update={"max_message_bytes": 200 * 2**20})  # a broker's default is 100 MiB
    await topics.create(large)
    with pytest.raises(ConfigurationError, match=r"broker \d+ accepts requests of .*socket\.request\.max\.bytes"):
        await topics.check(large, [large.topic])


@pytest.mark.parametrize("told", [{"cleanup.policy": "delete"}, {"unclean.leader.election.enable": "true"}])
async def test_the_doctor_and_a_worker_say_so(settings, variables, told):
    """Both refuse a topic of `LOSES` and warn about a topic of `WEAKENS`."""
    await make(settings, CHUNKS, told)
    await topics.create(settings)
    loses = "cleanup.policy" in told
    found = [finding async for finding in doctor.kafka(settings)]
    assert [(each.ok, each.warning) for each in found] == ([(False, False)] if loses else [(True, False), (True, True)])
    async with Worker("embed", port=free_ports(1)[0], STREAM_EMBED_REUSE="0") as worker:
        if loses:
            assert await worker.exit_code() == 78
        else:
            await worker.ready()
            assert await worker.end(signal.SIGTERM) == 0
        assert found[-1].said in worker.log.read_text()
