"""Neo4j: a node `:Chunk` for each chunk, and a vector index over them.

A deleted chunk leaves a node `:DeletedChunk` with its version, so that an older record cannot restore the chunk. A map
cannot be a property, so `facet_json` and `metadata` are JSON strings.

Transactions on the same chunk run one after another. Each begins with a MERGE of the chunk's node that sets a property
on it. This takes the lock of the node or, if there is no node, of its entry in the unique index, until the transaction
ends. The transaction reads versions only with the lock
(https://neo4j.com/docs/operations-manual/current/database-internals/concurrent-data-access/).
A delete creates a missing node and deletes it again: no other transaction sees the node. The property never outlives
the transaction. A transaction locks its chunks in the order of their IDs, so two transactions do not deadlock. A chunk
whose node another transaction deleted meanwhile is written again (`again`; Neo4j 2026 ends the whole transaction).

The generations share the nodes, and thus everything else that the graph has about a chunk, `facets` (the tokens of
`stream.facets`) and their full-text index included. Each generation has its own properties for its vectors and their
provenance, and its own vector index. A node `:ChunkGeneration` names the live one.

Statements name the default label, `:Chunk`; `_run` replaces it with the configured one.
"""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import neo4j
import numpy as np
import orjson
from neo4j.exceptions import DriverError, Neo4jError

from stream import facets, metrics, progress, tls
from stream.bisection import isolate
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused
from stream.records import Position, Provenance, Rejected, Tombstone, embedding_space, sha256
from stream.stores.base import (
    FIRST,
    Condition,
    Generation,
    Near,
    NoGeneration,
    Older,
    Origin,
    Put,
    Shown,
    Stored,
    nothing_yet,
    require_first,
    require_version,
    together,
)
from stream.vectors import Vector, pack

log = logging.getLogger(__name__)

OLDEST = "5.26"

VECTOR_PROPERTIES = (
    "embedded_version",
    "embedded_position",  # of the record, as JSON; an earlier release stored none
    "text_sha256",
    "embedding_provenance",
    "embedding_sha256",
    "filterable",  # true; an earlier release stored neither this nor `facets`
)  # stored with a vector
CANDIDATES = 2  # nodes that the index proposes for each one that is wanted
MARGIN = 2  # with a condition: times as many nodes as would hold k that match, if only `few` of all matched
EXACT_NUMBERS = 2**19  # numbers in the vectors of all nodes that match a condition: up to here, all are compared
NODES_AT_ONCE = 1000
NODES_COMPARED_AT_ONCE = 10_000

LABEL = re.compile(r":(Deleted|)Chunk(Generation|)\b")

# The server's errors that a row can cause; the batch is not the cause of any other error.
INPUT_ERRORS = {
    "Neo.ClientError.Statement.ArgumentError",
    "Neo.ClientError.Statement.TypeError",
    "Neo.ClientError.Procedure.ProcedureCallFailed",
}

TOO_LARGE = "Property value is too large to index"  # its error code is not specific: only the message tells it apart

# Neo4j 2026 ends a transaction that waited for the lock of a node which another one has deleted. Neo4j 5 continues.
NODE_DELETED = "Neo.ClientError.Statement.EntityNotFound"

SETTINGS_ERRORS = ("Neo.ClientError.Security.", "Neo.ClientError.Database.DatabaseNotFound")

# The server's errors if another application's nodes, constraints or indexes have the names that we use.
NAME_CONFLICTS = {
    "Neo.ClientError.Schema.ConstraintCreationFailed",
    "Neo.ClientError.Schema.ConstraintWithNameAlreadyExists",
    "Neo.ClientError.Schema.IndexAlreadyExists",
    "Neo.ClientError.Schema.IndexWithNameAlreadyExists",
}

UNIQUE = """
SHOW CONSTRAINTS YIELD type, labelsOrTypes, properties
WHERE properties = ['chunk_id'] AND (type CONTAINS 'UNIQUE' OR type = 'NODE_KEY')
RETURN labelsOrTypes[0] AS label
"""

INDEX = """
SHOW INDEXES YIELD name, labelsOrTypes, properties, options WHERE name = $name
RETURN labelsOrTypes AS labels, properties, options.indexConfig AS config
"""

# Setting `created` locks the node; it is true if this transaction has created the node. It stays null if another
# transaction deleted the node while this one waited for the lock; such a row changes nothing and is named in `again`.
PUT = """
UNWIND $rows AS row
MERGE (chunk:Chunk {chunk_id: row.chunk_id}) ON CREATE SET chunk.created = true ON MATCH SET chunk.created = false
WITH row, chunk
OPTIONAL MATCH (gone:DeletedChunk {chunk_id: row.chunk_id})
WITH row, chunk, gone, chunk.created AS created,
     coalesce(gone.version, -1) <= row.version AND coalesce(chunk[$embedded_version], -1) <= row.version AS newest
REMOVE chunk.created
FOREACH (_ IN CASE WHEN created AND NOT newest THEN [1] ELSE [] END | DELETE chunk)
WITH row, chunk, gone, created, newest
CALL (row, chunk, gone, created, newest) {
    WITH row, chunk, gone WHERE created IS NOT NULL AND newest
    FOREACH (_ IN CASE WHEN coalesce(chunk.version, -1) <= row.version THEN [1] ELSE [] END |
        SET chunk += row.properties)
    SET chunk += row.made
    DELETE gone
    WITH row, chunk
    CALL db.create.setNodeVectorProperty(chunk, $vector, row.vector)
    RETURN count(*) AS applied
}
RETURN sum(applied) AS applied, collect(CASE WHEN created IS NULL THEN row.chunk_id END) AS again
"""

# A node without a version belongs to another application: it stays.
DELETE = """
UNWIND $rows AS row
MERGE (chunk:Chunk {chunk_id: row.chunk_id}) ON CREATE SET chunk.created = true ON MATCH SET chunk.created = false
WITH row, chunk
OPTIONAL MATCH (gone:DeletedChunk {chunk_id: row.chunk_id})
WITH row, chunk, chunk.created AS created, chunk.version AS version,
     coalesce(gone.version, -1) <= row.version AND coalesce(chunk.version, -1) <= row.version AS newest
REMOVE chunk.created
FOREACH (_ IN CASE WHEN created OR version <= row.version THEN [1] ELSE [] END | DETACH DELETE chunk)
FOREACH (_ IN CASE WHEN created IS NOT NULL AND newest THEN [1] ELSE [] END |
    MERGE (gone:DeletedChunk {chunk_id: row.chunk_id}) SET gone.version = row.version)
RETURN count(CASE WHEN created IS NOT NULL AND newest THEN 1 END) AS applied,
       collect(CASE WHEN created IS NULL THEN row.chunk_id END) AS again
"""

STORED = """
UNWIND $chunk_ids AS chunk_id
OPTIONAL MATCH (chunk:Chunk {chunk_id: chunk_id})
OPTIONAL MATCH (gone:DeletedChunk {chunk_id: chunk_id})
WITH chunk_id, chunk, gone, chunk[$embedded_version] AS embedded_version
WHERE embedded_version IS NOT NULL OR gone IS NOT NULL
RETURN chunk_id, chunk.version AS version, chunk.text AS text, embedded_version, chunk[$text_sha256] AS text_sha256,
       size(chunk[$vector]) AS dimensions, gone.version AS deleted
"""

VECTORS = """
UNWIND $chunk_ids AS chunk_id
MATCH (chunk:Chunk {chunk_id: chunk_id})
RETURN chunk.chunk_id AS chunk_id, chunk[$text_sha256] AS text_sha256, chunk[$embedding_provenance] AS provenance,
       chunk[$embedding_sha256] AS digest, chunk[$vector] AS vector
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

# The next nodes in the order of `chunk_id`: another application's nodes without `chunk_id` are never among them.
ADOPT = """
MATCH (chunk:Chunk) WHERE chunk.chunk_id > $after
WITH chunk ORDER BY chunk.chunk_id LIMIT $limit
SET chunk.created = false
WITH chunk
REMOVE chunk.created
FOREACH (_ IN CASE WHEN chunk.version IS NOT NULL AND chunk.embedding_qwen IS NOT NULL THEN [1] ELSE [] END |
    SET chunk.embedded_version = coalesce(chunk.embedded_version, chunk.version),
        chunk.embedding_provenance = coalesce(chunk.embedding_provenance, ''))
RETURN max(chunk.chunk_id) AS last
"""

FORGET = """
MATCH (chunk:Chunk) WHERE chunk.chunk_id > $after
WITH chunk ORDER BY chunk.chunk_id LIMIT $limit
SET chunk += $nothing
RETURN max(chunk.chunk_id) AS last
"""

# The index's scores are those of quantised vectors; the cosines are computed from the stored vectors. One row with a
# list takes half of the time of a row for each node.
RANKED = """
WITH node, 2 * vector.similarity.cosine(node[$vector], $near) - 1 AS cosine
ORDER BY cosine DESC, node.chunk_id LIMIT $k
WITH node, cosine, node[$embedding_provenance] AS provenance
RETURN collect([node.chunk_id, node.doc_id, cosine, provenance = $usual, nullif(provenance, $usual)]) AS found
"""

NEAREST = "CALL db.index.vector.queryNodes($index, $candidates, $near) YIELD node, score" + RANKED

NEAREST_THAT_MATCH = (
    """
CALL db.index.vector.queryNodes($index, $candidates, $near) YIELD node, score
WHERE {condition}
WITH node, score ORDER BY score DESC LIMIT $rescored
"""
    + RANKED
)

# One row without a node means that `limit` or more chunks match.
MATCHING = (
    """
CALL db.index.fulltext.queryNodes($facets_index, $lucene, {limit: $limit}) YIELD node
WITH collect(node) AS matching
UNWIND CASE WHEN size(matching) < $limit THEN matching ELSE [null] END AS node
WITH node WHERE node IS NULL OR node[$vector] IS NOT NULL
"""
    + RANKED
)

AMONG = "UNWIND $chunk_ids AS chunk_id MATCH (node:Chunk {chunk_id: chunk_id}) WHERE node[$vector] IS NOT NULL" + RANKED

SHOWN = """
UNWIND $chunk_ids AS chunk_id
MATCH (chunk:Chunk {chunk_id: chunk_id}) WHERE chunk[$embedded_version] IS NOT NULL
RETURN chunk_id, chunk.doc_id AS doc_id, chunk.version AS version, chunk.text AS text, chunk.metadata AS metadata,
       chunk.facet_json AS facet_json
"""

ORIGIN = """
MATCH (chunk:Chunk {chunk_id: $chunk_id}) WHERE chunk[$embedded_version] IS NOT NULL
RETURN chunk[$embedded_version] AS version, chunk[$embedding_provenance] AS provenance,
       chunk[$embedded_position] AS position
"""


class _NodeDeleted(Outage):
    """The same statement succeeds if it is sent again."""


class _Neighbour(NamedTuple):
    """One element of `found`. `usual`: the provenance is the one that the query expects, and is left out."""

    chunk_id: str
    doc_id: str
    cosine: float
    usual: bool
    provenance: str | None


@dataclass(frozen=True, slots=True)
class _Schema:
    """Names of a generation's properties and indexes: plain for the first, with its number at the end for others."""

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
    def version(self) -> str:
        return self._named("embedded_version")

    @property
    def provenance(self) -> str:
        return self._named("embedding_provenance")

    @property
    def count_index(self) -> str:
        return f"{self.settings.neo4j_label.lower()}_{self.version}"

    @property
    def origin_index(self) -> str:
        return f"{self.settings.neo4j_label.lower()}_{self.provenance}"

    @property
    def filterable(self) -> str:
        return self._named("filterable")

    @property
    def filterable_index(self) -> str:
        return f"{self.settings.neo4j_label.lower()}_{self.filterable}"

    @property
    def facets_index(self) -> str:
        """The full-text index over `facets`, which the generations share."""
        return f"{self.settings.neo4j_label.lower()}_facets"

    @property
    def properties(self) -> dict[str, str]:
        """Names of properties, as the parameters of a query."""
        return {"vector": self.vector} | {name: self._named(name) for name in VECTOR_PROPERTIES}


class Neo4jStore:
    """The vectors of the configured generation, or of the live one. Use as an async context manager."""

    name = "Neo4j"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reached = False
        password = settings.neo4j_password
        uri = settings.neo4j_uri
        security: dict[str, Any] = {}
        files = settings.tls_files("neo4j")
        if any(files):  # the driver accepts an SSL context only for a scheme without +s
            uri, security = uri.replace("+s://", "://", 1), {"ssl_context": tls.context(*files)}
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
        """Raises `ConfigurationError` if another application's constraints or indexes have the names."""
        settings = self._settings
        label, name = settings.neo4j_label, settings.neo4j_label.lower()
        await self._run(f"CREATE CONSTRAINT {name}_id IF NOT EXISTS FOR (c:Chunk) REQUIRE c.chunk_id IS UNIQUE")
        await self._run(
            f"CREATE CONSTRAINT deleted_{name}_id IF NOT EXISTS FOR (c:DeletedChunk) REQUIRE c.chunk_id IS UNIQUE"
        )
        await self._run(
            f"CREATE CONSTRAINT {name}_generation IF NOT EXISTS FOR (g:ChunkGeneration) "
            "REQUIRE (g.index, g.flow) IS UNIQUE"
        )
        await self._run(f"CREATE INDEX {name}_doc_id IF NOT EXISTS FOR (c:Chunk) ON (c.doc_id)")
        unique = {row["label"] for row in await self._run(UNIQUE)}
        if not unique >= {label, f"Deleted{label}"}:
            raise ConfigurationError(
                f"Neo4j cannot create the constraints {name}_id and deleted_{name}_id, because other constraints have "
                "these names: set STREAM_NEO4J_LABEL to another label"
            )
        schema = await self._schema()
        if schema.generation == FIRST and not await self._run(INDEX, name=schema.count_index):
            await self._sweep(ADOPT)  # nodes of an earlier release belong to the first generation
        await self._run(f"CREATE INDEX {schema.origin_index} IF NOT EXISTS FOR (c:Chunk) ON (c.{schema.provenance})")
        await self._run(f"CREATE INDEX {schema.count_index} IF NOT EXISTS FOR (c:Chunk) ON (c.{schema.version})")
        await self._run(
            f"CREATE INDEX {schema.filterable_index} IF NOT EXISTS FOR (c:Chunk) ON (c.{schema.filterable})"
        )
        await self._run(
            f"CREATE FULLTEXT INDEX {schema.facets_index} IF NOT EXISTS FOR (c:Chunk) ON EACH [c.facets] "
            "OPTIONS {indexConfig: {`fulltext.analyzer`: 'keyword', `fulltext.eventually_consistent`: false}}"
        )
        await self._run(
            f"CREATE VECTOR INDEX `{schema.index}` IF NOT EXISTS FOR (c:Chunk) ON (c.`{schema.vector}`) "
            "OPTIONS {indexConfig: $config}",
            config=_vector_index(settings),
        )
        if await self._index_config(schema) is None:
            raise ConfigurationError(
                f"Neo4j cannot create the vector index {schema.index}, because another index or constraint has that "
                "name: set STREAM_NEO4J_INDEX to another name"
            )
        if not await self._has_facets_index(schema):
            raise ConfigurationError(
                f"Neo4j cannot create the full-text index {schema.facets_index}, because a constraint has that name or "
                "another index is over the same property: set STREAM_NEO4J_LABEL to another label"
            )
        for index in (schema.index, schema.facets_index):
            await self._run("CALL db.awaitIndex($name, $seconds)", name=index, seconds=int(settings.store_timeout))

    async def version(self) -> str:
        """The server's, for example 5.26.30, or 5.27-aura."""
        components = await self._run("CALL dbms.components() YIELD name, versions RETURN name, versions[0] AS version")
        return str(next(row["version"] for row in components if row["name"] == "Neo4j Kernel"))

    async def examine(self) -> str:
        """Version and index, in one line; raises a `StreamError` if one is wrong. Creates nothing."""
        require_version(self.name, version := await self.version(), OLDEST)
        try:
            schema = await self._schema()
        except NoGeneration as error:
            return f"Neo4j {version}, {error}"
        await self._has_facets_index(schema)
        config = await self._index_config(schema)
        index = f"with {_described(config)}" if config else "does not exist yet, the index worker creates it"
        return f"Neo4j {version}, vector index {schema.index} {index}"

    def index(self, generation: int) -> str:
        """The name of a generation's vector index."""
        return _Schema(self._settings, generation).index

    async def go_live(self, generation: int) -> None:
        """Makes this the live generation: readers and writers of the live one use it from their next query.

        The pointer records an unfinished swap until `swapped` is called.
        """
        await self._run(SWAP, index=self._settings.neo4j_index, flow=self._settings.flow, live=generation)

    async def swapped(self, generation: int) -> None:
        """Records that the swap to this generation has ended; does nothing if another generation is live by now."""
        await self._run(SWAPPED, index=self._settings.neo4j_index, flow=self._settings.flow, live=generation)

    async def pointers(self) -> list[Generation]:
        """The live generation of each flow that has a pointer."""
        rows = await self._run(POINTERS, index=self._settings.neo4j_index)
        return [Generation(row["live"], row["flow"], frozenset({self.name}), row["swapping"]) for row in rows]

    async def older(self, generation: int, than: int) -> Older:
        """Chunks whose vector a generation lacks, or has in a lower version than the generation `than`."""
        version, compared = (_Schema(self._settings, number).version for number in (generation, than))
        found: Older = {}
        last: str | None = ""
        while last is not None:
            (row,) = await self._run(OLDER, after=last, limit=NODES_COMPARED_AT_ONCE, version=version, than=compared)
            found |= {chunk_id: (shown, lower) for chunk_id, shown, lower in row["older"]}
            last = row["last"]
        return found

    async def drop(self, generation: int) -> None:
        """Deletes the generation's indexes and properties; the nodes stay. Idempotent, also after an interruption."""
        schema = _Schema(self._settings, generation)
        await self._run(f"DROP INDEX `{schema.index}` IF EXISTS")
        await self._run(f"DROP INDEX {schema.count_index} IF EXISTS")
        await self._run(f"DROP INDEX {schema.origin_index} IF EXISTS")
        await self._run(f"DROP INDEX {schema.filterable_index} IF EXISTS")
        await self._sweep(FORGET, nothing=dict.fromkeys(schema.properties.values()))

    async def _sweep(self, statement: str, **parameters: Any) -> None:
        """Runs a statement once over all chunk nodes, `NODES_AT_ONCE` a transaction."""
        last = ""
        while last is not None:
            (row,) = await self._run(statement, after=last, limit=NODES_AT_ONCE, **parameters)
            last = row["last"]

    async def live(self) -> int:
        """The configured generation, or the flow's live one; raises `NoGeneration` if it has none."""
        settings = self._settings
        if settings.generation:
            return settings.generation
        for row in await self._run(LIVE, index=settings.neo4j_index, flow=settings.flow):
            return int(row["live"])
        require_first(settings)
        return FIRST

    async def _schema(self) -> _Schema:
        return _Schema(self._settings, await self.live())

    async def _index_config(self, schema: _Schema) -> Mapping[str, Any] | None:
        """The options of the generation's vector index, defaults included; None if it does not exist."""
        settings = self._settings
        rows = await self._run(INDEX, name=schema.index)
        if not rows:
            return None
        if (rows[0]["labels"], rows[0]["properties"]) != ([settings.neo4j_label], [schema.vector]):
            raise ConfigurationError(
                f"Neo4j's index {schema.index} is not over the property {schema.vector} of :{settings.neo4j_label}: "
                "another application made it, set STREAM_NEO4J_INDEX to another name"
            )
        config: dict[str, Any] = rows[0]["config"]
        if (dimensions := config["vector.dimensions"]) != settings.embed_dimensions:
            raise ConfigurationError(
                f"Neo4j's index {schema.index} has {dimensions} dimensions, "
                f"STREAM_EMBED_DIMENSIONS is {settings.embed_dimensions}: set STREAM_NEO4J_INDEX to another name"
            )
        return config

    async def _has_facets_index(self, schema: _Schema) -> bool:
        rows = await self._run(INDEX, name=schema.facets_index)
        ours = [self._settings.neo4j_label], ["facets"], "keyword"
        if rows and (rows[0]["labels"], rows[0]["properties"], rows[0]["config"].get("fulltext.analyzer")) != ours:
            raise ConfigurationError(
                f"Neo4j's index {schema.facets_index} is not a full-text index over the property facets of "
                f":{self._settings.neo4j_label}: another application made it, set STREAM_NEO4J_LABEL to another label"
            )
        return bool(rows)

    async def write(self, writes: Sequence[Put | Tombstone]) -> dict[str, Rejected]:
        """Puts in two transactions at the same time, then deletes in one.

        While Neo4j runs the first transaction, this process packs the rows of the second. A transaction that Neo4j
        rejects is bisected until the rejected item is alone.
        """
        puts = [write for write in writes if isinstance(write, Put)]
        tombstones = [write for write in writes if isinstance(write, Tombstone)]
        put, half = partial(self._put, await self._schema()), (len(puts) + 1) // 2
        halves = await together(*(isolate(part, put, "refused-by-neo4j") for part in (puts[:half], puts[half:])))
        outcomes = [*halves[0], *halves[1], *await isolate(tombstones, self._delete, "refused-by-neo4j")]
        names = [*(put.chunk_id for put in puts), *(tombstone.chunk_id for tombstone in tombstones)]
        return {name: outcome for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, Rejected)}

    async def count(self) -> int:
        """Nodes `:Chunk` with a vector of the generation, counted by an index; 0 without a generation."""
        try:
            return await self._count(await self._schema())
        except NoGeneration:
            return 0

    async def _count(self, schema: _Schema) -> int:
        (row,) = await self._run(f"MATCH (chunk:Chunk) WHERE chunk.{schema.version} IS NOT NULL RETURN count(*) AS n")
        return int(row["n"])

    async def unfiltered(self, generation: int | None = None) -> int:
        """Nodes with a vector of the generation and no `facets`, counted by two indexes; 0 without a generation."""
        try:
            schema = _Schema(self._settings, generation) if generation else await self._schema()
        except NoGeneration:
            return 0
        if not await self._run(INDEX, name=schema.filterable_index):  # only an earlier release has written
            return await self._count(schema)
        (row,) = await self._run(
            f"RETURN COUNT {{ MATCH (chunk:Chunk) WHERE chunk.{schema.version} IS NOT NULL }} - "
            f"COUNT {{ MATCH (chunk:Chunk) WHERE chunk.{schema.filterable} IS NOT NULL }} AS n"
        )
        return max(0, int(row["n"]))  # a chunk may be stored between the two counts

    async def origins(self) -> dict[str, int]:
        """Chunks by `embedding_provenance` as JSON, "" for those of earlier releases; empty without a generation.

        An index counts them.
        """
        try:
            schema = await self._schema()
        except NoGeneration:
            return {}
        rows = await self._run(
            f"MATCH (chunk:Chunk) WHERE chunk.{schema.provenance} IS NOT NULL "
            f"RETURN chunk.{schema.provenance} AS origin, count(*) AS n ORDER BY n DESC"
        )
        return {row["origin"]: row["n"] for row in rows}

    async def stored(self, chunk_ids: Sequence[str]) -> dict[str, Stored]:
        """`complete`: the generation's vector belongs to the node's present text and version."""
        rows = await self._run(STORED, chunk_ids=list(chunk_ids), **(await self._schema()).properties)
        return {row["chunk_id"]: self._stored(row) for row in rows}

    def _stored(self, row: neo4j.Record) -> Stored:
        if row["embedded_version"] is None:
            return Stored(row["deleted"], None, complete=True)
        version, text_sha256 = row["version"], sha256(row["text"] or "")
        own = row["embedded_version"], row["text_sha256"], row["dimensions"]
        return Stored(version, text_sha256, own == (version, text_sha256, self._settings.embed_dimensions))

    async def vectors(self, chunk_ids: Sequence[str], provenance: Provenance) -> dict[str, tuple[str, bytes]]:
        """Vectors of these chunks with this provenance, as `text_sha256` and packed vector.

        A vector that is not what was written is left out, with a warning.
        """
        found = {}
        for row in await self._run(VECTORS, chunk_ids=list(chunk_ids), **(await self._schema()).properties):
            if row["provenance"] != _json(provenance) or row["digest"] is None:
                continue
            vector = pack(np.array(row["vector"] or (), np.float32))
            if _digest(vector) == row["digest"]:
                found[row["chunk_id"]] = row["text_sha256"], vector
            else:
                log.warning(
                    "Neo4j's vector of %r is not what was written: the chunk is embedded again", row["chunk_id"]
                )
        return found

    async def nearest(
        self,
        vector: Vector,
        k: int,
        provenance: Provenance,
        generation: int | None = None,
        condition: Condition | None = None,
    ) -> list[Near]:
        """The k chunks whose vectors (dimensions,) have the highest cosine with `vector`, among those that match.

        The index proposes `CANDIDATES` times k chunks, whose cosines are then computed exactly. If few chunks match a
        condition, the cosines of all of them are computed. Chunks of another model than the query's are left out, with
        a warning: cosines across models mean nothing.
        """
        schema = _Schema(self._settings, generation) if generation else await self._schema()
        usual = {"usual": _json(provenance)}
        near = {"near": vector.tolist(), "k": k, **usual, **schema.properties}
        try:
            found = await self._candidates(schema, near, condition)
        except Refused:
            if await self._index_config(schema):
                raise
            raise nothing_yet(self._settings, f"Neo4j's vector index {schema.index}", "STREAM_NEO4J_INDEX") from None
        space = embedding_space(provenance)
        same = [each for each in found if each.usual or _space(each.provenance) == space]
        if len(same) < len(found):
            log.warning(
                "%d of the %d nearest chunks are left out: their model is unknown or not the query's; `stream status` "
                "lists the models, docs/operations.md explains how to reindex",
                *(len(found) - len(same), len(found)),
            )
        return [Near(each.chunk_id, each.doc_id, each.cosine) for each in same]

    async def _candidates(
        self, schema: _Schema, near: Mapping[str, Any], condition: Condition | None
    ) -> list[_Neighbour]:
        k = near["k"]
        proposed = {"index": schema.index, "candidates": CANDIDATES * k, **near}
        if condition is None:
            return await self._ranked(NEAREST, **proposed)
        few = max(EXACT_NUMBERS // self._settings.embed_dimensions, 1)
        matching = {"facets_index": schema.facets_index, "lucene": condition.lucene, **near}
        found = await self._ranked(MATCHING, limit=few, **matching)
        if found and found[0].chunk_id is None:
            (row,) = await self._run("MATCH (chunk:Chunk) RETURN count(*) AS n")
            proposed["candidates"] = max(k, min(row["n"], MARGIN * k * row["n"] // few))
            statement = NEAREST_THAT_MATCH.format(condition=condition.cypher)
            found = await self._ranked(statement, **proposed, rescored=CANDIDATES * k, **condition.parameters)
            if len(found) < k:
                found = await self._ranked(MATCHING, limit=row["n"] + 1, **matching)
        return found

    async def _ranked(self, statement: str, **parameters: Any) -> list[_Neighbour]:
        (row,) = await self._execute(statement, parameters, neo4j.RoutingControl.READ)
        return [_Neighbour(*each) for each in row["found"]]

    async def cosines(self, vector: Vector, chunk_ids: Sequence[str], generation: int) -> dict[str, float]:
        """The cosines of these chunks' vectors and `vector`; chunks without a vector are left out."""
        names = _Schema(self._settings, generation).properties
        near = {"near": vector.tolist(), "k": len(chunk_ids), "usual": None}
        found = await self._ranked(AMONG, chunk_ids=list(chunk_ids), **near, **names)
        return {each.chunk_id: each.cosine for each in found}

    async def shown(self, chunk_ids: Sequence[str], generation: int) -> dict[str, Shown]:
        """Those that have a vector of the generation."""
        names = _Schema(self._settings, generation).properties
        rows = await self._run(SHOWN, chunk_ids=list(chunk_ids), **names)
        objects = ("metadata", "facet_json")
        return {row["chunk_id"]: Shown(**row.data() | {name: _object(row[name]) for name in objects}) for row in rows}

    async def origin(self, chunk_id: str, generation: int) -> Origin | None:
        """That of its vector."""
        for row in await self._run(ORIGIN, chunk_id=chunk_id, **_Schema(self._settings, generation).properties):
            position = _object(row["position"])
            made: Any = _object(row["provenance"] or None)  # "" in a node of an earlier release
            return Origin(row["version"], made, Position(**position) if position else None)
        return None

    async def _put(self, schema: _Schema, puts: Sequence[Put]) -> Sequence[None]:
        names = schema.properties
        await self._apply(PUT, [_row(put, names) for put in puts], **names)
        return [None] * len(puts)

    async def _delete(self, tombstones: Sequence[Tombstone]) -> Sequence[None]:
        await self._apply(DELETE, [{"chunk_id": t.chunk_id, "version": t.version} for t in tombstones])
        return [None] * len(tombstones)

    async def _apply(self, statement: str, rows: list[dict[str, Any]], **names: str) -> None:
        """Writes rows in the order of `chunk_id` and counts those that a higher version outranks."""
        rows.sort(key=itemgetter("chunk_id"))
        while rows:
            try:
                (row,) = await self._run(statement, rows=_Rows(rows), **names)
            except _NodeDeleted:
                continue
            again = set(row["again"])
            metrics.outranked.labels(self.name).inc(len(rows) - len(again) - row["applied"])
            rows = [each for each in rows if each["chunk_id"] in again]

    async def _run(self, query: str, **parameters: Any) -> list[neo4j.Record]:
        """In a cluster, the leader answers: it has every finished write."""
        return await self._execute(query, parameters, neo4j.RoutingControl.WRITE)

    async def _execute(
        self, query: str, parameters: Mapping[str, Any], routing: neo4j.RoutingControl
    ) -> list[neo4j.Record]:
        """Raises `Outage` if Neo4j does not answer within `STREAM_STORE_TIMEOUT`: the driver itself has no timeout."""
        where, bound = self._settings.neo4j_uri, self._settings.store_timeout
        try:
            async with asyncio.timeout(bound):
                if not self._reached:  # a query retries for seconds, even if TLS or the login fails
                    await self._driver.verify_connectivity()
                    self._reached = True
                result = await self._driver.execute_query(
                    neo4j.Query(self._with_label(query), timeout=bound),
                    parameters_=dict(parameters),
                    database_=self._settings.neo4j_database,
                    routing_=routing,
                )
        except TimeoutError as error:
            raise Outage(f"Neo4j at {where} has not answered for {bound:g} s", "neo4j") from error
        except (DriverError, Neo4jError) as error:
            code = getattr(error, "code", None) or type(error).__name__
            sentence = f"{code}: {str(getattr(error, 'message', None) or error).splitlines()[0]}"
            if code in INPUT_ERRORS or TOO_LARGE in sentence:
                raise Refused(f"Neo4j rejected the query ({sentence})") from error
            if code == NODE_DELETED:
                raise _NodeDeleted(f"a node was deleted while Neo4j read it ({sentence})", "neo4j") from error
            if code.startswith(SETTINGS_ERRORS):
                raise ConfigurationError(
                    f"Neo4j at {self._settings.neo4j_uri}: authentication failed or there is no such database "
                    f"({sentence}): set STREAM_NEO4J_USER, STREAM_NEO4J_PASSWORD and STREAM_NEO4J_DATABASE"
                ) from error
            if code in NAME_CONFLICTS:
                raise ConfigurationError(
                    f"another application has nodes :{self._settings.neo4j_label} in Neo4j, or constraints or indexes "
                    f"of their names ({sentence}): set STREAM_NEO4J_LABEL to another label"
                ) from error
            if refusal := tls.refusal(error, "STREAM_NEO4J"):
                raise ConfigurationError(f"Neo4j cannot be reached at {self._settings.neo4j_uri}, {refusal}") from error
            raise Outage(f"Neo4j at {self._settings.neo4j_uri} is not available ({sentence})", "neo4j") from error
        finally:
            progress.made()
        return result.records

    def _with_label(self, query: str) -> str:
        return LABEL.sub(rf":\1{self._settings.neo4j_label}\2", query)


def _vector_index(settings: Settings) -> dict[str, Any]:
    """The options of a new vector index; those that are not set are Neo4j's defaults."""
    options = {
        "vector.dimensions": settings.embed_dimensions,
        "vector.similarity_function": "cosine",
        "vector.hnsw.m": settings.neo4j_hnsw_m,
        "vector.hnsw.ef_construction": settings.neo4j_hnsw_ef_construction,
        "vector.quantization.enabled": settings.neo4j_quantization,
    }
    return {name: value for name, value in options.items() if value is not None}


def _described(config: Mapping[str, Any]) -> str:
    # Neo4j 2026 reports a type, whose default is binary; Neo4j 5 has one type.
    kept = not config.get("vector.quantization.enabled", config.get("vector.quantization.type") != "NONE")
    return (
        f"{config['vector.dimensions']} dimensions, M {config['vector.hnsw.m']}, "
        f"ef_construction {config['vector.hnsw.ef_construction']}, {'not quantised' if kept else 'quantised'}"
    )


class _Rows(list[dict[str, Any]]):
    """Rows with a short `repr`: the driver computes that of all parameters for its log, even if nothing is logged."""

    def __repr__(self) -> str:
        return f"<{len(self)} rows>"


def _row(put: Put, names: Mapping[str, str]) -> dict[str, Any]:
    chunk = put.chunk
    properties = {
        "version": chunk["version"],
        "doc_id": chunk["doc_id"],
        "text": chunk["text"],
        "table_lines": chunk.get("table_lines"),
        "facet_json": _json(chunk.get("facet_json")),
        "metadata": _json(chunk.get("metadata")),
        "facets": facets.tokens(chunk),
    }
    made = {
        names["embedded_version"]: chunk["version"],
        names["embedded_position"]: _json(chunk.get("position")),
        names["text_sha256"]: chunk["text_sha256"],
        names["embedding_provenance"]: _json(chunk["embedding_provenance"]),
        names["embedding_sha256"]: _digest(pack(put.vector)),
        names["filterable"]: True,
    }
    # The driver packs numpy's float64 six times faster than a list, and Bolt has no float32.
    return {
        "chunk_id": chunk["chunk_id"],
        "version": chunk["version"],
        "properties": properties,
        "made": made,
        "vector": put.vector.astype(np.float64),
    }


def _digest(vector: bytes) -> str:
    """Shows whether a vector has changed. It is that of the vector's base64, as earlier releases have stored it."""
    return hashlib.sha256(base64.b64encode(vector)).hexdigest()


def _space(provenance: str | None) -> tuple[object, ...] | None:
    """None for a node of an earlier release or of another application."""
    try:
        return embedding_space(orjson.loads(provenance or ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _object(value: str | None) -> dict[str, Any] | None:
    return None if value is None else orjson.loads(value)


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
