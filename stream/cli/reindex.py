"""`stream reindex`: build a new generation of both stores while the live one serves, and swap."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import typer
from rich.table import Table

from stream.cli.options import Accept, settings_of
from stream.cli.output import Json, out, print_json, progress_bars
from stream.config import STAGES, StageName
from stream.operate import reindex as reindexing
from stream.operate.reindex import Accepted, Look
from stream.stores import Stores, open_stores
from stream.stores.base import Generation

Result = TypeVar("Result")

app = typer.Typer(
    name="reindex", help="Build a new generation of both stores while the live one serves.", no_args_is_help=True
)

AcceptOlder = Annotated[
    bool,
    typer.Option(
        "--accept-older", help="Swap even if searches then find older versions of some chunks, or no longer find them."
    ),
]


@app.command("start")
def start(
    context: typer.Context,
    swap: Annotated[bool, typer.Option(help="Swap when it is complete, or leave that to `swap`.")] = True,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Maximum records per second, for each worker.")] = None,
    accept: Accept = None,
    accept_older: AcceptOlder = False,
) -> None:
    """Build a new generation (or resume an unfinished one), check it with `verify`, and swap.

    It is built from the expanded chunks of the flow. A flow that has no generation is built from `chunks`.
    """
    own = context.obj | ({} if rate is None else {"rate_limit": str(rate)})
    accepted = Accepted(accept or (), accept_older)
    number = _with_progress(
        lambda look: reindexing.start(settings_of(context), own, swap_too=swap, accepted=accepted, look=look)
    )
    out.print(f"generation {number} is {'live' if swap else 'complete'}")


@app.command("status")
def status(context: typer.Context, json: Json = False) -> None:
    """List the generations and the lag of each. --json also names the indexes in which a generation is live."""

    async def look() -> list[tuple[Generation, int | None, dict[str, str | None]]]:
        settings = settings_of(context)
        async with open_stores(settings) as stores:
            return [
                (one, await reindexing.lag(settings, one), _live_names(stores, one))
                for one in await stores.generations()
            ]

    found = asyncio.run(look())
    generations = [one for one, _, _ in found]
    swaps = {one.flow: reindexing.unfinished(one.flow, generations) for one in generations}
    if json:
        return print_json(
            [
                {
                    "number": one.number,
                    "flow": one.flow,
                    "live": one.live,
                    "live_in": sorted(one.live_in),
                    "swapping": swaps[one.flow] == one.number,
                    "lag": lag,
                    **names,
                }
                for one, lag, names in found
            ]
        )
    table = Table("generation", "flow", "lag", "")
    for one, lag, _ in found:
        where = "" if len(one.live_in) != 1 else f" in {min(one.live_in)} only"
        said = f"live{where}" if one.live else ""
        table.add_row(str(one.number), one.flow, "no topics" if lag is None else f"{lag:,}", said)
    out.print(
        table if found else "no generation yet: the first index worker creates one, or run `stream reindex start`"
    )
    for flow, number in swaps.items():
        if number is not None:
            out.print((f"flow {flow}: " if flow else "") + reindexing.unfinished_sentence(number), markup=False)
    return None


def _live_names(stores: Stores, one: Generation) -> dict[str, str | None]:
    """The names that clients use now; null where the generation is not live."""
    in_neo4j, in_opensearch = (store.name in one.live_in for store in (stores.neo4j, stores.opensearch))
    return {
        "neo4j_index": stores.neo4j.index(one.number) if in_neo4j else None,
        "opensearch_index": stores.opensearch.index(one.number) if in_opensearch else None,
        "opensearch_alias": stores.opensearch.alias(one.flow) if in_opensearch else None,
    }


@app.command("swap")
def swap(
    context: typer.Context,
    number: Annotated[int, typer.Argument(min=1, help="The generation.")],
    accept: Accept = None,
    accept_older: AcceptOlder = False,
) -> None:
    """Bring a generation up to date, check it with `verify`, and make it live; or finish an interrupted swap to it."""
    accepted = Accepted(accept or (), accept_older)
    _with_progress(
        lambda look: reindexing.swap(settings_of(context), number, context.obj, accepted=accepted, look=look)
    )
    out.print(f"generation {number} is live")


@app.command("rollback")
def rollback(context: typer.Context, accept: Accept = None, accept_older: AcceptOlder = False) -> None:
    """Swap back to the previous generation."""
    accepted = Accepted(accept or (), accept_older)
    number = _with_progress(
        lambda look: reindexing.rollback(settings_of(context), context.obj, accepted=accepted, look=look)
    )
    out.print(f"generation {number} is live")


@app.command("abort")
def abort(context: typer.Context) -> None:
    """Delete the generation that is being built."""
    _print_deleted(asyncio.run(reindexing.drop(settings_of(context), lambda one, live: one.number > live)))


@app.command("prune")
def prune(context: typer.Context) -> None:
    """Delete the generations older than the live one; a rollback to them is then impossible."""
    _print_deleted(asyncio.run(reindexing.drop(settings_of(context), lambda one, live: one.number < live)))


def _print_deleted(numbers: list[int]) -> None:
    out.print(f"deleted generation {', '.join(map(str, numbers))}" if numbers else "there is nothing to delete")


def _with_progress(run: Callable[[Look], Coroutine[Any, Any, Result]]) -> Result:
    """Runs the coroutine function with a progress bar for each stage."""
    with progress_bars() as bars:
        tasks = {stage: bars.add_task(stage, total=None, visible=False) for stage in STAGES}

        def look(stage: StageName, done: int, total: int) -> None:
            bars.update(tasks[stage], completed=done, total=total, visible=True)

        return asyncio.run(run(look))
