"""The cursor of the next page: where it begins, in which generation, and of which request.

A cursor is 32 characters of URL-safe base64 (RFC 4648): the offset and the generation (32 bits each), the request's
digest and a checksum (64 bits each). It is not secret and not signed: whoever makes up a cursor gets another page of
a search that they may do anyway. The checksum finds damage, a cut or changed character for example.
"""

import base64
import hashlib
import json
import struct

from stream.errors import InvalidRequest
from stream.search.request import Request

LAYOUT = struct.Struct(">II8s8s")  # 24 bytes: a multiple of 3, so that base64 pads nothing and leaves no bit unused
CHECKSUM = 8  # bytes
NOT_THE_RANKING = {"deadline", "strict", "explain", "cursor"}


class CursorError(InvalidRequest):
    """The cursor is damaged, or it is no cursor at all."""


class OtherRequest(CursorError):
    """The cursor is one of another request."""


class OtherGeneration(CursorError):
    """The cursor is one of another generation: its pages would repeat or miss hits."""


def encode(request: Request, offset: int, generation: int) -> str:
    """The cursor of the page that begins at `offset` (hits, or documents if grouped)."""
    content = LAYOUT.pack(offset, generation, _digest(request), b"")[:-CHECKSUM]
    return base64.urlsafe_b64encode(content + _checksum(content)).decode()


def decode(cursor: str, request: Request, generation: int) -> int:
    """The offset; raises `CursorError` unless `encode` made the cursor for an equal request and this generation.

    Requests are equal if they have one ranking and pages of one size: `deadline`, `strict` and `explain` may differ.
    """
    offset: int
    try:
        decoded = base64.urlsafe_b64decode(cursor)
        offset, first_generation, digest, checksum = LAYOUT.unpack(decoded)
    except (ValueError, struct.error):
        decoded = checksum = b""
    # Python's decoder skips characters that base64 does not have: a cursor is valid in one spelling only.
    if checksum != _checksum(decoded[:-CHECKSUM]) or base64.urlsafe_b64encode(decoded).decode() != cursor:
        raise CursorError("the cursor is damaged: pass it exactly as the earlier answer gave it")
    if digest != _digest(request):
        raise OtherRequest("the cursor is one of another request: repeat the request of the first page unchanged")
    if first_generation != generation:
        raise OtherGeneration("the index was rebuilt since the first page: search again without the cursor")
    return offset


def _digest(request: Request) -> bytes:
    """Of everything but what cannot change the ranking, so that a new field counts until it is named."""
    deciding = request.model_dump(mode="json", exclude=NOT_THE_RANKING)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).digest()[:8]


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:CHECKSUM]
