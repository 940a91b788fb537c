"""What is published while faults happen, and what must be true of it at the end."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import orjson
from aiokafka.errors import KafkaError
from support import CONTRACTS, chunk, names, read

from stream import kafka, topics
from stream.config import Settings, StageName
from stream.contracts import Contract
from stream.records import VERSION_HEADER, Rejected, decode

NEW = 0.5  # the share of chunks that are new; the others have a newer version than before
PUBLISHED_A_SECOND = 60
WORDS = ["lock", "queue", "socket", "stream", "thread", "await", "commit", "offset", "vector", "shard", "broker", "lag"]


class History:
    """Publishes new chunks, newer versions of chunks and tombstones, drawn from a seed.

    `acknowledged` is the newest version of each chunk that Kafka has said it has; a send that failed may have
    happened or not.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.sent = 0
        self.acknowledged: dict[str, int] = {}
        self._settings = settings
        self._random = random.Random(seed)
        self._version = 0
        self._chunks = 0
        self._on_their_way: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def publishing(self) -> AsyncIterator[None]:
        """Publishes in the background."""
        async with kafka.producer(self._settings) as producer:
            going = asyncio.create_task(self._publish(producer))
            try:
                yield
            finally:
                going.cancel()
                await asyncio.wait([going, *self._on_their_way], timeout=60)
                with suppress(asyncio.CancelledError):
                    await going

    async def _publish(self, producer: kafka.AIOKafkaProducer) -> None:
        while True:
            self._version += 1
            chunk_id = self._next_chunk()
            value, headers = self._change(chunk_id)
            acknowledgement = await producer.send(
                self._settings.topic, key=chunk_id.encode(), value=value, headers=headers
            )
            self.sent += 1
            noting = asyncio.create_task(self._note(chunk_id, self._version, acknowledgement))
            self._on_their_way.add(noting)
            noting.add_done_callback(self._on_their_way.discard)
            await asyncio.sleep(1 / PUBLISHED_A_SECOND)

    def _next_chunk(self) -> str:
        if not self._chunks or self._random.random() < NEW:
            self._chunks += 1
            return f"c{self._chunks}"
        return f"c{self._random.randint(1, self._chunks)}"

    def _change(self, chunk_id: str) -> tuple[bytes | None, list[tuple[str, bytes]]]:
        if self._random.random() < 0.1:
            return None, [(VERSION_HEADER, str(self._version).encode())]
        text = " ".join(self._random.choices(WORDS, k=self._random.randrange(1, 40)))
        return orjson.dumps(chunk(chunk_id, text, self._version)), []

    async def _note(self, chunk_id: str, version: int, acknowledgement: asyncio.Future[object]) -> None:
        try:
            await acknowledgement
        except KafkaError:
            return
        self.acknowledged[chunk_id] = max(version, self.acknowledged.get(chunk_id, 0))

    async def differences(self) -> list[str]:
        """Chunks whose acknowledged version the topic does not have, or that end with an older one in a later topic."""
        newest = await self._newest(self._settings.topic, "chunk", last=False)
        found = [
            f"{chunk_id}: version {version} was acknowledged, the topic has {newest.get(chunk_id)}"
            for chunk_id, version in self.acknowledged.items()
            if newest.get(chunk_id, -1) < version
        ]
        stages: tuple[StageName, ...] = ("expand", "index")
        for stage in stages:
            topic = topics.source(self._settings, stage)
            last = await self._newest(topic, CONTRACTS[stage], last=True)
            found += [
                f"{chunk_id}: the last record in {topic} has version {last.get(chunk_id)}, the newest is {version}"
                for chunk_id, version in newest.items()
                if last.get(chunk_id) != version
            ]
        return found

    async def _newest(self, topic: str, contract: Contract, *, last: bool) -> dict[str, int]:
        """The highest version of each chunk in a topic, or the version of its last record."""
        versions: dict[str, int] = {}
        for record in await read(self._settings, topic):
            decoded = decode(record, contract, self._settings.max_message_bytes)
            assert not isinstance(decoded, Rejected)
            chunk_id, version = names(decoded)
            versions[chunk_id] = version if last else max(version, versions.get(chunk_id, -1))
        return versions
