"""Measures search from end to end: indexes a collection by the real flow, searches it in each mode, and compares.

A collection has its own topics, its own index in OpenSearch, and its own label and index in Neo4j. Their names contain
a hash of the chunks and of what encodes them, so an index of other chunks or of another model is never measured.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import orjson

from stream import children
from stream.config import PLAIN, STAGES, SearchMode, Settings
from stream.errors import StreamError
from stream.evaluate.collection import Collection
from stream.evaluate.measures import MEASURES, Values, interval, measure, p_value
from stream.evaluate.runs import Run, ranked
from stream.kafka import reader, topics
from stream.models.embeddings import EmbeddingClient
from stream.operate.publish import publish
from stream.operate.status import StageStatus, caught_up, stages
from stream.search.request import LEGS, Request
from stream.search.searcher import Searcher
from stream.stores import open_stores

ENCODING = re.compile(
    r"require_gpu|embed_(model|revision|dimensions|long_texts)|splade_(?!token_budget|query_terms)\w+"
)
STAND_IN = "development"  # the revision of a model that stands in for a trained one

PATIENCE = 600.0  # seconds for a query: a measurement lacks no leg

Progress = Callable[[str, int, int], None]  # what is done, how many, of how many


@dataclass(frozen=True, slots=True)
class Figure:
    """The mean over the queries with its 95 % confidence interval, and the comparison with the first mode."""

    mean: float
    low: float
    high: float
    difference: float
    p: float
    values: dict[str, float]  # by query


@dataclass(frozen=True, slots=True)
class Row:
    """One mode. `label` is its name, and says so if its figures are those of a stand-in model."""

    mode: SearchMode
    label: str
    figures: dict[str, Figure]  # by measure


@dataclass(frozen=True, slots=True)
class Report:
    """The result. Of the `chunks`, the `rejected` ones are not in both stores."""

    name: str
    topic: str
    chunks: int
    rejected: int
    queries: int
    depth: int
    rows: list[Row]


async def run(
    settings: Settings,
    assignments: Mapping[str, str],
    collection: Collection,
    modes: Sequence[SearchMode],
    *,
    depth: int,
    progress: Progress = lambda *_: None,
) -> tuple[Report, dict[SearchMode, Run]]:
    """Indexes the collection's chunks, if it has any, and measures each mode with the `depth` best hits of each query.

    `assignments` are those of `--set`, for the workers. Raises `Outage` if a worker ends, and `StreamError` if no chunk
    is in both stores then.
    """
    own = {} if collection.chunks is None else own_names(settings, collection) | PLAIN
    settings = settings.model_copy(update=own)
    if collection.chunks is not None:
        await _index(settings, {**assignments, **own}, collection.chunks, progress)
    async with open_stores(settings) as stores, EmbeddingClient(settings) as embedder:
        held = min([await store.count() for store in stores.both])
        if collection.chunks and not held:
            raise StreamError(
                f"the topic {settings.topic} holds the collection, but no chunk of it is in both stores: see `stream "
                f"--set topic={settings.topic} dlq ls`; if the stores' data were deleted, delete the topics too"
            )
        found = await search(Searcher(settings, stores, embedder), collection.queries, modes, depth, progress)
    report = Report(
        name=collection.name,
        topic=settings.topic,
        chunks=held if collection.chunks is None else len(collection.chunks),
        rejected=0 if collection.chunks is None else len(collection.chunks) - held,
        queries=len(collection.queries),
        depth=depth,
        rows=compare(settings, collection, found),
    )
    return report, found


def own_names(settings: Settings, collection: Collection) -> dict[str, str]:
    """The settings with the names of the collection's own topics, index and label."""
    encoding = {name: value for name, value in settings.model_dump(mode="json").items() if ENCODING.fullmatch(name)}
    chunks = sorted((collection.chunks or {}).values())
    digest = hashlib.sha256(b"\n".join([orjson.dumps(encoding, option=orjson.OPT_SORT_KEYS), *chunks])).hexdigest()
    slug = re.sub("[^a-z0-9]+", "-", collection.name.lower()).strip("-")[:40]
    name = f"eval-{slug}-{digest[:8]}"
    label = name.replace("-", "_").capitalize()
    return {"topic": name, "flow": "", "opensearch_alias": name, "neo4j_index": name, "neo4j_label": label}


async def _index(settings: Settings, own: Mapping[str, str], chunks: Mapping[str, bytes], progress: Progress) -> None:
    """Publishes what the topic does not hold, and runs a worker of each stage until none has any lag."""
    await topics.create(settings)
    held = {record.key async for record in reader.read_to_end(settings, settings.topic)}
    missing = [chunk for chunk_id, chunk in chunks.items() if chunk_id.encode() not in held]
    progress("publish", len(chunks) - len(missing), len(chunks))
    await publish(missing, settings)
    progress("publish", len(chunks), len(chunks))
    if not any(stage.lag for stage in await stages(settings)):
        return
    own = {**own, "instance": f"{settings.instance}-eval-{os.getpid()}", "web_port": "0"}
    async with children.workers(dict.fromkeys(STAGES, own)) as check:

        def look(now: list[StageStatus]) -> None:
            check()
            for found in now:
                progress(found.stage, found.done, max(found.total, now[0].total))

        await caught_up(settings, look=look)


async def search(
    searcher: Searcher, queries: Mapping[str, str], modes: Sequence[SearchMode], depth: int, progress: Progress
) -> dict[SearchMode, Run]:
    """What each mode finds: by query, the chunks in the store's order."""
    found: dict[SearchMode, Run] = {mode: {} for mode in modes}
    for done, (query, text) in enumerate(queries.items(), start=1):
        for mode in modes:
            answer = await searcher.search(Request(query=text, mode=mode, k=depth, deadline=PATIENCE, strict=True))
            found[mode][query] = ranked([hit.chunk_id for hit in answer.hits])
        progress("search", done, len(queries))
    return found


def compare(settings: Settings, collection: Collection, found: Mapping[SearchMode, Run]) -> list[Row]:
    """All measures of each mode, compared with the first mode."""
    values = {mode: measure(collection.qrels, run) for mode, run in found.items()}
    first = next(iter(values.values()))

    def figure(mine: Values, others: Values) -> Figure:
        by_query = dict(zip(collection.qrels, mine.tolist(), strict=True))
        difference = float((mine - others).mean())
        return Figure(float(mine.mean()), *interval(mine), difference, p_value(mine, others), by_query)

    return [
        Row(mode, label(settings, mode), {name: figure(mine[name], first[name]) for name in MEASURES})
        for mode, mine in values.items()
    ]


def label(settings: Settings, mode: SearchMode) -> str:
    """The mode's name, with a remark if a model that it uses is a stand-in."""
    revisions = {"splade": settings.splade_revision, "dense": settings.embed_revision}
    stand_in = any(revisions.get(leg) == STAND_IN for leg in LEGS[mode])
    return f"{mode} (stand-in model)" if stand_in else mode
