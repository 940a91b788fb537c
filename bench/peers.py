"""The programs that `plane.py` compares. Each copies one topic to another; `plane.py` starts each in its own process.

    ours                a worker without a model: it decodes and checks each record, and encodes it again
    aiokafka            a loop: getmany, send, wait for all acknowledgements, commit; values stay bytes
    confluent-kafka     a loop: consume, produce, flush, commit; values stay bytes
    quixstreams         a StreamingDataFrame from topic to topic; values stay bytes
    quixstreams, JSON   the same; values are decoded from JSON and encoded again

All give the same guarantee: `acks=all`, an idempotent producer, and an offset is committed only after the outputs of
all records before it are acknowledged. Each has the settings that were the fastest in trials. Key and headers pass
through.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from aiokafka import AIOKafkaConsumer

from stream import config
from stream.config import Settings
from stream.contracts import Contract
from stream.kafka import clients, topics
from stream.records import Done
from stream.stages.base import Stage

STAGE = "embed"  # its source is the same topic in all flows, so that each run can have its own group and target
PACKAGES = ("confluent-kafka", "quixstreams")  # those that the project does not use

# The defaults: in trials, no other size of a batch (to 2,000) and number in flight (to 4) was faster.
OURS = {"batch_size": "256", "in_flight": "2", "log_level": "warning", "web_port": "0"}
AIOKAFKA_BATCH = 500  # records
CONFLUENT_BATCH = 5_000
QUIX_BATCH = 10_000
FETCH_BYTES = 8 * 2**20


def find(folder: Path) -> None:
    """Lets Python find the packages in `folder`, after the project's own; raises an error if they are missing."""
    sys.path.append(str(folder.resolve()))
    try:
        import confluent_kafka  # noqa: F401, PLC0415
        import quixstreams  # noqa: F401, PLC0415
    except ImportError as error:
        raise typer.BadParameter(
            f"{error}; install the peers with `pip install --target {folder} {' '.join(PACKAGES)}`, "
            "or name their folder with --peers"
        ) from None


def ours(settings: Settings, contract: Contract, records: int) -> None:
    """The worker; it runs until a signal."""
    from stream.worker import run as worker  # noqa: PLC0415

    async def process(chunks: Sequence[Any]) -> list[Done]:
        return [Done(chunk) for chunk in chunks]

    @asynccontextmanager
    async def without_model(*_: object) -> AsyncIterator[Stage]:
        yield Stage(STAGE, contract, process)

    async def nothing(*_: object) -> None: ...

    worker.open_stage = without_model
    worker.preflight.check = nothing  # it would ask for the model server
    worker.run(STAGE, settings.model_copy(update=config.load(**OURS).model_dump(include=set(OURS))))


def aiokafka(settings: Settings, contract: Contract, records: int) -> None:
    """A loop on aiokafka, with the worker's producer."""

    async def loop() -> None:
        source, target, group = _names(settings)
        consumer = AIOKafkaConsumer(
            source,
            bootstrap_servers=settings.kafka_servers,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES,
        )
        async with consumer, clients.producer(settings) as producer:
            done = 0
            while done < records:
                batches = await consumer.getmany(timeout_ms=1_000, max_records=AIOKAFKA_BATCH)
                for partition, batch in batches.items():
                    sent = [await producer.send(target, one.value, one.key, headers=[*one.headers]) for one in batch]
                    await asyncio.gather(*sent)
                    await consumer.commit({partition: batch[-1].offset + 1})
                    done += len(batch)

    asyncio.run(loop())


def confluent(settings: Settings, contract: Contract, records: int, *, batch: int) -> None:
    """A loop on librdkafka's Python client."""
    from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition  # noqa: PLC0415

    def failed(error: Any, _: Any) -> None:
        raise KafkaException(error)

    source, target, group = _names(settings)
    reach = {"bootstrap.servers": settings.kafka_servers}
    producer = Producer(
        reach
        | {"acks": "all", "enable.idempotence": True, "linger.ms": 5, "batch.size": 2**20}
        | {"delivery.report.only.error": True, "on_delivery": failed}
    )
    consumer = Consumer(
        reach
        | {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
        | {"max.partition.fetch.bytes": FETCH_BYTES, "enable.partition.eof": False}
    )
    consumer.subscribe([source])
    done = 0
    while done < records:
        found = consumer.consume(min(batch, records - done), timeout=1)
        for one in found:
            if one.error():
                raise KafkaException(one.error())
            producer.produce(target, one.value(), one.key(), headers=one.headers())
        if producer.flush():
            raise RuntimeError("flush has left records behind")
        if found:
            consumer.commit(offsets=[TopicPartition(source, 0, found[-1].offset() + 1)], asynchronous=False)
        done += len(found)
    consumer.close()


def quix(settings: Settings, contract: Contract, records: int, *, form: str) -> None:
    """Quix Streams. A checkpoint flushes the producer, then commits."""
    from quixstreams import Application  # noqa: PLC0415

    source, target, group = _names(settings)
    with TemporaryDirectory(prefix="stream-quix-") as folder:
        app = Application(
            settings.kafka_servers,
            consumer_group=group,
            auto_offset_reset="earliest",
            commit_every=QUIX_BATCH,
            processing_guarantee="at-least-once",
            producer_extra_config={"acks": "all", "linger.ms": 5, "batch.size": 2**20},
            consumer_extra_config={"max.partition.fetch.bytes": FETCH_BYTES},
            auto_create_topics=False,
            use_changelog_topics=False,
            state_dir=folder,
            loglevel="WARNING",
        )
        read = app.topic(source, value_deserializer=form)
        written = app.topic(target, value_serializer=form)
        app.dataframe(read).to_topic(written)
        app.run(count=records, collect=False)


PROGRAMS: dict[str, Callable[[Settings, Contract, int], None]] = {
    "ours": ours,
    "aiokafka": aiokafka,
    "confluent-kafka, 256 a batch": partial(confluent, batch=256),
    f"confluent-kafka, {CONFLUENT_BATCH:,} a batch": partial(confluent, batch=CONFLUENT_BATCH),
    "quixstreams": partial(quix, form="bytes"),
    "quixstreams, JSON": partial(quix, form="json"),
}


def _names(settings: Settings) -> tuple[str, str, str]:
    target = topics.target(settings, STAGE)
    assert target
    return topics.source(settings, STAGE), target, topics.group(settings, STAGE)


def main(
    name: Annotated[str, typer.Argument(help="The program.")],
    contract: Annotated[str, typer.Argument(help="The contract of the records.")],
    records: Annotated[int, typer.Argument(help="Records in the source.")],
    topic: Annotated[str, typer.Option(help="The source.")],
    flow: Annotated[str, typer.Option(help="The flow, whose name is part of the names of group and target.")],
    peers: Annotated[Path, typer.Option(help="The folder of the peers' packages.")],
) -> None:
    """Copy a topic to another with one program."""
    if name != "ours":
        find(peers)
    PROGRAMS[name](config.load(topic=topic, flow=flow), contract, records)  # type: ignore[arg-type]


if __name__ == "__main__":
    typer.run(main)
