"""Downloads: one file, whole or a single range, from any blob store, in constant time and memory.

`ETag` is the SHA-256 of the whole file. Several ranges in one request are answered with the whole file (RFC 9110 lets a
server ignore Range), which no list of ranges, however long, can make expensive.
"""

import base64
import re
from collections.abc import Iterator
from itertools import chain

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from domain.errors import Invalid
from domain.ports import BlobInfo, BlobStore

_RANGE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.IGNORECASE)
_MAX_HEADER = 64


def serve(request: Request, blobs: BlobStore, key: str, info: BlobInfo, *, media_type: str, filename: str) -> Response:
    """The answer to GET or HEAD for the blob `key`: 200, 206, 304 or 416."""
    etag = f'"{info.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "X-Checksum-Sha256": info.sha256,
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(info.sha256)).decode()}:",
        "Content-Disposition": f'attachment; filename="{filename}"',
        "Cache-Control": "private, no-cache",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = None
    if request.headers.get("if-range", etag) == etag:
        span = find_range(request.headers.get("range"), info.size_bytes)
    start, end = span or (0, info.size_bytes)
    headers["Content-Length"] = str(end - start)
    if span:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{info.size_bytes}"
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    pieces = begun(blobs.read(key, start, end)) if end > start else iter(())
    return StreamingResponse(pieces, status_code=status, headers=headers, media_type=media_type)


def find_range(header: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of a single byte range; None for the whole file.

    Invalid("range_not_satisfiable") if it begins behind the end. A header that is not a single range is ignored.
    """
    if header is None or len(header) > _MAX_HEADER:
        return None
    found = _RANGE.fullmatch(header.strip())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":  # the last n bytes
        start, end = max(size - int(found[2]), 0), size
        empty = int(found[2]) == 0 or size == 0
    else:
        start = int(found[1])
        end = min(int(found[2]) + 1, size) if found[2] else size
        if found[2] and int(found[2]) < start:
            return None
        empty = start >= size
    if empty:
        raise Invalid("range_not_satisfiable", f"the file has {size} bytes", size_bytes=size)
    return start, end


def begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, the first piece read already: a blob that is not there is noticed before the answer begins."""
    first = next(pieces, b"")
    return chain([first], pieces)


def _matches(header: str | None, etag: str) -> bool:
    if header is None or len(header) > 4096:
        return False
    return header.strip() == "*" or etag in (tag.strip().removeprefix("W/") for tag in header.split(","))
