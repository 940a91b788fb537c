"""Prints what a search has found, for a person."""

import re
from collections.abc import Mapping
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from stream.cli.output import err, out
from stream.search.answer import Answer, Hit, Snippet, Standing, Timing, Why
from stream.search.request import Leg, Request
from stream.terminal import printable

HIGHLIGHT = "bold yellow"
LONGEST_ID = 40  # characters on one line
MOST_TERMS = 10  # of a leg that are printed; --json has all


def print_answer(answer: Answer, asked: Request, *, timings: bool = False) -> None:
    """Prints the hits as a table, and on standard error the legs that are missing.

    `explain` adds the contribution of each leg and term; it or `timings` adds how long each step took.
    """
    for leg, reason in answer.degraded.items():
        err.print(f"{leg} is missing: {reason}", markup=False)
    if answer.hits:
        out.print(_table(answer, asked))
        more = f"; next page: --cursor {answer.cursor}" if answer.cursor else ""
        out.print(f"{answer.reachable:,} reachable{more}", markup=False)
    else:
        out.print("nothing found")
    if asked.explain or timings:
        out.print(_timings(answer.timings), markup=False, style="dim")


def _table(answer: Answer, asked: Request) -> Table:
    several = len(asked.legs) > 1
    table = Table("", "score", "chunk", *(["legs"] if several else []), "text", box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[:2]:
        column.justify, column.no_wrap = "right", True
    table.columns[2].overflow, table.columns[2].max_width = "fold", LONGEST_ID
    if several:
        table.columns[3].no_wrap = True
    groups = groupby(answer.hits, lambda hit: hit.doc_id if asked.group else hit.chunk_id)
    for place, (name, found) in enumerate(groups, answer.offset + 1):
        if asked.group:
            table.add_row(str(place), "", Text(printable(name), style="bold"))
        for hit in found:
            legs = [_legs(hit, asked)] if several else []
            first = "" if asked.group else str(place)
            table.add_row(first, _number(hit.score), Text(printable(hit.chunk_id)), *legs, _text(hit))
    return table


def _legs(hit: Hit, asked: Request) -> Text:
    """The rank and the raw score of each leg that has found the hit, each on its line."""
    lines = []
    for leg, part in hit.legs.items():
        share = f" +{_number(part.contribution)}" if asked.explain else ""
        lines.append(f"{leg} {part.rank} {_number(part.score)}{share}")
    return Text("\n".join(lines))


def _text(hit: Hit) -> Text:
    text = _highlighted(hit.snippet)
    for line in _terms(hit.terms):
        text.append(f"\n{line}", style="dim")
    return text


def _highlighted(snippet: Snippet) -> Text:
    text, at = Text(), 0
    for start, end in snippet.highlights:
        text.append(_one_line(snippet.text[at:start])).append(_one_line(snippet.text[start:end]), HIGHLIGHT)
        at = end
    return text.append(_one_line(snippet.text[at:]))


def _one_line(text: str) -> str:
    return printable(re.sub(r"\s+", " ", text))


def _terms(terms: Mapping[Leg, Mapping[str, float]]) -> list[str]:
    """For each leg a line of its heaviest terms."""
    lines = []
    for leg, weights in terms.items():
        shown = [f"{printable(term)} {_number(weight)}" for term, weight in list(weights.items())[:MOST_TERMS]]
        if shown:
            lines.append(f"{leg}: {', '.join(shown)}{', …' if len(weights) > MOST_TERMS else ''}")
    return lines


def _timings(timings: list[Timing]) -> str:
    total = max((timing.start + timing.took for timing in timings), default=0)
    steps = ", ".join(f"{timing.step} {timing.took:.1f}" for timing in timings)
    return f"{total:.1f} ms: {steps}"


def _number(score: float) -> str:
    return f"{score:.4f}" if abs(score) < 10 else f"{score:.2f}"


def print_why(why: Why) -> None:
    """Prints whether the chunk is found, its place in each leg, and the reasons."""
    table = Table("", "rank", "score", "terms", title=Text(printable(why.chunk_id)), box=SIMPLE_HEAD, pad_edge=False)
    for leg, standing in why.legs.items():
        terms = [line.removeprefix(f"{leg}: ") for line in _terms({leg: why.terms.get(leg, {})})]
        table.add_row(leg, *_standing(standing), Text("".join(terms)))
    table.add_row("fused", *_standing(Standing(why.rank, why.score)))
    out.print(table)
    out.print(f"stored: {_yes(why.stored)}; the filter takes it: {_yes(why.matches_filter)}")
    for reason in why.reasons:
        out.print(f"- {printable(reason)}", markup=False)


def _standing(standing: Standing) -> tuple[str, str]:
    rank, score = standing.rank, standing.score
    return "-" if rank is None else str(rank), "-" if score is None else _number(score)


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "not asked"}[value]
