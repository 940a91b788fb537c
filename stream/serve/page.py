"""The page: static files, kept in memory, which a browser asks for again only when they have changed."""

from dataclasses import dataclass
from hashlib import sha256
from mimetypes import guess_type
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.routing import Route
from starlette.staticfiles import NotModifiedResponse

FOLDER = Path(__file__).parent / "page"


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str | None
    etag: str

    @classmethod
    def read(cls, path: Path) -> "_File":
        content = path.read_bytes()
        return cls(content, guess_type(path.name)[0], f'"{sha256(content).hexdigest()[:16]}"')

    def response(self, http: Request) -> Response:
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}  # a browser keeps it and asks whether it has changed
        full = Response(self.content, headers=headers, media_type=self.media_type)
        return NotModifiedResponse(full.headers) if http.headers.get("If-None-Match") == self.etag else full


def routes(app: FastAPI) -> None:
    """Adds the page and its files."""
    files = {path.relative_to(FOLDER).as_posix(): _File.read(path) for path in FOLDER.rglob("*") if path.is_file()}

    async def page(http: Request) -> Response:
        return files["index.html"].response(http)

    async def part(http: Request) -> Response:
        if (file := files.get(http.path_params["name"])) is None:
            raise HTTPException(404)
        return file.response(http)

    # FastAPI's own routes parse and validate what these do not have.
    app.router.routes += [Route("/", page), Route("/page/{name:path}", part)]
