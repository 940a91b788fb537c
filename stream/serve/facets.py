"""What a caller can filter by."""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from stream.search.choices import Choices
from stream.search.filters import Filter
from stream.serve.callers import Caller
from stream.serve.service import Service


class Asked(BaseModel):
    """Among which chunks; without a filter, among all."""

    model_config = ConfigDict(extra="forbid")

    filter: Filter | None = None


def routes(app: FastAPI, service: Service) -> None:
    """Adds the route."""

    @app.post("/facets", summary="Fields and values to filter by")
    async def facets(key: Caller, asked: Asked) -> Choices:
        """The fields of the chunks that the filter takes, and the most frequent values of each field."""
        return await service.searcher.choices(key.among(asked.filter))
