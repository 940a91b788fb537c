"""Reads a test collection: chunks, queries, and people's judgements of which chunk answers which query (qrels).

A folder has one of two layouts:

    chunks.jsonl   queries.tsv     qrels.txt         chunks as producers send them; id TAB text; TREC qrels
    corpus.jsonl   queries.jsonl   qrels/test.tsv    BEIR

The content of a file of queries or of qrels tells which of the two formats it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from stream.contracts import problem
from stream.errors import StreamError

Qrels = dict[str, dict[str, int]]  # by query: the grade of each judged chunk; 1 and above are relevant

BEIR_HEADER = "query-id\tcorpus-id\tscore"


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries by ID, their judgements, and chunks as JSON by chunk_id; None: those that are indexed already."""

    name: str
    queries: dict[str, str]
    qrels: Qrels
    chunks: dict[str, bytes] | None = None


def read(folder: Path) -> Collection:
    """Reads a folder into memory. Raises `StreamError` with the file and the line of the first mistake.

    A document of BEIR becomes one chunk; one with neither title nor text is left out.
    """
    name = folder.resolve().name
    if (folder / "chunks.jsonl").exists():
        judged = read_judged(folder / "queries.tsv", folder / "qrels.txt")
        return replace(judged, name=name, chunks=_chunks(_objects(folder / "chunks.jsonl")))
    if (folder / "corpus.jsonl").exists():
        judged = read_judged(folder / "queries.jsonl", folder / "qrels" / "test.tsv")
        return replace(judged, name=name, chunks=_chunks(_documents(folder / "corpus.jsonl", name)))
    raise StreamError(f"{folder} has neither chunks.jsonl nor corpus.jsonl: expected a folder with one of them")


def read_judged(queries: Path, qrels: Path) -> Collection:
    """The queries of one file that another file judges; raises `StreamError` as `read` does."""
    texts: dict[str, str] = {}
    for where, query, text in _queries(queries):
        if not query or not text.strip():
            raise StreamError(f"{where}: the query {query} has no text; expected id TAB text, or JSON")
        _add(texts, query, text, where)
    judgements: Qrels = {}
    for where, query, chunk_id, grade in _judgements(qrels):
        if query not in texts:
            raise StreamError(f"{where}: the query {query} is not in {queries}")
        _add(judgements.setdefault(query, {}), chunk_id, grade, where)
    if not judgements:
        raise StreamError(f"{qrels} judges no query: there is nothing to measure")
    return Collection(queries.name, {query: texts[query] for query in judgements}, judgements)


def _chunks(found: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, bytes]:
    chunks: dict[str, bytes] = {}
    for where, chunk in found:
        if wrong := problem(chunk, "chunk"):
            raise StreamError(f"{where}: {wrong}")
        _add(chunks, chunk["chunk_id"], orjson.dumps(chunk), where)
    return chunks


def _documents(path: Path, doc_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, document in _objects(path):
        text = f"{document.get('title') or ''}\n{document.get('text') or ''}".strip()
        if text:
            yield where, {"chunk_id": document.get("_id"), "doc_id": doc_id, "text": text}


def _queries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Each query: where it is, its ID and its text."""
    if next((line for _, line in _lines(path)), "").startswith("{"):
        for where, query in _objects(path):
            yield where, str(query.get("_id", "")), str(query.get("text", ""))
    else:
        for where, line in _lines(path):
            name, _, text = line.partition("\t")
            yield where, name, text


def _judgements(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Each judgement: where it is, its query, chunk_id and grade."""
    beir = next((line for _, line in _lines(path)), "") == BEIR_HEADER
    for where, line in _lines(path):
        if line == BEIR_HEADER:
            continue
        columns = line.split("\t") if beir else line.split()
        try:
            query, chunk_id, grade = columns if beir else (columns[0], *columns[2:])
            judged = int(grade)
        except ValueError:
            expected = "query TAB chunk_id TAB grade" if beir else "query 0 chunk_id grade"
            raise StreamError(f"{where}: expected {expected}, and an integer as grade") from None
        yield where, query, chunk_id, judged


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise StreamError(f"{where}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise StreamError(f"{where}: expected a JSON object")
        yield where, value


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line that is not blank: where it is, and the line. Only LF and CRLF end a line."""
    where = str(path)
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if line.strip():
                    yield where, line.decode().rstrip("\r\n")
    except OSError as error:
        raise StreamError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise StreamError(f"{where}: not UTF-8: {error.reason}") from None


def _add(found: dict[str, Any], name: str, value: object, where: str) -> None:
    if name in found:
        raise StreamError(f"{where}: {name} occurs a second time")
    found[name] = value
