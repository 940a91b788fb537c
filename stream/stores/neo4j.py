"""Neo4j: a node `:Chunk` for each chunk, and a vector index over them.

A deleted chunk leaves a node `:DeletedChunk` with its version, so that an older record cannot bring it back. A map
cannot be a property, so `facet_json` and `metadata` are JSON strings.

The generations share the nodes, and with them what else a graph knows about a chunk. Each has its own vector, and what
says where it comes from, in properties of its own, and its own vector index over them. A node `:ChunkGeneration` says
which one is live.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import neo4j
import numpy as np
import orjson
from neo4j.exceptions import DriverError, Neo4jError

from stream import progress, tls
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused
from stream.models.embeddings import Vector, pack
from stream.outcomes import isolate
from stream.records import Provenance, Rejected, Tombstone, embedding_space, sha256
from stream.stores.base import (
    FIRST,
    Generation,
    Hit,
    NoGeneration,
    Older,
    Put,
    Stored,
    nothing_yet,
    require_first,
    require_version,
)

log = logging.getLogger(__name__)

OLDEST = "5.26"

MADE = ("embedded_version", "text_sha256", "embedding_provenance", "embedding_sha256")  # beside a vector
NODES_AT_ONCE = 1000
NODES_COMPARED_AT_ONCE = 10_000

# The server's errors that a row can be guilty of; any other error is nobody's fault in the batch.
BLAMES_INPUT = {
    "Neo.ClientError.Statement.ArgumentError",
    "Neo.ClientError.Statement.TypeError",
    "Neo.ClientError.Procedure.ProcedureCallFailed",
}

BLAMES_SETTINGS = ("Neo.ClientError.Security.", "Neo.ClientError.Database.DatabaseNotFound")

CONSTRAINTS = (
    "CREATE CONSTRAINT chunk_id IF NOT EXISTS FOR (c:Chunk) REQUIRE c.chunk_id IS UNIQUE",
    "CREATE CONSTRAINT deleted_chunk_id IF NOT EXISTS FOR (c:DeletedChunk) REQUIRE c.chunk_id IS UNIQUE",
    "CREATE INDEX chunk_doc_id IF NOT EXISTS FOR (c:Chunk) ON (c.doc_id)",
)

PUT = """
UNWIND $rows AS row
OPTIONAL MATCH (gone:DeletedChunk {chunk_id: row.chunk_id})
WITH row, gone WHERE gone IS NULL OR gone.version <= row.version
MERGE (chunk:Chunk {chunk_id: row.chunk_id})
WITH row, gone, chunk, coalesce(chunk[$embedded_version], -1) AS embedded
WHERE embedded <= row.version
FOREACH (_ IN CASE WHEN coalesce(chunk.version, -1) <= row.version THEN [1] ELSE [] END |
    SET chunk += row.properties)
SET chunk += row.made
DELETE gone
WITH row, chunk
CALL db.create.setNodeVectorProperty(chunk, $vector, row.vector)
"""

DELETE = """
UNWIND $rows AS row
OPTIONAL MATCH (chunk:Chunk {chunk_id: row.chunk_id})
WITH row, chunk WHERE chunk IS NULL OR chunk.version <= row.version
MERGE (gone:DeletedChunk {chunk_id: row.chunk_id})
SET gone.version = CASE WHEN gone.version > row.version THEN gone.version ELSE row.version END
DETACH DELETE chunk
"""

STORED = """
UNWIND $chunk_ids AS chunk_id
MATCH (chunk:Chunk {chunk_id: chunk_id}) WHERE chunk[$embedded_version] IS NOT NULL
RETURN chunk.chunk_id AS chunk_id, chunk[$embedded_version] AS version, chunk[$text_sha256] AS text_sha256,
       size(chunk[$vector]) AS dimensions
"""

VECTORS = """
UNWIND $chunk_ids AS chunk_id
MATCH (chunk:Chunk {chunk_id: chunk_id})
RETURN chunk.chunk_id AS chunk_id, chunk[$text_sha256] AS text_sha256, chunk[$embedding_provenance] AS provenance,
       chunk[$embedding_sha256] AS digest, chunk[$vector] AS vector
"""

COUNT = "MATCH (chunk:Chunk) WHERE chunk[$embedded_version] IS NOT NULL RETURN count(chunk) AS n"

ORIGINS = """
MATCH (chunk:Chunk) WHERE chunk[$embedded_version] IS NOT NULL
RETURN coalesce(chunk[$embedding_provenance], '') AS origin, count(chunk) AS n ORDER BY n DESC
"""

LIVE = "MATCH (pointer:ChunkGeneration {index: $index, flow: $flow}) RETURN pointer.live AS live"

POINTERS = """
MATCH (pointer:ChunkGeneration {index: $index})
RETURN pointer.flow AS flow, pointer.live AS live, coalesce(pointer.swapping, false) AS swapping
"""

SWAP = """
MERGE (pointer:ChunkGeneration {index: $index, flow: $flow})
SET pointer.live = $live, pointer.swapping = true
"""

SWAPPED = """
MATCH (pointer:ChunkGeneration {index: $index, flow: $flow}) WHERE pointer.live = $live
REMOVE pointer.swapping
"""

OLDER = """
MATCH (chunk:Chunk) WHERE chunk.chunk_id > $after
WITH chunk ORDER BY chunk.chunk_id LIMIT $limit
WITH collect(chunk) AS chunks
RETURN chunks[-1].chunk_id AS last, [chunk IN chunks WHERE chunk[$than] > coalesce(chunk[$version], -1) |
    [chunk.chunk_id, chunk[$than], chunk[$version]]] AS older
"""

ADOPT = """
MATCH (chunk:Chunk) WHERE chunk.embedded_version IS NULL AND chunk.embedding_qwen IS NOT NULL
WITH chunk LIMIT $limit SET chunk.embedded_version = chunk.version
RETURN count(chunk) AS n
"""

FORGET = """
MATCH (chunk:Chunk) WHERE chunk[$embedded_version] IS NOT NULL
WITH chunk LIMIT $limit SET chunk += $nothing
RETURN count(chunk) AS n
"""

NEAREST = """
CALL db.index.vector.queryNodes($index, $k, $near) YIELD node, score
RETURN node.chunk_id AS chunk_id, node.doc_id AS doc_id, node.text AS text, score,
       node[$embedding_provenance] AS provenance
"""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a generation keeps what is its own: the first has the plain names, the others have their number behind."""

    settings: Settings
    generation: int

    def _named(self, name: str) -> str:
        return name if self.generation == FIRST else f"{name}_{self.generation}"

    @property
    def index(self) -> str:
        return self._named(self.settings.neo4j_index)

    @property
    def vector(self) -> str:
        return self._named("embedding_qwen")

    @property
    def properties(self) -> dict[str, str]:
        """Names of properties, as the parameters of a query."""
        return {"vector": self.vector} | {name: self._named(name) for name in MADE}


class Neo4jStore:
    """The dense side: the generation that the settings name, or the live one. Use as an async context manager."""

    name = "Neo4j"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reached = False
        password = settings.neo4j_password
        uri = settings.neo4j_uri
        security: dict[str, Any] = {}
        if settings.neo4j_ca_file:  # the driver takes a context only with a scheme that does not say +s itself
            uri, security = uri.replace("+s://", "://", 1), {"ssl_context": tls.context(settings.neo4j_ca_file)}
        self._driver = neo4j.AsyncGraphDatabase.driver(
            uri,
            **security,
            auth=(settings.neo4j_user, password.get_secret_value()) if password else None,
            connection_timeout=5,
            connection_acquisition_timeout=settings.store_timeout,
            max_transaction_retry_time=5,
            notifications_min_severity="OFF",
        )

    async def __aenter__(self) -> "Neo4jStore":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._driver.close()

    async def set_up(self) -> None:
        """Raises `ConfigurationError` if the vector index exists with another number of dimensions."""
        settings = self._settings
        for constraint in CONSTRAINTS:
            await self._run(constraint)
        place = await self._place()
        if place.generation == FIRST:  # nodes of an earlier version belong to the first
            await self._until_none(ADOPT)
        await self._run(
            f"CREATE VECTOR INDEX `{place.index}` IF NOT EXISTS FOR (c:Chunk) ON (c.`{place.vector}`) "
            "OPTIONS {indexConfig: {`vector.dimensions`: $dimensions, `vector.similarity_function`: 'cosine'}}",
            dimensions=settings.embed_dimensions,
        )
        await self._run("CALL db.awaitIndexes($seconds)", seconds=int(settings.store_timeout * 0.9))
        if await self._dimensions(place) is None:
            raise ConfigurationError(
                f"Neo4j has made no vector index {place.index}, because something else has that name; "
                "name another with STREAM_NEO4J_INDEX"
            )

    async def examine(self) -> str:
        """What is there, in a few words; raises what is wrong with it and makes nothing."""
        components = await self._run("CALL dbms.components() YIELD name, versions RETURN name, versions[0] AS version")
        version = next(row["version"] for row in components if row["name"] == "Neo4j Kernel")
        require_version("Neo4j", version, OLDEST)
        try:
            place = await self._place()
        except NoGeneration as error:
            return f"Neo4j {version}, {error}"
        dimensions = await self._dimensions(place)
        index = f"with {dimensions} dimensions" if dimensions else "not there yet, the index worker makes it"
        return f"Neo4j {version}, vector index {place.index} {index}"

    async def go_live(self, generation: int) -> None:
        """What reads and writes the live generation has this one from its next query on.

        The pointer says that a swap is going on until `swapped` is called.
        """
        await self._run(SWAP, index=self._settings.neo4j_index, flow=self._settings.flow, live=generation)

    async def swapped(self, generation: int) -> None:
        """The swap to this generation has ended; changes nothing if another is live meanwhile."""
        await self._run(SWAPPED, index=self._settings.neo4j_index, flow=self._settings.flow, live=generation)

    async def pointers(self) -> list[Generation]:
        """The live generation of each flow that has a pointer."""
        rows = await self._run(POINTERS, index=self._settings.neo4j_index)
        return [Generation(row["live"], row["flow"], frozenset({self.name}), row["swapping"]) for row in rows]

    async def older(self, generation: int, than: int) -> Older:
        """Chunks of which a generation has a vector of a lower version than the generation `than`, or none at all."""
        version, compared = (
            _Place(self._settings, number).properties["embedded_version"] for number in (generation, than)
        )
        found: Older = {}
        last: str | None = ""
        while last is not None:
            (row,) = await self._run(OLDER, after=last, limit=NODES_COMPARED_AT_ONCE, version=version, than=compared)
            found |= {chunk_id: (shown, lower) for chunk_id, shown, lower in row["older"]}
            last = row["last"]
        return found

    async def drop(self, generation: int) -> None:
        """Takes the generation's index and properties away; the nodes stay. May be interrupted and run again."""
        place = _Place(self._settings, generation)
        await self._run(f"DROP INDEX `{place.index}` IF EXISTS")
        names = place.properties
        await self._until_none(FORGET, nothing=dict.fromkeys(names.values()), **names)

    async def _until_none(self, statement: str, **parameters: Any) -> None:
        """Runs what changes some nodes at a time until none is left to change."""
        while (await self._run(statement, limit=NODES_AT_ONCE, **parameters))[0]["n"]:
            pass

    async def live(self) -> int:
        """The flow's live generation; raises `NoGeneration` if it has none."""
        settings = self._settings
        for row in await self._run(LIVE, index=settings.neo4j_index, flow=settings.flow):
            return int(row["live"])
        require_first(settings)
        return FIRST

    async def _place(self) -> _Place:
        return _Place(self._settings, self._settings.generation or await self.live())

    async def _dimensions(self, place: _Place) -> int | None:
        settings = self._settings
        rows = await self._run(
            "SHOW VECTOR INDEXES YIELD name, options WHERE name = $name RETURN options.indexConfig AS config",
            name=place.index,
        )
        if not rows:
            return None
        dimensions: int = rows[0]["config"]["vector.dimensions"]
        if dimensions != settings.embed_dimensions:
            raise ConfigurationError(
                f"Neo4j's index {place.index} has {dimensions} dimensions, "
                f"STREAM_EMBED_DIMENSIONS says {settings.embed_dimensions}; name another index with STREAM_NEO4J_INDEX"
            )
        return dimensions

    async def write(self, writes: Sequence[Put | Tombstone]) -> dict[str, Rejected]:
        """Puts and deletes in two transactions; a batch that is refused is split until the culprit is alone."""
        puts = [write for write in writes if isinstance(write, Put)]
        outcomes = await isolate(puts, partial(self._put, await self._place()), "refused-by-neo4j")
        tombstones = [write for write in writes if isinstance(write, Tombstone)]
        if tombstones:
            await self._run(DELETE, rows=[{"chunk_id": t.chunk_id, "version": t.version} for t in tombstones])
        return {
            put.chunk_id: outcome for put, outcome in zip(puts, outcomes, strict=True) if isinstance(outcome, Rejected)
        }

    async def count(self) -> int:
        """Nodes `:Chunk` that the generation has a vector for; none if the flow has no generation yet."""
        try:
            place = await self._place()
        except NoGeneration:
            return 0
        (row,) = await self._run(COUNT, **place.properties)
        return int(row["n"])

    async def origins(self) -> dict[str, int]:
        """Chunks by `embedding_provenance` as JSON; none if the flow has no generation yet."""
        try:
            place = await self._place()
        except NoGeneration:
            return {}
        rows = await self._run(ORIGINS, **place.properties)
        return {row["origin"]: row["n"] for row in rows}

    async def stored(self, chunk_ids: Sequence[str]) -> dict[str, Stored]:
        """`complete` means that the vector has its full length."""
        rows = await self._run(STORED, chunk_ids=list(chunk_ids), **(await self._place()).properties)
        wanted = self._settings.embed_dimensions
        return {r["chunk_id"]: Stored(r["version"], r["text_sha256"], r["dimensions"] == wanted) for r in rows}

    async def vectors(self, chunk_ids: Sequence[str], provenance: Provenance) -> dict[str, tuple[str, str]]:
        """Vectors of these chunks that were made so, as `text_sha256` and what travels (`embedding_qwen`).

        One that is not what was once written is left out, with a warning.
        """
        found = {}
        for row in await self._run(VECTORS, chunk_ids=list(chunk_ids), **(await self._place()).properties):
            if row["provenance"] != _json(provenance) or row["digest"] is None:
                continue
            vector = pack(np.array(row["vector"] or (), np.float32))
            if sha256(vector) == row["digest"]:
                found[row["chunk_id"]] = row["text_sha256"], vector
            else:
                log.warning("Neo4j's vector of %r is not what was written: it is made anew", row["chunk_id"])
        return found

    async def nearest(self, vector: Vector, k: int, provenance: Provenance) -> list[Hit]:
        """The k chunks whose vectors (dimensions,) are nearest by cosine, approximately; score is (1 + cosine) / 2.

        What another model made than the vector asked for is left out, with a warning: no cosine compares the two.
        """
        place = await self._place()
        near = vector.astype(np.float64)
        try:
            rows = await self._run(NEAREST, index=place.index, k=k, near=near, **place.properties)
        except Refused:
            if await self._dimensions(place):
                raise
            raise nothing_yet(self._settings, f"Neo4j's vector index {place.index}", "STREAM_NEO4J_INDEX") from None
        space = embedding_space(provenance)
        same = [row for row in rows if embedding_space(orjson.loads(row["provenance"])) == space]
        if len(same) < len(rows):
            log.warning(
                "%d of the %d nearest chunks are left out, because another model embedded them than the query; "
                "`stream status` shows which, docs/operations.md how to reindex",
                *(len(rows) - len(same), len(rows)),
            )
        return [Hit(row["chunk_id"], row["doc_id"], row["score"], row["text"]) for row in same]

    async def _put(self, place: _Place, puts: Sequence[Put]) -> Sequence[None]:
        names = place.properties
        await self._run(PUT, rows=[_row(put, names) for put in puts], **names)
        return [None] * len(puts)

    async def _run(self, query: str, **parameters: Any) -> list[neo4j.Record]:
        statement = neo4j.Query(query, timeout=self._settings.store_timeout)
        try:
            if not self._reached:  # a query would be tried for seconds, also where TLS or the login is refused
                await self._driver.verify_connectivity()
                self._reached = True
            result = await self._driver.execute_query(
                statement, parameters_=parameters, database_=self._settings.neo4j_database
            )
        except (DriverError, Neo4jError) as error:
            code = getattr(error, "code", None) or type(error).__name__
            sentence = f"{code}: {str(getattr(error, 'message', None) or error).splitlines()[0]}"
            if code in BLAMES_INPUT:
                raise Refused(f"Neo4j refuses it ({sentence})") from error
            if code.startswith(BLAMES_SETTINGS):
                raise ConfigurationError(
                    f"Neo4j at {self._settings.neo4j_uri} does not let us in ({sentence}): "
                    "set STREAM_NEO4J_USER, STREAM_NEO4J_PASSWORD and STREAM_NEO4J_DATABASE"
                ) from error
            if refusal := tls.refusal(error):
                raise ConfigurationError(
                    f"Neo4j cannot be reached at {self._settings.neo4j_uri}, {refusal}; set STREAM_NEO4J_CA_FILE"
                ) from error
            raise Outage(f"Neo4j at {self._settings.neo4j_uri} is not available ({sentence})", "neo4j") from error
        finally:
            progress.made()
        return result.records


def _row(put: Put, names: Mapping[str, str]) -> dict[str, Any]:
    chunk = put.chunk
    properties = {
        "chunk_id": chunk["chunk_id"],
        "version": chunk["version"],
        "doc_id": chunk["doc_id"],
        "text": chunk["text"],
        "table_lines": chunk.get("table_lines"),
        "facet_json": _json(chunk.get("facet_json")),
        "metadata": _json(chunk.get("metadata")),
    }
    made = {
        names["embedded_version"]: chunk["version"],
        names["text_sha256"]: chunk["text_sha256"],
        names["embedding_provenance"]: _json(chunk["embedding_provenance"]),
        names["embedding_sha256"]: sha256(pack(put.vector)),
    }
    # The driver packs numpy's float64 six times faster than a list, and Bolt has no float32.
    return {
        "chunk_id": chunk["chunk_id"],
        "version": chunk["version"],
        "properties": properties,
        "made": made,
        "vector": put.vector.astype(np.float64),
    }


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
