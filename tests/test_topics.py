"""If these fail, Kafka throws away what a replay needs, or a worker starts on topics that cannot carry its records."""

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from support import until

from stream import kafka, topics
from stream.config import STAGES, Settings
from stream.errors import ConfigurationError

pytestmark = pytest.mark.servers


def everything(settings: Settings) -> list[str]:
    return [name(settings, stage) for name in (topics.source, topics.dead_letters) for stage in STAGES]


async def kept(settings: Settings) -> dict[str, dict[str, str]]:
    """What Kafka says of each topic."""
    wanted = [ConfigResource(ConfigResourceType.TOPIC, name) for name in everything(settings)]
    async with kafka.admin(settings) as admin:
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
    async with kafka.admin(flow) as admin:
        for stage in STAGES:
            assert len(await kafka.partitions(admin, [topics.source(flow, stage)])) == flow.partitions
            assert len(await kafka.partitions(admin, [topics.dead_letters(flow, stage)])) == 1


async def test_topics_that_are_there_are_left_as_they_are(flow):
    before = await kept(flow)
    assert await topics.create(flow.model_copy(update={"dlq_retention_days": 1})) == []
    assert await kept(flow) == before


async def test_only_what_is_missing_is_made(flow):
    missing = topics.dead_letters(flow, "index")
    async with kafka.admin(flow) as admin:
        await admin.delete_topics([missing])

        async def gone() -> bool:
            return missing not in await admin.list_topics()

        await until(gone, 30)
    assert await topics.create(flow) == [missing]


async def test_more_replicas_than_brokers_are_refused_in_a_sentence(settings):
    with pytest.raises(ConfigurationError, match=settings.topic):
        await topics.create(settings.model_copy(update={"replication_factor": 100}))


async def test_topics_that_were_made_pass(flow):
    await topics.check(flow, everything(flow))


async def test_a_missing_topic_is_named_and_a_present_one_is_not(flow):
    absent = f"{flow.topic}.absent"
    with pytest.raises(ConfigurationError, match=f"missing: {absent};"):
        await topics.check(flow, [flow.topic, absent])


@pytest.mark.parametrize("stage", STAGES)
async def test_a_topic_that_carries_too_small_records_is_named_with_the_cure(flow, stage):
    larger = flow.model_copy(update={"max_message_bytes": flow.max_message_bytes + 1})
    for name in (topics.source(flow, stage), topics.dead_letters(flow, stage)):
        with pytest.raises(ConfigurationError, match=rf"{name} carries .*max\.message\.bytes"):
            await topics.check(larger, [name])
