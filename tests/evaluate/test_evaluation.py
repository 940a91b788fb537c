"""If these fail, `stream eval` measures another index than it says, or prints a figure under the wrong name."""

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
from click.testing import Result
from processes import child
from support import read
from typer.testing import CliRunner

from stream import children
from stream.cli import app
from stream.config import Settings
from stream.errors import ConfigurationError, StreamError
from stream.evaluate import evaluation
from stream.evaluate.collection import Collection
from stream.evaluate.collection import read as read_collection
from stream.evaluate.evaluation import label, own_names
from stream.evaluate.measures import MEASURES
from stream.search.request import Request
from stream.stores import open_stores

QUERIES = {"1": "sockets", "2": "ports", "3": "files"}
RANKINGS = {  # the relevant chunk of a query is r
    "bm25": {"sockets": "rxy", "ports": "xyr", "files": ""},
    "splade": {"sockets": "rxy", "ports": "xyr", "files": ""},
    "dense": {"sockets": "rxy", "ports": "rxy", "files": "rxy"},
    "lexical": {"sockets": "xr", "ports": "xy", "files": "xy"},
    "hybrid": {"sockets": "rx", "ports": "rx", "files": "rx"},
}
PLAIN = Settings(_env_file=None)
COLLECTION = Collection("Small Talk", {"1": "q"}, {"1": {"a": 1}}, {"a": b"{}", "b": b"[]"})


@pytest.fixture
def judged(tmp_path, monkeypatch) -> list[str]:
    """Options for queries and judgements; the stores and the models are replaced by `RANKINGS`."""
    asked: list[tuple[str, str, int]] = []

    class Fake:
        def __init__(self, *_: object) -> None: ...

        async def search(self, request: Request) -> SimpleNamespace:
            assert request.strict
            asked.append((request.query, request.mode, request.k))
            return SimpleNamespace(
                hits=[SimpleNamespace(chunk_id=one) for one in RANKINGS[request.mode][request.query]]
            )

    @asynccontextmanager
    async def stores(_: Settings):
        async def count() -> int:
            return 7

        yield SimpleNamespace(both=[SimpleNamespace(count=count)])

    monkeypatch.setattr(evaluation, "Searcher", Fake)
    monkeypatch.setattr(evaluation, "open_stores", stores)
    monkeypatch.setattr(Fake, "asked", asked, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "queries.tsv").write_text("".join(f"{name}\t{text}\n" for name, text in QUERIES.items()) + "9\tx\n")
    (tmp_path / "qrels.txt").write_text("".join(f"{name} 0 r 1\n" for name in QUERIES))
    return ["eval", "--queries", str(tmp_path / "queries.tsv"), "--qrels", str(tmp_path / "qrels.txt")]


def stream(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_each_mode_has_its_figures_and_is_compared_with_the_first(judged):
    report = json.loads(stream(*judged, "--json").stdout)
    assert (report["queries"], report["depth"], report["chunks"], report["rejected"]) == (3, 100, 7, 0)
    assert evaluation.Searcher.asked == [(text, mode, 100) for text in QUERIES.values() for mode in RANKINGS]
    rows = {row["mode"]: row["figures"] for row in report["rows"]}
    assert list(rows) == list(RANKINGS)
    assert all(list(figures) == list(MEASURES) for figures in rows.values())
    assert rows["bm25"]["RR@10"]["values"] == {"1": 1, "2": pytest.approx(1 / 3), "3": 0}
    assert rows["bm25"]["RR@10"]["mean"] == pytest.approx(4 / 9)
    assert (rows["splade"]["RR@10"]["difference"], rows["splade"]["RR@10"]["p"]) == (0, 1)
    assert rows["dense"]["RR@10"]["difference"] == pytest.approx(5 / 9)
    assert rows["lexical"]["RR@10"]["difference"] == pytest.approx(1 / 6 - 4 / 9)
    found = rows["bm25"]["R@100"]
    assert found["mean"] == pytest.approx(2 / 3)
    assert found["low"] < found["mean"] < found["high"]


def test_the_table_has_a_row_a_mode_in_the_order_of_the_options(judged):
    printed = stream(*judged, "--mode", "lexical", "--mode", "dense", "--mode", "lexical", "--depth", "3").stdout
    lexical, dense = (printed.index(name) for name in ("│ lexical", "│ dense"))
    assert lexical < dense
    assert "queries.tsv: 3 queries, at most 3 hits each" in printed
    assert "0.167" in printed[lexical:dense]
    assert "p=" not in printed[lexical:dense]
    assert "1.000 p=" in printed[dense:]
    assert "[1.000, 1.000]" in printed[dense:]
    assert "p of the difference from lexical" in printed
    assert {k for _, _, k in evaluation.Searcher.asked} == {3}
    assert len(evaluation.Searcher.asked) == 6


def test_figures_of_stand_in_models_are_marked_wherever_they_stand(judged, tmp_path, monkeypatch):
    plot = tmp_path / "plot.svg"
    monkeypatch.setenv("STREAM_EMBED_REVISION", "development")
    report = json.loads(stream(*judged, "--json", "--plot", str(plot)).stdout)
    labels = ["bm25", "splade", "dense (stand-in model)", "lexical", "hybrid (stand-in model)"]
    assert [row["label"] for row in report["rows"]] == labels
    assert all(f"<!-- {name} -->" in plot.read_text() for name in (*labels, *MEASURES))
    marked = [line for line in stream(*judged).stdout.splitlines() if "(stand-in model)" in line]
    assert len(marked) == 2
    assert "dense (stand-in model)  │ 1.000" in marked[0]


def test_each_mode_with_terms_is_marked_if_splade_is_a_stand_in():
    settings = PLAIN.model_copy(update={"splade_revision": "development"})
    assert {mode for mode in RANKINGS if "stand-in" in label(settings, mode)} == {"splade", "lexical", "hybrid"}
    assert {mode for mode in RANKINGS if "stand-in" in label(PLAIN, mode)} == set()


def test_run_files_and_a_plot_are_written(judged, tmp_path):
    assert stream(*judged, "--runs", str(tmp_path / "runs"), "--plot", str(tmp_path / "p.png")).exit_code == 0
    assert sorted(path.stem for path in (tmp_path / "runs").iterdir()) == sorted(RANKINGS)
    assert (tmp_path / "runs" / "bm25.run").read_text().startswith("1 Q0 r 1 3 bm25\n1 Q0 x 2 2 bm25\n")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--queries", "q"],
        ["--qrels", "q"],
        ["--collection", "c", "--queries", "q"],
        ["--collection", "c", "--qrels", "q"],
        ["--collection", "c", "--depth", "0"],
        ["--collection", "c", "--depth", "1001"],
        ["--collection", "c", "--mode", "best"],
        ["--collection", "c", "--plot", "plot.pdf"],
    ],
)
def test_options_that_make_no_sense_are_a_wrong_command_line(options):
    assert stream("eval", *options).exit_code == 2


def test_a_collection_that_is_not_there_and_a_file_that_cannot_be_written_are_named(judged, tmp_path):
    with pytest.raises(StreamError, match="has neither"):
        stream("eval", "--collection", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cannot write .*plot.svg: No such file"):
        stream(*judged, "--plot", str(tmp_path / "nowhere" / "plot.svg"))


@pytest.mark.parametrize(("package", "options"), [("ir_measures", []), ("matplotlib", ["--plot", "plot.svg"])])
def test_a_missing_package_is_noticed_before_anything_is_searched(judged, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'chunk-stream\[eval\]'"):
        stream(*judged, *options)
    assert evaluation.Searcher.asked == []


# Names


def test_a_collection_s_names_are_valid_settings_and_none_is_the_flow_s_own():
    own = own_names(PLAIN, COLLECTION)
    settings = Settings(_env_file=None, **own)
    assert own["topic"].startswith("eval-small-talk-")
    assert all(getattr(settings, name) != getattr(PLAIN, name) for name in own if name != "flow")


@pytest.mark.parametrize("name", ["", "数据", "A" * 300, "a.b_c--d", "9"])
def test_any_folder_s_name_gives_valid_names(name):
    collection = Collection(name, {}, {}, {"a": b"{}"})
    assert Settings(_env_file=None, **own_names(PLAIN, collection)).topic.startswith("eval-")


def test_other_chunks_and_other_encoders_have_other_names_and_nothing_else_does():
    def topic(chunks: dict[str, bytes] | None = None, **changed: object) -> str:
        settings = PLAIN.model_copy(update=changed)
        return own_names(settings, Collection("c", {}, {}, chunks or COLLECTION.chunks))["topic"]

    same = topic({"b": b"[]", "a": b"{}"}, kafka_servers="k:1", batch_size=1, embed_url="http://e:1", instance="i")
    assert same == topic(web_port=1, splade_token_budget=512, embed_api_key=None, topic="t", embed_instruction="")
    others = [
        topic({"a": b"{}"}),
        topic({"a": b"{}", "b": b"{}"}),
        topic(embed_model="m"),
        topic(embed_revision="r"),
        topic(embed_dimensions=7),
        topic(embed_long_texts="truncate"),
        topic(splade_model="m"),
        topic(splade_revision="r"),
        topic(splade_top_k=7),
        topic(splade_normalise=False),
        topic(require_gpu=False),
    ]
    assert len({same, *others}) == 1 + len(others)


# The real flow


@pytest.mark.servers
async def test_a_collection_is_indexed_once_and_measured_each_time(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "worker", child)
    words = ["socket", "port", "file", "thread", "lock", "queue", "clock", "parser", "archive", "cipher"]
    chunks = [{"chunk_id": f"c{n}", "doc_id": "d", "text": f"The {word} is {n}."} for n, word in enumerate(2 * words)]
    chunks.append({"chunk_id": "large", "doc_id": "d", "text": "x " * settings.max_record_bytes})
    (tmp_path / "chunks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in chunks))
    (tmp_path / "queries.tsv").write_text("".join(f"{n}\twhich {word}\n" for n, word in enumerate(words)))
    (tmp_path / "qrels.txt").write_text("".join(f"{n} 0 c{n} 1\n{n} 0 c{n + 10} 1\n" for n in range(len(words))))
    own = settings.model_copy(update=own_names(settings, read_collection(tmp_path)))

    async def measured() -> Result:
        return await asyncio.to_thread(stream, "eval", "--collection", str(tmp_path), "--json")

    first = await measured()
    report = json.loads(first.stdout)
    assert (
        f"1 of 21 chunks are not in both stores, so no search finds them: `stream --set topic={own.topic}"
        in first.stderr
    )
    assert (report["topic"], report["chunks"], report["rejected"]) == (own.topic, 21, 1)
    assert {row["mode"]: row["figures"]["R@100"]["mean"] for row in report["rows"]} == dict.fromkeys(RANKINGS, 1)
    assert report["rows"][0]["figures"]["nDCG@10"]["mean"] == 1
    assert {row["label"] for row in report["rows"] if row["mode"] != "bm25"} == {
        f"{mode} (stand-in model)" for mode in RANKINGS if mode != "bm25"
    }
    published = len(await read(own, own.topic))
    assert published == 20

    monkeypatch.setattr(children, "worker", None)  # the second run needs none
    second = await measured()
    assert json.loads(second.stdout) == report
    assert len(await read(own, own.topic)) == published
    async with open_stores(settings) as stores:
        assert await stores.opensearch.count() == 0
        assert await stores.neo4j._run("MATCH (c:Chunk) WHERE c.text STARTS WITH 'The socket is' RETURN c") == []
    async with open_stores(own) as stores:
        await stores.opensearch._call("DELETE", f"/{own.opensearch_alias}-1")
    with pytest.raises(StreamError, match="no chunk of it is in both stores"):
        await measured()
