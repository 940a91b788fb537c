"""TREC run files: what was found, for trec_eval and other tools."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stream.config import SearchMode
from stream.errors import ConfigurationError, StreamError

Run = dict[str, dict[str, float]]  # by query: the score of each chunk that was found


def ranked(chunk_ids: Sequence[str]) -> dict[str, float]:
    """Scores that fall strictly, in place of the stores' own.

    trec_eval ignores ranks and the order of lines: it sorts by score, and equal scores by ID. So equal scores of a
    store would lose the store's order.
    """
    return {chunk_id: float(len(chunk_ids) - n) for n, chunk_id in enumerate(chunk_ids)}


def write(folder: Path, runs: Mapping[SearchMode, Run]) -> None:
    """Writes MODE.run for each mode: lines of `query Q0 chunk_id rank score mode`.

    Raises `StreamError`, and writes nothing, if an ID has white space: the format has no quotes.
    """
    texts = {mode: "".join(_lines(mode, run)) for mode, run in runs.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for mode, text in texts.items():
            (folder / f"{mode}.run").write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write into {folder}: {error.strerror}") from None


def _lines(mode: str, run: Run) -> Iterator[str]:
    for query, found in run.items():
        for rank, (chunk_id, score) in enumerate(found.items(), start=1):
            for name in (query, chunk_id):
                if len(name.split()) != 1:
                    raise StreamError(
                        f"the ID {name!r} has white space, which a TREC run file cannot hold: omit --runs"
                    )
            yield f"{query} Q0 {chunk_id} {rank} {score:g} {mode}\n"
