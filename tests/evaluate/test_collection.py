"""If these fail, quality is measured with other chunks, queries or judgements than the files hold."""

import json
from pathlib import Path

import pytest

from stream.errors import StreamError
from stream.evaluate.collection import Collection, read, read_judged

OURS = {
    "chunks.jsonl": '{"chunk_id": "a", "doc_id": "d", "text": "sockets", "version": 3}\n\n'
    '{"chunk_id": "b c", "doc_id": "d", "text": "ports"}\r\n',
    "queries.tsv": "1\tlisten on a socket\n2\tnobody judged this\r\n10\topen\ta port\n",
    "qrels.txt": "1 0 a 2\n1\tQ0\tz\t0\n\n10 0 a 1\n",
}
BEIR = {
    "corpus.jsonl": '{"_id": "a", "title": "Sockets", "text": "are files.", "metadata": {"url": "u"}}\n'
    '{"_id": "b c", "title": "", "text": "Ports"}\n{"_id": "empty", "title": "", "text": " "}\n',
    "queries.jsonl": '{"_id": "1", "text": "listen on a socket", "metadata": {}}\n{"_id": "2", "text": "unjudged"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\n1\tb c\t1\n1\ta\t0\n",
}


def folder(path: Path, files: dict[str, str], **changed: str | bytes | None) -> Path:
    """A collection; `changed` replaces the content of a file, or leaves the file out, by its name up to the dot."""
    made = path / "small"
    for name, original in files.items():
        content = changed.get(Path(name).stem, original)
        if content is not None:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return made


def test_chunks_as_producers_send_them_with_trec_qrels(tmp_path):
    found = read(folder(tmp_path, OURS))
    assert {chunk_id: json.loads(chunk) for chunk_id, chunk in found.chunks.items()} == {
        "a": {"chunk_id": "a", "doc_id": "d", "text": "sockets", "version": 3},
        "b c": {"chunk_id": "b c", "doc_id": "d", "text": "ports"},
    }
    assert found.name == "small"
    assert found.queries == {"1": "listen on a socket", "10": "open\ta port"}
    assert found.qrels == {"1": {"a": 2, "z": 0}, "10": {"a": 1}}


def test_beir(tmp_path):
    found = read(folder(tmp_path, BEIR))
    assert {chunk_id: json.loads(chunk) for chunk_id, chunk in found.chunks.items()} == {
        "a": {"chunk_id": "a", "doc_id": "small", "text": "Sockets\nare files."},
        "b c": {"chunk_id": "b c", "doc_id": "small", "text": "Ports"},
    }
    assert found.queries == {"1": "listen on a socket"}
    assert found.qrels == {"1": {"b c": 1, "a": 0}}


def test_a_folder_is_named_as_it_is_called_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(folder(tmp_path, OURS))
    assert read(Path()).name == "small"


@pytest.mark.parametrize("queries", ["queries.tsv", "queries.jsonl"])
@pytest.mark.parametrize("qrels", ["qrels.txt", "qrels/test.tsv"])
def test_the_format_of_each_file_is_told_by_its_content(tmp_path, queries, qrels):
    made = folder(tmp_path, OURS | BEIR | {"qrels.txt": "1 0 a 0\n1 0 b_c 1\n"})
    found = read_judged((made / queries).rename(made / "queries"), (made / qrels).rename(made / "judgements"))
    assert isinstance(found, Collection)
    assert found.queries == {"1": "listen on a socket"}
    assert found.qrels["1"]["a"] == 0
    assert found.chunks is None


@pytest.mark.parametrize(
    ("files", "changed", "sentence"),
    [
        (OURS, {"chunks": None}, "small has neither chunks.jsonl nor corpus.jsonl"),
        (OURS, {"queries": None}, "cannot read .*queries.tsv: No such file"),
        (OURS, {"qrels": None}, "cannot read .*qrels.txt: No such file"),
        (BEIR, {"test": None}, "cannot read .*qrels/test.tsv: No such file"),
        (OURS, {"chunks": "\n{not json\n"}, "chunks.jsonl, line 2: not JSON"),
        (BEIR, {"corpus": "[1]\n"}, "corpus.jsonl, line 1: expected a JSON object"),
        (OURS, {"chunks": '{"chunk_id": "a", "doc_id": "d", "text": " "}\n'}, "chunks.jsonl, line 1: text: must"),
        (BEIR, {"corpus": '{"title": "t", "text": "u"}\n'}, "corpus.jsonl, line 1: chunk_id"),
        (OURS, {"chunks": 2 * '{"chunk_id": "a", "doc_id": "d", "text": "t"}\n'}, "line 2: a occurs a second time"),
        (OURS, {"chunks": b'{"chunk_id": "\xff"}\n'}, "chunks.jsonl, line 1: not UTF-8"),
        (OURS, {"queries": "1\tfine\n2\n"}, "queries.tsv, line 2: the query 2 has no text"),
        (OURS, {"queries": "1\t \n"}, "queries.tsv, line 1: the query 1 has no text"),
        (BEIR, {"queries": '{"_id": "1"}\n'}, "queries.jsonl, line 1: the query 1 has no text"),
        (BEIR, {"queries": '{"_id": "1", "text": "t"}\n{\n'}, "queries.jsonl, line 2: not JSON"),
        (OURS, {"queries": "1\tx\n1\ty\n"}, "queries.tsv, line 2: 1 occurs a second time"),
        (OURS, {"qrels": "1 0 a 1\n\n77 0 a 1\n"}, "qrels.txt, line 3: the query 77 is not in .*queries.tsv"),
        (OURS, {"qrels": "1 0 a 1\n1 0 a 0\n"}, "qrels.txt, line 2: a occurs a second time"),
        (OURS, {"qrels": "1 0 a\n"}, "qrels.txt, line 1: expected query 0 chunk_id grade"),
        (OURS, {"qrels": "1\n"}, "qrels.txt, line 1: expected query 0 chunk_id grade"),
        (OURS, {"qrels": "1 0 a relevant\n"}, "qrels.txt, line 1: expected .* an integer as grade"),
        (BEIR, {"test": "query-id\tcorpus-id\tscore\n1 a 1\n"}, "test.tsv, line 2: expected query TAB chunk_id TAB"),
        (OURS, {"qrels": ""}, "qrels.txt judges no query"),
        (BEIR, {"test": "query-id\tcorpus-id\tscore\n"}, "test.tsv judges no query"),
    ],
)
def test_a_mistake_is_told_in_a_sentence_with_its_file_and_line(tmp_path, files, changed, sentence):
    with pytest.raises(StreamError, match=sentence) as raised:
        read(folder(tmp_path, files, **changed))
    assert "\n" not in str(raised.value)
