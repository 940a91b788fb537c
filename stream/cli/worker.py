"""The command that runs a stage."""

from typing import Annotated

import typer

from stream.cli.options import settings_of
from stream.config import StageName
from stream.errors import GpuRequired

app = typer.Typer()


@app.command()
def worker(
    context: typer.Context,
    stage: Annotated[StageName, typer.Argument(help="The stage to run.", show_default=False)],
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="all|N", help="Start one worker process for each GPU, or for the first N. Only for `expand`."
        ),
    ] = None,
) -> None:
    """Run one stage until SIGTERM."""
    settings = settings_of(context)
    if gpus is None:
        from stream.worker.run import run  # noqa: PLC0415 - Faust takes a second to import

        run(stage, settings)
        return
    from stream.worker import gpus as several  # noqa: PLC0415

    if stage != "expand" or not (gpus == "all" or (gpus.isdecimal() and int(gpus))):
        raise typer.BadParameter("only `expand` takes it; expected `all` or a positive number", param_hint="--gpus")
    found = several.visible()
    wanted = len(found) if gpus == "all" else int(gpus)
    if wanted > len(found):
        raise GpuRequired(f"--gpus {wanted}: only {len(found)} GPUs are visible; ask for fewer")
    raise typer.Exit(several.run(stage, settings, context.obj, found[:wanted]))
