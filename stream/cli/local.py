"""`stream local`: the whole flow on one machine, without Docker and without a GPU."""

import asyncio
from datetime import timedelta
from itertools import zip_longest
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from stream import config
from stream.cli.output import Json, err, out, print_json, progress_bars
from stream.cli.state import print_report
from stream.config import Settings
from stream.kafka import topics
from stream.local import demo, trained
from stream.local.profile import Profile
from stream.local.servers import install, servers
from stream.local.supervisor import Program, begin
from stream.local.supervisor import down as stop_all
from stream.local.supervisor import status as programs_status
from stream.local.supervisor import up as start_all
from stream.operate import status as state
from stream.operate import verify as checking
from stream.search.request import Leg
from stream.stores import open_stores

app = typer.Typer(
    name="local",
    help="Run everything on this machine: Kafka, Neo4j, OpenSearch, an embedder, the workers, the search service.",
    no_args_is_help=True,
)

Home = Annotated[Path, typer.Option(help="Folder for the servers' programs, data and logs.")]
HOME = Path(".local")
MODES: tuple[Leg, ...] = ("bm25", "splade", "dense")
QUESTIONS = (  # in other words than the answers; for some of them one mode fails and another helps
    "run a function after some seconds",
    "split a shell command the way a shell would",
    "compare two floating point numbers that are nearly equal",
    "how do I wait for several coroutines at once",
)
HITS = 5


def _say(sentence: str) -> None:
    err.print(sentence, markup=False)


def _programs(profile: Profile) -> tuple[list[Program], list[Program], Program]:
    """The servers with the embedder, the workers, and the search service."""
    file = profile.env_file
    return [*servers(profile), demo.embedder(profile)], demo.workers(profile, file), demo.search(profile, file)


def _settings(profile: Profile) -> Settings:
    """The settings of the workers. The environment is ignored: it may name other servers."""
    return config.only(profile.environment())


@app.command()
def up(home: Home = HOME) -> None:
    """Start the servers, the embedder, the workers and the search service, except those that already run."""
    profile = Profile.from_environment(home)
    _, search = _start(profile)
    start_all(profile, [search], _say)
    _say(
        f"\nuse it:   export STREAM_ENV_FILE={profile.env_file}"
        "\nstop it:  stream local down"
        f"\nopen it:  {search.address}"
    )


def _start(profile: Profile) -> tuple[Settings, Program]:
    """Starts everything. The search service, which is returned, may still be loading its model."""
    _say("REQUIRE_GPU=0: development profile, with two small trained models on the CPU.")
    install(profile, _say)
    trained.install(profile.models, _say)
    profile.write_env_file()
    settings = _settings(profile)
    basis, workers, search = _programs(profile)
    start_all(profile, basis, _say)
    asyncio.run(topics.create(settings))
    begin(profile, [*workers, search], _say)
    start_all(profile, workers, _say)
    return settings, search


@app.command()
def down(home: Home = HOME) -> None:
    """Stop everything that `up` started. The data are kept."""
    stop_all(Profile.from_environment(home))
    _say("stopped")


@app.command()
def status(home: Home = HOME, json: Json = False) -> None:
    """Show the state of each program. Exit code 1 if any is not ready."""
    profile = Profile.from_environment(home)
    basis, workers, search = _programs(profile)
    found = programs_status(profile, [*basis, *workers, search])
    if json:
        print_json(found)
    else:
        table = Table("program", "state", "pid", "up", "ready", "address")
        for p in found:
            up_for = str(timedelta(seconds=int(p.seconds_up))) if p.pid else ""
            ready = {True: "yes", False: "no", None: ""}[p.ready]
            table.add_row(p.name, p.state, str(p.pid or ""), up_for, ready, p.address)
        out.print(table)
    if not all(p.ready for p in found):
        raise typer.Exit(1)


@app.command("demo")
def run_demo(home: Home = HOME) -> None:
    """Start everything, publish real text, wait until it is searchable, verify that no chunk is lost, and search."""
    profile = Profile.from_environment(home)
    settings, search = _start(profile)
    with progress_bars() as bars:
        reading = bars.add_task("publish", total=None)
        published = demo.publish_corpus(settings, lambda _: bars.advance(reading))
        bars.update(reading, total=published.sent, completed=published.sent)
        tasks = {stage: bars.add_task(stage, total=None) for stage in config.STAGES}

        def look(now: list[state.StageStatus]) -> None:
            for found in now:
                bars.update(tasks[found.stage], completed=found.done, total=max(found.total, now[0].total))

        asyncio.run(state.caught_up(settings, look=look))
    _say("\nIs every chunk of the topic in both stores?")
    report = asyncio.run(_verify(settings))
    print_report(report)
    if not report.clean:
        raise typer.Exit(1)
    start_all(profile, [search], _say)
    for question, found in zip(QUESTIONS, demo.ask(search.address, QUESTIONS, MODES, HITS), strict=True):
        table = Table(title=question, title_justify="left", title_style="bold")
        for mode in MODES:
            table.add_column(mode, overflow="fold")
        for row in zip_longest(*found, fillvalue=""):
            table.add_row(*row)
        out.print("", table)
    _say(
        f"\nIt runs: Kafka at {settings.kafka_servers}, Neo4j at {settings.neo4j_uri}, "
        f"OpenSearch at {settings.opensearch_url}, three workers, the search service."
        f"\nuse it:   export STREAM_ENV_FILE={profile.env_file}; stream search 'your words'"
        "\nstop it:  make down"
        f"\nopen it:  {search.address}"
    )


async def _verify(settings: Settings) -> checking.Report:
    async with open_stores(settings) as stores:
        return await checking.verify(settings, stores)
