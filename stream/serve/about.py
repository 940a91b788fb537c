"""What the service is: its release, its models, what is indexed, and how far the stages are."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import orjson
from async_lru import alru_cache
from fastapi import FastAPI
from pydantic import BaseModel

from stream import __version__
from stream.errors import StreamError
from stream.operate import status
from stream.operate.watching import within
from stream.records import Provenance
from stream.search.answer import Made
from stream.search.request import Model
from stream.serve.callers import Caller
from stream.serve.service import Service

CACHED = 5.0  # seconds
PATIENCE = 5.0  # seconds until a server that does not answer counts as down
COUNTS = ("chunks", "lag")
Answer = TypeVar("Answer")
COMPARED: Mapping[Model, str] = {"dense": "dimensions", "splade": "normalised"}  # the parameter that scores depend on


class Indexes(BaseModel):
    """What the searches of the flow use; null where nothing is live."""

    opensearch_alias: str
    opensearch_index: str | None = None
    neo4j_index: str | None = None


class About(BaseModel):
    """`generation`: the one that is searched. `models` encode the queries.

    `agree`: whether all stored vectors and terms are of these models; null if that is unknown or nothing is stored.
    `chunks` by store and `lag` by stage are null for a key with a filter. What a server does not answer is null too;
    then `errors` has a sentence for the field.
    """

    version: str
    generation: int | None
    indexes: Indexes | None
    models: dict[Model, Made | None]
    agree: dict[Model, bool | None]
    chunks: dict[str, int | None] | None
    lag: dict[str, int] | None
    errors: dict[str, str]

    def without_counts(self) -> "About":
        """For a key that sees only some chunks: counts are about all of them."""
        errors = {field: error for field, error in self.errors.items() if field not in COUNTS}
        return self.model_copy(update={"errors": errors, **dict.fromkeys(COUNTS)})


def routes(app: FastAPI, service: Service) -> None:
    """Adds the route."""
    cached = alru_cache(ttl=CACHED)(partial(_about, service))

    @app.get("/about", summary="The service, its models and indexes")
    async def about(key: Caller) -> About:
        """What is searched, by which models, and how far the stages are. The answer may be some seconds old."""
        found = await cached()
        return found if key.filter is None else found.without_counts()


async def _about(service: Service) -> About:
    settings, stores, searcher = service.settings, service.stores, service.searcher
    errors: dict[str, str] = {}

    async def ask(field: str, server: str, call: Callable[[], Awaitable[Answer]]) -> Answer | None:
        try:
            return await within(PATIENCE, server, call)
        except StreamError as error:
            errors.setdefault(field, str(error))
            return None

    async with asyncio.TaskGroup() as group:
        generation = group.create_task(ask("generation", "a store", searcher.generation))
        indexes = group.create_task(ask("indexes", "a store", stores.live_indexes))
        models = group.create_task(ask("models", "the SPLADE model", searcher.models))
        vectors = group.create_task(ask("agree", stores.neo4j.name, stores.neo4j.origins))
        terms = group.create_task(ask("agree", stores.opensearch.name, stores.opensearch.origins))
        counts = {store.name: group.create_task(ask("chunks", store.name, store.count)) for store in stores.both}
        stages = group.create_task(ask("lag", "Kafka", partial(status.stages, settings)))
    live = (indexes.result() or {}).get(settings.flow)
    made: dict[Model, Provenance | None] = {"dense": None, "splade": None, **(models.result() or {})}
    return About(
        version=__version__,
        generation=generation.result(),
        indexes=Indexes(**asdict(live)) if live else None,
        models={model: Made(**one) if one else None for model, one in made.items()},
        agree={"dense": _agree("dense", made, vectors.result()), "splade": _agree("splade", made, terms.result())},
        chunks={name: count.result() for name, count in counts.items()},
        lag=None if (found := stages.result()) is None else {one.stage: one.lag for one in found},
        errors=errors,
    )


def _agree(model: Model, models: Mapping[Model, Provenance | None], origins: Mapping[str, int] | None) -> bool | None:
    """Whether what is stored comes from the model of the queries. An earlier release has stored no provenance ("")."""
    mine = models[model]
    if not origins or mine is None:
        return None
    return all(bool(origin) and _space(orjson.loads(origin), model) == _space(mine, model) for origin in origins)


def _space(provenance: Provenance, model: Model) -> tuple[object, ...]:
    return provenance["model"], provenance["revision"], provenance["parameters"].get(COMPARED[model])
