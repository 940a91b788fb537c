"""The page: static files, which a browser asks for again only when they have changed."""

from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parent / "page"
AGAIN = {"Cache-Control": "no-cache"}  # a browser keeps a file and asks by its ETag whether it has changed


def routes(app: FastAPI) -> None:
    """Adds the page and its files."""
    files = StaticFiles(directory=FOLDER)

    async def file(name: str, http: Request) -> Response:
        response = await files.get_response(name, http.scope)
        response.headers.update(AGAIN)
        return response

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page(http: Request) -> Response:
        return await file("index.html", http)

    @app.api_route("/page/{name:path}", methods=["GET", "HEAD"], include_in_schema=False)
    async def part(name: str, http: Request) -> Response:
        return await file(name, http)
