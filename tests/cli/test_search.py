"""`stream search`: if these fail, a person cannot ask, is told something else than was found, or sees a traceback."""

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest

from stream import cli
from stream.cli import answers
from stream.cli import search as command
from stream.errors import InvalidRequest, Outage
from stream.search.answer import Answer, Hit, Part, Snippet, Standing, Timing, Why
from stream.search.request import LEGS, LONGEST_QUERY, MOST_HITS, Group

OBEYED = "\x1b]0;owned\x07 \x1b[31m \x9b31m \x85 \x7f \u202ered\u2066 \u2028"  # what a terminal would interpret
NOT_PRINTED = {character for character in OBEYED if not character.isprintable()}


def hit(chunk_id: str = "sockets", doc_id: str = "d1", text: str = "a socket listens", **more: object) -> Hit:
    parts = {"bm25": Part(1, 12.5, 0.4), "dense": Part(2, 0.71, 0.25)}
    return Hit(chunk_id, doc_id, 1, 0.65, parts, text, **{"snippet": Snippet(text, [(2, 8)])} | more)


def answer(*hits: Hit, cursor: str | None = None, **degraded: str) -> Answer:
    return Answer(list(hits), 1, 0, len(hits), cursor, degraded, [Timing("encode", 0, 3.5), Timing("dense", 3.5, 5)])


WHY = Why(
    "sockets",
    stored=True,
    matches_filter=False,
    legs={"bm25": Standing(3, 1.5), "dense": Standing(None, 0.25)},
    rank=None,
    score=None,
    terms={"bm25": {"socket": 1.5}},
    reasons=["the filter excludes it"],
)


class Fake:
    """A searcher that returns what it was given, an answer or an error for each request, and remembers requests."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []
        self.asked: list = []
        self.warmed: list = []

    def __call__(self, *_: object) -> "Fake":
        return self

    async def warm(self, legs):
        self.warmed.append(legs)

    async def search(self, request):
        self.asked.append(request)
        found = self.answers.pop(0) if self.answers else answer(hit())
        if isinstance(found, Exception):
            raise found
        return found

    async def why(self, request, chunk_id):
        self.asked.append((request, chunk_id))
        return WHY


@pytest.fixture
def searcher(monkeypatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(command, "Searcher", fake)
    return fake


@pytest.fixture
def search(searcher, monkeypatch, capsys, tmp_path):
    """Runs `stream search` to its end in this process. Nothing listens where its clients would connect."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str, stdin: str | bytes = "") -> SimpleNamespace:
        read = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(read)))
        monkeypatch.setattr(sys, "argv", ["stream", "search", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        return SimpleNamespace(code=end.value.code or 0, out=shown.out, err=shown.err)

    return run


# What is asked


def test_without_options_the_request_s_own_defaults_hold(search, searcher):
    assert search("a socket").code == 0
    (asked,) = searcher.asked
    assert asked == command.DEFAULTS.model_copy(update={"query": "a socket"})
    assert searcher.warmed == [LEGS["hybrid"]]


def test_each_option_is_a_field_of_the_request(search, searcher):
    options = "-m lexical -k 7 -f doc_id=a -f metadata.lang --weight bm25=0.5 --weight splade=2 --fusion rrf"
    more = "--min-score bm25=1.5 --group --group-size 2 --deadline 0.5 --strict --explain --cursor abc --without tcp"
    assert search("a socket", *options.split(), *more.split()).code == 0
    (asked,) = searcher.asked
    assert (asked.mode, asked.k, asked.fusion, asked.deadline, asked.cursor) == ("lexical", 7, "rrf", 0.5, "abc")
    assert (asked.weights, asked.min_score) == ({"bm25": 0.5, "splade": 2.0}, {"bm25": 1.5})
    assert asked.without_terms == {"tcp"}
    assert (asked.group, asked.strict, asked.explain) == (Group(size=2), True, True)
    assert asked.filter is not None


def test_models_that_cannot_be_loaded_are_the_search_s_own_affair(search, searcher, monkeypatch):
    async def warm(legs):
        raise Outage("no model")

    monkeypatch.setattr(searcher, "warm", warm)
    searcher.answers = [answer(hit(), splade="no model")]
    ended = search("a socket")
    assert (ended.code, ended.err) == (0, "splade is missing: no model\n")


# What is printed


def test_a_person_sees_rank_scores_legs_and_the_place_in_the_text(search, searcher):
    searcher.answers = [answer(hit(), hit("ports", "d2"), cursor="abc")]
    shown = search("a socket").out
    assert shown.index("sockets") < shown.index("ports")
    for part in (
        "0.6500",
        "bm25 1 12.50",
        "dense 2 0.7100",
        "a socket listens",
        "2 reachable; next page: --cursor abc",
    ):
        assert part in shown
    assert "encode" not in shown


def test_the_words_that_the_query_explains_are_marked():
    text = "\x1b\u202e a socket\n\n listens, the socket"
    marked = answers._highlighted(Snippet(text, [(5, 11), (27, 33)]))
    assert marked.plain == "\\x1b\\u202e a socket listens, the socket"
    assert [marked.plain[span.start : span.end] for span in marked.spans] == ["socket", "socket"]


def test_one_leg_needs_no_column_of_legs(search):
    assert "bm25 1" not in search("a socket", "--mode", "bm25").out


def test_nothing_found_is_said(search, searcher):
    searcher.answers = [answer()]
    ended = search("a socket")
    assert (ended.code, ended.out) == (0, "nothing found\n")


def test_a_missing_leg_is_named_on_standard_error(search, searcher):
    searcher.answers = [answer(hit(), dense="Neo4j has not answered", splade="no model")]
    assert search("a socket").err.splitlines() == [
        "dense is missing: Neo4j has not answered",
        "splade is missing: no model",
    ]


def test_groups_show_their_document_once(search, searcher):
    searcher.answers = [answer(hit("a", "handbook"), hit("b", "handbook"), hit("c", "manual"))]
    shown = search("a socket", "--group").out
    assert [shown.count(name) for name in ("handbook", "manual")] == [1, 1]
    assert shown.index("handbook") < shown.index("manual")


def test_an_explanation_has_terms_contributions_and_timings(search, searcher):
    terms = {"bm25": {f"word{n}": 9.0 - n / 10 for n in range(20)}, "dense": {}}
    searcher.answers = [answer(hit(terms=terms))]
    shown = " ".join(search("a socket", "--explain").out.split())
    for part in ("bm25 1 12.50 +0.4000", "word0 9.0000", "…", "8.5 ms: encode 3.5, dense 5.0"):
        assert part in shown
    assert "word15" not in shown


def test_json_is_the_answer(search, searcher):
    found = hit(terms={"bm25": {"socket": 1.5}}, metadata={"lang": "en"})
    searcher.answers = [answer(found, cursor="abc", splade="no model")]
    assert json.loads(search("a socket", "--json").out) == {
        "hits": [
            {
                "chunk_id": "sockets",
                "doc_id": "d1",
                "version": 1,
                "score": 0.65,
                "legs": {
                    "bm25": {"rank": 1, "score": 12.5, "contribution": 0.4},
                    "dense": {"rank": 2, "score": 0.71, "contribution": 0.25},
                },
                "text": "a socket listens",
                "snippet": {"text": "a socket listens", "highlights": [[2, 8]]},
                "metadata": {"lang": "en"},
                "facet_json": None,
                "terms": {"bm25": {"socket": 1.5}},
            }
        ],
        "generation": 1,
        "offset": 0,
        "reachable": 1,
        "cursor": "abc",
        "degraded": {"splade": "no model"},
        "timings": [{"step": "encode", "start": 0, "took": 3.5}, {"step": "dense", "start": 3.5, "took": 5}],
        "expansion": {},
    }


def test_why_says_where_a_chunk_stands_and_the_reasons(search, searcher):
    shown = search("a socket", "--why", "sockets").out
    assert searcher.asked[0][1] == "sockets"
    for part in (
        "1.5000",
        "0.2500",
        "socket 1.5000",
        "stored: yes; the filter takes it: no",
        "- the filter excludes it",
    ):
        assert part in shown
    found = json.loads(search("a socket", "--why", "sockets", "--json").out)
    assert found["legs"]["dense"] == {"rank": None, "score": 0.25}
    assert found["reasons"] == ["the filter excludes it"]


@pytest.mark.parametrize(
    "options", [[], ["--json"], ["--explain", "--group"], ["--why", "x"], ["--why", "x", "--json"]]
)
def test_no_text_of_a_store_commands_the_terminal(search, searcher, monkeypatch, options):
    text = f"a socket {OBEYED}"
    found = hit(OBEYED, OBEYED, text, snippet=Snippet(text, [(2, 12)]), terms={"bm25": {OBEYED: 1.0}})
    searcher.answers = [answer(found, cursor=OBEYED, dense=OBEYED)]
    monkeypatch.setattr(
        sys.modules[__name__],
        "WHY",
        Why(OBEYED, True, None, {"bm25": Standing(1, 1.0)}, 1, 1.0, {"bm25": {OBEYED: 1.0}}, [OBEYED]),
    )
    ended = search("a socket", *options)
    assert "owned" in ended.out
    assert not NOT_PRINTED & set(ended.out + ended.err)


def test_brackets_emoji_and_right_to_left_letters_are_shown_as_they_are(search, searcher):
    text = "[red]x[/red] :warning: \u05e9\u05e7\u05e2 \U0001f9e6 [/b]"
    searcher.answers = [answer(hit("a[/b]", text=text, snippet=Snippet(text, [(0, 5), (23, 26)])))]
    shown = search("a socket").out
    assert "a[/b]" in shown
    assert text in shown


# What cannot be asked


def assert_refused(ended: SimpleNamespace, *words: str) -> None:
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    said = " ".join(ended.err.replace("│", " ").split())
    for each in words:
        assert each in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "QUERY"),
        ([""], "query: must not be empty"),
        ([" \t\n"], "query: must not be empty"),
        (["x" * (LONGEST_QUERY + 1)], f"query: String should have at most {LONGEST_QUERY} characters"),
        (["caf\udce9"], "not UTF-8"),
        (["x", "--mode", "fuzzy"], "'fuzzy'"),
        (["x", "-k", "0"], "'--limit' / '-k'"),
        (["x", "-k", str(10**6)], "'--limit' / '-k'"),
        (["x", "-k", "many"], "'--limit' / '-k'"),
        (["x", "--filter", "metadata.lang="], "metadata.lang="),
        (["x", "--filter", '{"field": "doc_id"'], "must be JSON"),
        (["x", "--filter", "caf\udce9"], "not UTF-8"),
        (["x", "--filter", "lang=en"], "filter.field: 'lang' cannot be filtered"),
        (["x", "--filter", "metadata.year>=new"], "filter.gte: must be a number or an ISO 8601 date"),
        (
            ["x", "--filter", '{"all": [{"field": "lang", "equal": 1}]}'],
            "filter.all.0.field: 'lang' cannot be filtered",
        ),
        (["x", "--weight", "dense"], "expected LEG=NUMBER"),
        (["x", "--weight", "dense=heavy"], "weights.dense"),
        (["x", "--weight", "dense=-1"], "weights.dense"),
        (["x", "--weight", "fuzzy=1"], "'bm25', 'splade' or 'dense'"),
        (["x", "--mode", "dense", "--weight", "dense=0"], "leave out each leg"),
        (["x", "--min-score", "bm25=nan"], "min_score.bm25"),
        (["x", "--deadline", "0"], "deadline"),
        (["x", "--deadline", "nan"], "deadline"),
        (["x", "--fusion", "best"], "'best'"),
        (["x", "--group", "--group-size", "0"], "'--group-size'"),
        (["-i", "--cursor", "abc"], "/next"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_what_cannot_be_asked_is_one_sentence(search, searcher, arguments, words):
    assert_refused(search(*arguments), words)
    assert searcher.asked == []


def test_a_long_query_is_asked_up_to_the_limit(search, searcher):
    for length in (100_000, LONGEST_QUERY):
        assert search("\u8a9e" * length).code == 0
        assert len(searcher.asked[-1].query) == length
    assert search("x", "-k", str(MOST_HITS)).code == 0


def test_a_cursor_that_was_changed_is_one_sentence(search, searcher):
    searcher.answers = [InvalidRequest("the cursor is not one of this search")]
    ended = search("x", "--cursor", "abc\x1b[31m")
    assert_refused(ended)
    assert ended.err == "stream: the cursor is not one of this search\n"


def test_a_server_that_is_down_is_one_sentence(search, searcher):
    searcher.answers = [Outage("Neo4j does not answer")]
    ended = search("x", "--strict")
    assert (ended.code, ended.err) == (75, "stream: Neo4j does not answer\n")


# The session


def test_a_session_answers_line_by_line_with_one_searcher(search, searcher):
    ended = search("-i", "--mode", "lexical", stdin="a socket\n\n  \na port")
    assert (ended.code, ended.err) == (0, "")
    assert [asked.query for asked in searcher.asked] == ["a socket", "a port"]
    assert {asked.mode for asked in searcher.asked} == {"lexical"}
    assert ended.out.count("ms: encode") == 2


def test_a_session_may_begin_with_a_query(search, searcher):
    search("a socket", "-i", stdin="a port\n")
    assert [asked.query for asked in searcher.asked] == ["a socket", "a port"]


def test_what_fails_does_not_end_a_session(search, searcher):
    searcher.answers = [Outage("Neo4j does not answer"), answer(hit())]
    wrong = b"caf\xe9\n/k 0\n/mode fuzzy\n/filter x=\n/next\n/nonsense\n/why x\n"
    ended = search("-i", stdin=wrong + b"first\nsecond\n")
    assert ended.code == 0
    assert [asked.query for asked in searcher.asked] == ["first", "second"]
    assert searcher.asked[-1] == command.DEFAULTS.model_copy(update={"query": "second"})
    said = ended.err.splitlines()
    parts = ("unicode", "k: ", "'hybrid'", "x=", "search first", "/help", "search first", "Neo4j does not answer")
    for line, part in zip(said, parts, strict=True):
        assert part in line


def test_commands_change_the_queries_that_follow(search, searcher):
    on = ["/mode dense", "/k 3", "/filter doc_id=a", "/filter metadata.b", "/group", "/explain", "first"]
    off = ["/filter", "/group", "/explain", " /second"]
    assert search("-i", stdin="\n".join(on + off)).err == ""
    first, second = searcher.asked
    assert (first.mode, first.k, first.group, first.explain) == ("dense", 3, Group(), True)
    assert first.filter is not None
    assert (second.query, second.mode, second.filter) == (" /second", "dense", None)
    assert (second.group, second.explain) == (None, False)


def test_a_session_turns_pages_and_says_why(search, searcher):
    searcher.answers = [answer(hit(), cursor="abc"), answer(hit())]
    ended = search("-i", stdin="a socket\n/next\n/next\n/why sockets\n/help\n")
    first, second, (asked, chunk_id) = searcher.asked
    assert (second.query, second.cursor) == (first.query, "abc")
    assert (asked.query, chunk_id) == ("a socket", "sockets")
    assert ended.err == "the last query has no further page\n"
    assert "/mode MODE" in ended.out


def test_a_session_prints_json_only(search, searcher):
    searcher.answers = [answer(hit()), answer()]
    first, second = search("-i", "--json", stdin="a socket\na port\n").out.split("}\n{")
    assert json.loads(first + "}")["reachable"] == 1
    assert json.loads("{" + second)["reachable"] == 0


@pytest.mark.parametrize(("key", "code"), [(b"\x03", 130), (b"\x04", 0)], ids=["Ctrl-C", "Ctrl-D"])
def test_a_session_on_a_terminal_ends_when_it_is_told_to(tmp_path, key, code):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, "search", "--interactive", "--mode", "bm25"]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, cwd=tmp_path, start_new_session=True
    )
    os.close(theirs)
    shown = b""
    while b"> " not in shown:
        shown += os.read(ours, 100)
    said = None
    while said is None:
        os.write(ours, key)
        with suppress(subprocess.TimeoutExpired):  # a key that came before `input` waited is not noticed
            _, said = process.communicate(timeout=10)
    os.close(ours)
    assert (process.returncode, b"Traceback" in said) == (code, False)


ON_A_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches this process
from stream.__main__ import main
main()
"""

# What a start costs

IMPORTS = """
import sys
from stream import cli
from stream.cli import search
class Searcher:
    def __init__(self, *_): ...
    async def warm(self, legs): ...
    async def search(self, request): raise search.errors.StreamError("asked")
if sys.argv.pop(1) == "fake":
    search.Searcher = Searcher
try:
    cli.main()
finally:
    assert not {"torch", "transformers", "faust"} & set(sys.modules)
"""


@pytest.mark.parametrize("mode", ["bm25", "dense", "hybrid"])
def test_a_search_imports_no_pytorch_before_a_model_is_needed(tmp_path, mode):
    arguments = [sys.executable, "-c", IMPORTS, "fake", "search", "x", "--mode", mode]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (1, "stream: asked\n")


@pytest.mark.parametrize("mode", ["bm25", "dense"])
def test_a_search_without_splade_imports_no_pytorch(tmp_path, mode):
    closed = ["neo4j_uri=bolt://127.0.0.1:1", "opensearch_url=http://127.0.0.1:1", "embed_url=http://127.0.0.1:1"]
    sets = [part for assignment in closed for part in ("--set", assignment)]
    arguments = [sys.executable, "-c", IMPORTS, "real", *sets, "search", "x", "--mode", mode]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, "AssertionError" in ended.stderr) == (75, False), ended.stderr
