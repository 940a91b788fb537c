"""A small test collection for search: docstrings of Python's library, queries about them, and graded answers.

queries.tsv has one query a line: its id, a tab, its text. Most queries use other words than the docstrings that answer
them; some use the same words; some are names. qrels.txt is in TREC's format: query id, 0, chunk id, grade. Grade 2
answers the query by itself, grade 1 helps. A chunk of the collection without a grade does not help.

The grades come from reading the docstrings, not from the results of a search engine: a collection that is graded on
results favours the engine that found them. Every graded chunk exists in Python 3.11, 3.12 and 3.13; chunks that only
one of these versions has are not graded.
"""

from pathlib import Path

from stream import corpus
from stream.evaluate.collection import read_judged
from stream.records import Chunk

FOLDER = Path(__file__).parent
QUERIES = FOLDER / "queries.tsv"
QRELS = FOLDER / "qrels.txt"
JUDGED = read_judged(QUERIES, QRELS)
MODULES = frozenset((FOLDER / "modules.txt").read_text("utf-8").split())


def chunks() -> list[Chunk]:
    """The collection: every chunk that this Python has of the modules in modules.txt."""
    return [chunk for chunk in corpus.chunks() if chunk["doc_id"] in MODULES]
