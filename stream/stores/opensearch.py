"""OpenSearch: a document for each chunk, its terms as `rank_features`, its text analysed as English.

The guard is OpenSearch's external versioning. OpenSearch forgets the version of a deleted document after
`index.gc_deletes`. So a deleted chunk leaves a document with its version and no searchable content, and an older record
cannot restore the chunk.
"""

import asyncio
import base64
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as OpenSearchConnectionError
from opensearchpy.exceptions import OpenSearchException, TransportError

from stream import facets, metrics, progress, tls
from stream.bisection import isolate
from stream.config import Settings
from stream.errors import ConfigurationError, Outage, Refused
from stream.records import Placed, Position, Rejected, Tombstone
from stream.stores import aws
from stream.stores.base import (
    FIRST,
    Generation,
    Older,
    Origin,
    Put,
    Shown,
    Stored,
    nothing_yet,
    require_first,
    require_version,
)
from stream.stores.nodes import COOLDOWN, FewestUnanswered, Node

log = logging.getLogger(__name__)

OLDEST = "2.19"
ID_BYTES = 512  # OpenSearch's limit of an `_id`
MOST_ORIGINS = 100
COMPARED_AT_ONCE = 5000  # documents; a search returns at most 10,000
PROBE_ID = "\x00probe"  # not a possible chunk_id: those have no control characters

FIELDS: dict[str, Any] = {
    "chunk_id": {"type": "keyword"},
    "doc_id": {"type": "keyword"},
    "version": {"type": "long"},
    "text": {"type": "text", "analyzer": "english"},
    "table_lines": {"type": "text", "analyzer": "english"},
    "facet_json": {"type": "object", "enabled": False},
    "metadata": {"type": "object", "enabled": False},
    "text_sha256": {"type": "keyword"},
    "splade_terms": {"type": "rank_features"},
    "splade_norm": {"type": "float"},
    "splade_provenance": {"type": "object", "enabled": False},
}
ADDED = {  # added to an index of an earlier release when a worker starts
    "deleted": {"type": "boolean"},
    "splade_origin": {"type": "keyword"},  # the provenance as a keyword, which can be counted
    "position": {"type": "object", "enabled": False},  # of the record from which the document was made
    "facets": {"type": "keyword"},  # one field for all keys: a field for each would make the mapping grow without end
}
MAPPINGS: dict[str, Any] = {"dynamic": "strict", "properties": FIELDS | ADDED}
# Until a generation is searched. OpenSearch's own default is one replica.
LOADING = {"refresh_interval": "-1", "auto_expand_replicas": False, "number_of_replicas": 0}
DELETED = {"term": {"deleted": True}}
ALIVE = {"bool": {"must_not": DELETED}}

# A version from here on is a timestamp: 10^11 ms since 1970 is in 1973, and no producer counts that far.
FIRST_TIMESTAMP = 10**11
CONFLICT = 409  # the index has a higher version
CONFLICTING = re.compile(r"current version \[(\d+)\]")
FORBIDDEN = re.compile(r"no permissions for \[(.+?)\] and User \[name=([^,\]]+)")  # the security plugin's reason

Write = tuple[int, int]  # `_seq_no` and `_primary_term` of a document's last write

PROBE_DOCUMENT: Any = {
    "chunk_id": PROBE_ID,
    "doc_id": "-",
    "version": 0,
    "text": "-",
    "text_sha256": "-",
    "splade_terms": {"-": 1.0},
    "splade_norm": 1.0,
    "splade_provenance": {},
}
PROBE = (
    Put(PROBE_DOCUMENT, np.zeros(0, np.float32)),
    Tombstone(PROBE_ID, 0),
)  # the tombstone comes last, so the probe counts as deleted


class OpenSearchStore:
    """The terms and texts of the configured generation, or of the live one. Use as an async context manager."""

    name = "OpenSearch"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = settings.opensearch_alias
        self._alias = self.alias(settings.flow)
        self._target = self.index(settings.generation) if settings.generation else self._alias
        addresses = settings.opensearch_urls
        self._where = ", ".join(addresses)
        encrypted = any(address.startswith("https:") for address in addresses)
        self._client = AsyncOpenSearch(
            hosts=addresses,
            connection_class=Node,
            selector_class=FewestUnanswered,
            dead_timeout=COOLDOWN,
            ssl_context=tls.context(*settings.tls_files("opensearch")) if encrypted else None,
            headers=_authorization(settings),
            sign=aws.signer(settings.opensearch_aws_region) if settings.opensearch_aws_region else None,
            timeout=settings.store_timeout,
            max_retries=len(addresses) - 1,
        )

    async def __aenter__(self) -> "OpenSearchStore":
        return self

    async def __aexit__(self, *_: object) -> None:
        transport = self._client.transport
        transport.max_retries = 0  # a request that nobody waits for would open connections again
        for node in transport.seed_connections:  # the client closes only those that have not failed
            await node.close()

    def alias(self, flow: str) -> str:
        """The alias that points to the flow's live index."""
        return f"{self._prefix}.{flow}" if flow else self._prefix

    def index(self, generation: int) -> str:
        """The name of a generation's index."""
        return f"{self._prefix}-{generation}"

    async def set_up(self) -> None:
        """Creates the index if there is none, the first one with its alias.

        Raises `ConfigurationError` if the index has other fields (it would reject every document) or belongs to another
        flow, or if the first index exists and is not live.
        """
        if not await self._exists(self._target):
            await self.claim()
        if not await self._exists(self._target):
            raise ConfigurationError(
                f"OpenSearch's index {self.index(FIRST)} exists, but the alias {self._alias} does not point to it: "
                "`stream reindex status` shows its flow, `stream reindex start` continues with it or creates another"
            )
        await self._indexes()
        await self._call("PUT", f"/{self._target}/_mapping", body={"properties": ADDED})

    async def claim(self) -> bool:
        """Creates the generation's index; False if it exists. Of several concurrent calls only one returns True."""
        try:
            await self._make()
        except Outage as outage:
            if await self._exists(self.index(self._settings.generation or FIRST)):
                return False
            cause = outage.__cause__
            if isinstance(cause, TransportError) and cause.status_code == 400:
                raise ConfigurationError(
                    f"OpenSearch does not create the index: {_reason(cause)}; correct STREAM_OPENSEARCH_SHARDS, "
                    "STREAM_OPENSEARCH_REPLICAS or STREAM_OPENSEARCH_INDEX_SETTINGS"
                ) from outage
            raise
        return True

    async def _make(self) -> None:
        mappings = MAPPINGS | {"_meta": {"flow": self._settings.flow}}
        if self._settings.generation is None:
            require_first(self._settings)
            body = {"settings": self._wanted, "mappings": mappings, "aliases": {self._alias: {}}}
            await self._call("PUT", f"/{self.index(FIRST)}", body=body)
        else:
            await self._call("PUT", f"/{self._target}", body={"settings": self._wanted | LOADING, "mappings": mappings})

    @property
    def _wanted(self) -> dict[str, Any]:
        """The configured settings of an index."""
        replicas = self._settings.opensearch_replicas
        copies: dict[str, Any] = {"auto_expand_replicas": "0-1"}
        if replicas is not None:
            copies = {"auto_expand_replicas": False, "number_of_replicas": replicas}
        shards = {"number_of_shards": self._settings.opensearch_shards}
        return shards | copies | self._settings.opensearch_index_settings

    async def generations(self) -> list[Generation]:
        """The generations of all flows, by number."""
        found = []
        for name, index in (await self._described(f"{self._prefix}-*")).items():
            number = name.removeprefix(f"{self._prefix}-")
            if number.isdecimal():
                flow = index["mappings"].get("_meta", {}).get("flow", "")
                shown = frozenset({self.name} if self.alias(flow) in index["aliases"] else ())
                found.append(Generation(int(number), flow, shown))
        return sorted(found, key=lambda generation: generation.number)

    async def settle(self, generation: int) -> None:
        """Reverts the settings for fast loading: writes are searchable within a second and replicated from now on."""
        index = self.index(generation)
        settled = {"refresh_interval": None, **self._wanted}
        await self._call("PUT", f"/{index}/_settings", body={n: settled[n] for n in LOADING if n in settled})
        await self._call("POST", f"/{index}/_refresh")

    async def go_live(self, generation: int) -> None:
        """Points the alias to this generation: readers and writers use it from their next request."""
        actions = [
            {"remove": {"index": f"{self._prefix}-*", "alias": self._alias, "must_exist": False}},
            {"add": {"index": self.index(generation), "alias": self._alias}},
        ]
        await self._call("POST", f"/{self.index(generation)}/_refresh")
        await self._call("POST", "/_aliases", body={"actions": actions})

    async def drop(self, generation: int) -> None:
        """Deletes the generation's index if it exists."""
        await self._call("DELETE", f"/{self.index(generation)}", ignore_unavailable="true")

    async def older(self, generation: int, than: int) -> Older:
        """Chunks whose document a generation lacks, or has in a lower version than the generation `than`.

        The document of a deleted chunk has the version of its tombstone.
        """
        found: Older = {}
        page: dict[str, Any] = {
            "size": COMPARED_AT_ONCE,
            "sort": ["chunk_id"],
            "_source": False,
            "docvalue_fields": ["chunk_id", "deleted"],
            "version": True,
            "track_total_hits": False,
        }
        await self._call("POST", f"/{self.index(than)}/_refresh")
        while hits := (await self._call("POST", f"/{self.index(than)}/_search", body=page))["hits"]["hits"]:
            documents = await self._get([hit["_id"] for hit in hits], self.index(generation), _source="false")
            versions = {document["_id"]: document["_version"] for document in documents}
            for hit in hits:
                shown, version = hit["_version"], versions.get(hit["_id"])
                gone = version is None and "deleted" in hit["fields"]
                if not gone and shown > (-1 if version is None else version):
                    found[hit["fields"]["chunk_id"][0]] = shown, version
            page["search_after"] = hits[-1]["sort"]
        return found

    async def version(self) -> str:
        """The server's, for example 2.19.5."""
        return str((await self._call("GET", "/"))["version"]["number"])

    async def examine(self) -> str:
        """Version and index, in one line; raises a `StreamError` if one is wrong. Creates nothing."""
        require_version(self.name, version := await self.version(), OLDEST)
        creator = "`stream reindex start`" if self._settings.flow else "the index worker"
        indexes = ", ".join(await self._indexes()) or f"nothing yet, {creator} creates it"
        return f"OpenSearch {version}, {self._target} points to {indexes}"

    async def unlike_settings(self) -> list[str]:
        """What settings of the index are unlike the configured ones, in words; nothing if there is no index yet."""
        return [
            f"{name} of {index} is {found}, not {value}"
            for index, described in (await self._described(self._target, flat_settings="true")).items()
            for name, value in self._wanted.items()
            if (found := described["settings"].get(f"index.{name}")) != _as_opensearch_shows(value)
        ]

    async def _indexes(self) -> list[str]:
        """The alias's indexes, or the generation's; raises `ConfigurationError` for another flow or wrong fields."""
        described = await self._described(self._target)
        for index, found in described.items():
            flow = found["mappings"].get("_meta", {}).get("flow", "")
            if flow != self._settings.flow:
                raise ConfigurationError(
                    f"OpenSearch's index {index} is a generation of {_called(flow)}, not of "
                    f"{_called(self._settings.flow)}: `stream reindex status` lists the generations of each flow"
                )
            fields = found["mappings"].get("properties", {})
            for name, field in FIELDS.items():
                if fields.get(name, {}).get("type", "object") != field["type"]:
                    raise ConfigurationError(
                        f"OpenSearch's index {index} has no field {name} of type {field['type']}: another "
                        "application made it, set STREAM_OPENSEARCH_ALIAS to another name"
                    )
        return list(described)

    async def _exists(self, name: str) -> bool:
        return bool(await self._described(name))

    async def _described(self, name: str, **params: str) -> dict[str, Any]:
        """Mappings and aliases of the index, or of those of an alias or a pattern; empty if there is none.

        It is the only request for metadata, so a role needs one permission for all of them.
        """
        described: dict[str, Any] = await self._call("GET", f"/{name}", ignore_unavailable="true", **params)
        return described

    async def write(self, writes: Sequence[Put | Tombstone]) -> dict[str, Rejected]:
        """One `_bulk` request. A document is rejected alone; an overloaded or blocked index is an `Outage`."""
        outcomes = await isolate(writes, self._bulk, "refused-by-opensearch")
        return {
            write.chunk_id: outcome
            for write, outcome in zip(writes, outcomes, strict=True)
            if isinstance(outcome, Rejected)
        }

    async def _bulk(self, writes: Sequence[Put | Tombstone]) -> list[Rejected | None]:
        """Sends the probe after a rejection: if the index rejects it too, the index is the cause: an `Outage`."""
        outcomes = await self._send(writes)
        refused = [i for i, outcome in enumerate(outcomes) if outcome]
        if refused:
            if probe_rejection := next(filter(None, await self._send(PROBE)), None):
                raise Outage(probe_rejection.detail, "opensearch")
            for i, outcome in zip(refused, await self._send([writes[i] for i in refused]), strict=True):
                outcomes[i] = outcome
        return outcomes

    async def _send(self, writes: Sequence[Put | Tombstone]) -> list[Rejected | None]:
        body = b"".join(map(_bulk_lines, writes))
        alias = "true" if self._settings.generation is None else "false"
        answer = await self._call("POST", f"/{self._target}/_bulk", body=body, require_alias=alias)
        results = [item["index"] for item in answer["items"]]
        metrics.outranked.labels(self.name).inc(sum(result["status"] == CONFLICT for result in results))
        _warn_of_two_schemes(writes, results)
        return [_rejection(result, self._target) for result in results]

    async def count(self) -> int:
        """Chunks that are not deleted, after a refresh; 0 if there is no index yet."""
        await self._call("POST", f"/{self._target}/_refresh", ignore_unavailable="true")
        body = {"query": ALIVE}
        return int((await self._call("POST", f"/{self._target}/_count", body=body, ignore_unavailable="true"))["count"])

    async def unfiltered(self, generation: int | None = None) -> int:
        """Chunks without `facets`; 0 if there is no index yet."""
        index = self.index(generation) if generation else self._target
        body = {"query": {"bool": {"must_not": [DELETED, {"exists": {"field": "facets"}}]}}}
        return int((await self._call("POST", f"/{index}/_count", body=body, ignore_unavailable="true"))["count"])

    async def origins(self) -> dict[str, int]:
        """Chunks by `splade_provenance` as JSON; the 100 most frequent ones; "" for those of earlier releases."""
        terms = {"field": "splade_origin", "missing": "", "size": MOST_ORIGINS}
        body = {"size": 0, "query": ALIVE, "aggs": {"origins": {"terms": terms}}}
        answer = await self._call("POST", f"/{self._target}/_search", body=body, ignore_unavailable="true")
        buckets = answer.get("aggregations", {}).get("origins", {}).get("buckets", [])
        return {bucket["key"]: bucket["doc_count"] for bucket in buckets}

    async def stored(self, chunk_ids: Sequence[str]) -> dict[str, Stored]:
        """`complete`: `splade_terms` exists (it may be empty). Takes at most 10,000 chunks.

        Reads doc values, which cost a fortieth of reading documents. Reads the document only if a search does not show
        its last write yet, or if an earlier release wrote it without `splade_origin`.
        """
        if not chunk_ids:
            return {}
        names = {document_id(chunk_id): chunk_id for chunk_id in chunk_ids}
        documents, searched = await asyncio.gather(
            self._get(names, self._target, _source="false"), self._doc_values(chunk_ids)
        )
        found, unseen = {}, []
        for document in documents:
            chunk_id = names[document["_id"]]
            write, fields = searched.get(chunk_id, (None, {}))
            if write == _last_write(document) and ("splade_origin" in fields or fields.get("deleted")):
                found[chunk_id] = _stored(fields)
            else:
                unseen.append(document["_id"])
        wanted = "version,text_sha256,splade_terms,deleted"
        for document in await self._get(unseen, self._target, _source_includes=wanted) if unseen else ():
            found[names[document["_id"]]] = _stored(document["_source"])
        return found

    async def _get(self, ids: Iterable[str], index: str, **params: str) -> list[dict[str, Any]]:
        """Those of these documents that exist, all finished writes included; none if the index does not exist."""
        answer = await self._call("POST", f"/{index}/_mget", body={"ids": list(ids)}, **params)
        for document in answer["docs"]:
            if forbidden := _forbidden(index, document.get("error", {}).get("reason")):
                raise forbidden
        return [document for document in answer["docs"] if document.get("found")]

    async def _doc_values(self, chunk_ids: Sequence[str]) -> dict[str, tuple[Write, dict[str, Any]]]:
        """By chunk_id: the last write that a search sees, and the fields that `stored` needs."""
        body = {
            "size": len(chunk_ids),
            "query": {"constant_score": {"filter": {"terms": {"chunk_id": list(chunk_ids)}}}},
            "docvalue_fields": ["chunk_id", "version", "text_sha256", "deleted", "splade_origin"],
            "stored_fields": "_none_",
            "seq_no_primary_term": True,
            "track_total_hits": False,
        }
        answer = await self._call("POST", f"/{self._target}/_search", body=body, ignore_unavailable="true")
        found = {}
        for hit in answer["hits"]["hits"]:
            fields = {name: value for name, (value,) in hit["fields"].items()}
            found[fields["chunk_id"]] = _last_write(hit), fields
        return found

    async def live(self) -> int:
        """The configured generation, or the one to which the alias points."""
        if self._settings.generation:
            return self._settings.generation
        indexes = await self._described(self._alias, filter_path="*.aliases")
        if not indexes:
            raise self._nothing_yet(self._alias)
        numbers = [index.removeprefix(f"{self._prefix}-") for index in indexes]
        if len(numbers) != 1 or not numbers[0].isdecimal():
            raise ConfigurationError(
                f"OpenSearch's alias {self._alias} must point to one index {self._prefix}-N, not to "
                f"{', '.join(sorted(numbers))}: set STREAM_OPENSEARCH_ALIAS to another name"
            )
        return int(numbers[0])

    async def search(
        self, body: Mapping[str, Any], generation: int, preference: str = "", **params: Any
    ) -> dict[str, Any]:
        """Sends a query to a generation's index and returns OpenSearch's response.

        Words are counted in all shards, so scores do not depend on the shard. They differ a little between the replicas
        of a shard, which count deleted documents until they merge them: searches with the same `preference` read the
        same replicas.
        """
        params["search_type"] = "dfs_query_then_fetch"  # no further step in an index of one shard
        if preference:  # as a digest, because some names have a meaning
            params["preference"] = hashlib.sha256(preference.encode()).hexdigest()
        answer: dict[str, Any] = await self._read(self.index(generation), "_search", body, **params)
        return answer

    async def tokens(self, text: str, generation: int) -> list[str]:
        """The tokens that OpenSearch makes of a query for the field `text`, in order."""
        body = {"field": "text", "text": text}
        answer = await self._read(self.index(generation), "_analyze", body)
        return [token["token"] for token in answer["tokens"]]

    async def shown(self, chunk_ids: Sequence[str], generation: int) -> dict[str, Shown]:
        """All finished writes included."""
        if not chunk_ids:
            return {}
        fields = ("chunk_id", "doc_id", "version", "text", "metadata", "facet_json")
        ids, index = map(document_id, chunk_ids), self.index(generation)
        sources = [found["_source"] for found in await self._get(ids, index, _source_includes=",".join(fields))]
        return {
            source["chunk_id"]: Shown(*(source.get(field) for field in fields))
            for source in sources
            if "text" in source
        }

    async def origin(self, chunk_id: str, generation: int) -> Origin | None:
        """All finished writes included."""
        fields = "version,splade_provenance,position"
        for document in await self._get([document_id(chunk_id)], self.index(generation), _source_includes=fields):
            found = document["_source"]
            if "splade_provenance" in found:  # else the chunk was deleted
                position = found.get("position")
                return Origin(found["version"], found["splade_provenance"], Position(**position) if position else None)
        return None

    async def _read(self, index: str, what: str, body: Any, **params: Any) -> Any:
        """Raises `ConfigurationError` if the index does not exist."""
        try:
            return await self._call("POST", f"/{index}/{what}", body=body, **params)
        except Outage:
            if await self._exists(index):
                raise
            raise self._nothing_yet(index) from None

    def _nothing_yet(self, index: str) -> ConfigurationError:
        return nothing_yet(self._settings, f"OpenSearch's index {index}", "STREAM_OPENSEARCH_ALIAS")

    async def _call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """As `_request`. An answer that lacks what a shard holds is an `Outage` too, if the second one lacks it too.

        A search is made in steps. It lacks a shard whose node dies between two of them, although another node has a
        copy.
        """
        for _ in range(2):
            answer = await self._request(method, path, body, params)
            reason = _incomplete(answer) if isinstance(answer, dict) else None
            if reason is None:
                return answer
        raise Outage(f"OpenSearch at {self._where} answers without all shards: {reason}", "opensearch")

    async def _request(self, method: str, path: str, body: Any, params: Mapping[str, Any]) -> Any:
        """Raises `Refused` for a request that is too large, `Outage` for an error that no document causes."""
        where = self._where
        try:
            return await self._client.transport.perform_request(method, path, params=params, body=body)
        except OpenSearchConnectionError as error:
            if refusal := tls.refusal(error, "STREAM_OPENSEARCH"):
                raise ConfigurationError(f"OpenSearch cannot be reached at {where}, {refusal}") from error
            raise Outage(
                f"OpenSearch at {where} does not answer: {error.error or repr(error.info)}", "opensearch"
            ) from error
        except TransportError as error:
            sentence = f"OpenSearch at {where} answers {error.status_code} {error.error}"
            if error.status_code == 401:
                raise ConfigurationError(
                    f"OpenSearch at {where}: authentication failed (401 {error.error}): set STREAM_OPENSEARCH_USER and "
                    "STREAM_OPENSEARCH_PASSWORD"
                ) from error
            if error.status_code == 403 and (forbidden := _forbidden(f"{method} {path}", error.info)):
                raise forbidden from error
            described = error.info if isinstance(error.info, dict) else {}
            if error.status_code == 403 and self._settings.opensearch_aws_region and "message" in described:
                reason = described["message"].partition("\n")[0]  # the lines after it quote the session's token
                raise ConfigurationError(
                    f"OpenSearch at {where} refuses what is signed for AWS (403 {reason}): check the credentials, "
                    "STREAM_OPENSEARCH_AWS_REGION, and the policies of the domain and of the role"
                ) from error
            if error.status_code == 404 and error.error == "index_not_found_exception":
                raise Outage(
                    f"{sentence}: start `stream worker index`, which creates {self._alias}", "opensearch"
                ) from error
            if error.status_code == 413:
                raise Refused(sentence) from error
            raise Outage(sentence, "opensearch") from error
        except OpenSearchException as error:
            raise Outage(f"the response of OpenSearch at {where} cannot be parsed: {error}", "opensearch") from error
        finally:
            progress.made()


def _called(flow: str) -> str:
    return f"the flow {flow}" if flow else "the flow without a name"


def _authorization(settings: Settings) -> dict[str, str]:
    """The header of basic authentication in UTF-8; the client's own `http_auth` knows only Latin-1."""
    user, password = settings.opensearch_user, settings.opensearch_password
    if not user or not password:
        return {}
    login = f"{user}:{password.get_secret_value()}".encode()
    return {"authorization": f"Basic {base64.b64encode(login).decode()}"}


def _reason(error: TransportError) -> str:
    described = error.info.get("error") if isinstance(error.info, dict) else None
    return str(described["reason"] if isinstance(described, dict) else error.error)


def _as_opensearch_shows(value: Any) -> Any:
    if isinstance(value, list):
        return [*map(_as_opensearch_shows, value)]
    return str(value).lower() if isinstance(value, bool) else str(value)


def _incomplete(answer: Mapping[str, Any]) -> str | None:
    """Why an answer lacks what a shard holds, if it does: its status is 200, and it has what the other shards hold."""
    shards = answer.get("_shards", {})
    lacking = shards.get("failed")
    if "skipped" in shards:  # a search does not count shards as failed that are on no node; others count replicas
        lacking = shards["total"] - shards["successful"]
    if lacking:
        return f"{lacking} of {shards['total']} are missing"
    for error in (document["error"] for document in answer.get("docs", ()) if "error" in document):
        if error["type"] != "index_not_found_exception" and not FORBIDDEN.search(error["reason"]):
            return str(error["type"])
    return None


def _forbidden(what: str, said: object) -> ConfigurationError | None:
    """The error for the security plugin's refusal of a request, or of an item of one; None for another refusal."""
    refusal = FORBIDDEN.search(str(said))
    return refusal and ConfigurationError(
        f"OpenSearch's user {refusal[2]} has no permission {refusal[1]} for {what}: add it to the user's role; "
        "docs/security.md has roles with all permissions that are needed"
    )


def _rejection(result: Mapping[str, Any], index: str) -> Rejected | None:
    """The rejection of one line of a bulk request, if any; raises a `StreamError` if the line is not the cause."""
    status, error = result["status"], result.get("error")
    if error is None or status == CONFLICT:
        return None
    if status == 403 and (forbidden := _forbidden(index, error["reason"])):
        raise forbidden
    cause = error.get("caused_by", {}).get("reason", "")
    sentence = f"{error['type']}: {error['reason']} {cause}".strip()
    if status != 400:
        raise Outage(f"OpenSearch does not accept writes now ({status} {sentence})", "opensearch")
    return Rejected("refused-by-opensearch", f"OpenSearch rejected the document: {sentence}")


def _warn_of_two_schemes(writes: Sequence[Put | Tombstone], results: Sequence[Mapping[str, Any]]) -> None:
    """Warns if a timestamp outranks a counted version: the chunk will not accept a counted version again."""
    for write, result in zip(writes, results, strict=True):
        conflict = CONFLICTING.search(result["error"]["reason"]) if result["status"] == CONFLICT else None
        if conflict and write.version < FIRST_TIMESTAMP <= int(conflict[1]):
            log.warning(
                "version %d of %r is not applied: the chunk has version %s, which is a timestamp; set versions in "
                "its tombstones too, or in none of its records (docs/producers.md)",
                *(write.version, write.chunk_id, conflict[1]),
            )


def _last_write(document: Mapping[str, Any]) -> Write:
    return document["_seq_no"], document["_primary_term"]


def _stored(fields: Mapping[str, Any]) -> Stored:
    if fields.get("deleted"):
        return Stored(fields["version"], None, complete=True)
    return Stored(fields["version"], fields["text_sha256"], "splade_origin" in fields or "splade_terms" in fields)


def escape(term: str) -> str:
    """A term as a feature's name: U+2024 replaces each dot, because OpenSearch reads a dot as a path."""
    return term.replace(".", "\u2024")


def document_id(chunk_id: str) -> str:
    """The `_id` of a chunk: its chunk_id, or a digest of it if it is too long."""
    encoded = chunk_id.encode()
    return chunk_id if len(encoded) <= ID_BYTES else f"sha256-{hashlib.sha256(encoded).hexdigest()}"


def _bulk_lines(write: Put | Tombstone) -> bytes:
    action = {"_id": document_id(write.chunk_id), "version": write.version, "version_type": "external_gte"}
    document = _gone(write) if isinstance(write, Tombstone) else _document(write.chunk)
    return orjson.dumps({"index": action}) + b"\n" + orjson.dumps(document) + b"\n"


def _gone(tombstone: Tombstone) -> dict[str, Any]:
    return {"chunk_id": tombstone.chunk_id, "version": tombstone.version, "deleted": True}


def _document(chunk: Placed) -> dict[str, Any]:
    fields = {name: value for name, value in chunk.items() if name in FIELDS or name == "position"}
    terms = {escape(term): weight for term, weight in chunk["splade_terms"].items()}
    origin = orjson.dumps(chunk["splade_provenance"], option=orjson.OPT_SORT_KEYS).decode()
    return fields | {"splade_terms": terms, "splade_origin": origin, "facets": facets.tokens(chunk)}
