"""The flow as it moves: an event about each second, and the newest dead letters."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from async_lru import alru_cache
from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

from stream import wire
from stream.config import STAGES, StageName
from stream.kafka import deadletters
from stream.kafka.deadletters import DeadLetter
from stream.operate.watching import Look, Watch, within
from stream.serve.callers import require_all_chunks
from stream.serve.service import Service

INTERVAL = 1.0  # seconds between two looks
MOST_READERS = 50  # of the events at once
MOST_LETTERS = 200  # in an answer
READ_LETTERS = 1000  # offsets at the end of each partition: so many letters are counted by reason
LETTERS_CACHED = 3.0  # seconds
LETTERS_PATIENCE = 15.0  # seconds
SHOWN_VALUE = 2000  # characters


class Broadcast:
    """One watch for all readers; it runs while someone reads. All calls must come from one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._looking: asyncio.Task[None] | None = None
        self._newest: Look | None = None
        self._next: asyncio.Future[Look]
        self.readers = 0

    async def looks(self) -> AsyncIterator[Look]:
        """The newest look, if there is one, and all further ones until the service stops; a slow reader misses some."""
        if self._looking is None:
            self._next = asyncio.get_running_loop().create_future()
            self._looking = asyncio.create_task(self._look())
        looking, draining = self._looking, asyncio.create_task(self._service.draining.wait())
        self.readers += 1
        try:
            if self._newest:
                yield self._newest
            while True:
                coming = self._next
                waited: list[asyncio.Future[Any]] = [coming, draining, looking]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if draining.done():
                    return
                if looking.done():
                    looking.result()  # it ends only with an error
                yield coming.result()
        finally:
            draining.cancel()
            self.readers -= 1
            if not self.readers:
                looking.cancel()
                self._looking = self._newest = None

    async def _look(self) -> None:
        async with Watch(self._service.settings, self._service.stores) as watch:
            while True:
                self._newest = await watch.look()
                told, self._next = self._next, asyncio.get_running_loop().create_future()
                told.set_result(self._newest)
                await asyncio.sleep(INTERVAL)


class Letter(BaseModel):
    """A dead letter. `topic`, `partition` and `offset` are those of the rejected record; times are ms since the epoch.

    `place` is the letter's own partition and offset, as `stream dlq` takes it. `size` is the bytes of key and value.
    `key` and `value` are null if they are not text; `value` has no prefix of the Confluent wire format.
    """

    stage: str
    place: str
    at: int
    redriven: int | None
    reason: str
    detail: str
    topic: str
    partition: int
    offset: int
    attempts: int
    key: str | None
    size: int
    value: str | None

    @classmethod
    def of(cls, letter: DeadLetter) -> "Letter":
        """As the service shows it."""
        value = None if letter.left_out else _text(letter.record.value and wire.payload(letter.record.value))
        return cls(
            stage=letter.stage,
            place=str(letter.place),
            at=letter.at,
            redriven=letter.redriven,
            reason=letter.reason,
            detail=letter.detail,
            topic=letter.topic,
            partition=letter.partition,
            offset=letter.offset,
            attempts=letter.attempts,
            key=_text(letter.record.key),
            size=letter.size,
            value=value and value[:SHOWN_VALUE],
        )


class Letters(BaseModel):
    """The newest letters, and by stage and reason how many of the last offsets were not redriven."""

    letters: list[Letter]
    reasons: Mapping[StageName, Mapping[str, int]]


def routes(app: FastAPI, service: Service) -> None:
    """Adds the routes about the whole flow; none of them takes a key with a filter."""
    router = APIRouter(prefix="/flow", dependencies=[Depends(require_all_chunks)])
    broadcast = Broadcast(service)
    newest = alru_cache(ttl=LETTERS_CACHED)(partial(_newest, service))

    async def events() -> AsyncIterator[bytes]:
        async for look in broadcast.looks():
            yield b"event: flow\ndata: " + orjson.dumps(look) + b"\n\n"

    @router.get("/events", summary="The flow, about each second", response_class=StreamingResponse)
    async def flow() -> StreamingResponse:
        """Server-sent events of the type `flow`; the data is JSON. A server that is down is an event with `error`."""
        if broadcast.readers >= MOST_READERS:
            detail = f"{MOST_READERS} others are reading these events: try again later"
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, detail)
        return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    @router.get("/dead-letters", summary="The newest dead letters")
    async def letters(
        stage: StageName | None = None, limit: Annotated[int, Query(ge=1, le=MOST_LETTERS)] = 50
    ) -> Letters:
        """The newest dead letters of a stage, or of all stages, and their reasons."""
        found = {name: await newest(name) for name in ([stage] if stage else STAGES)}
        shown = sorted((one for some in found.values() for one in some), key=lambda one: one.at, reverse=True)
        reasons = {name: Counter(one.reason for one in some if not one.redriven) for name, some in found.items()}
        return Letters(letters=shown[:limit], reasons=reasons)

    app.include_router(router)


async def _newest(service: Service, stage: StageName) -> list[Letter]:
    async def read() -> list[Letter]:
        return [Letter.of(letter) for letter in await deadletters.newest(service.settings, stage, READ_LETTERS)]

    return await within(LETTERS_PATIENCE, "Kafka", read)


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
