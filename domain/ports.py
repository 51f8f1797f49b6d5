"""The seams of Graft: what the outside world must offer. `store` holds the adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol


class BlobInfo(NamedTuple):
    size_bytes: int
    sha256: str


class BlobStore(Protocol):
    """Immutable bytes under a key. A key appears whole or not at all."""

    def put(self, key: str, source: BinaryIO | Path, *, sha256: str | None = None) -> BlobInfo:
        """Store the bytes; Invalid("checksum_mismatch") if `sha256` is given and differs."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes [start, end) in chunks; NotFound if there is no such key."""

    def info(self, key: str) -> BlobInfo:
        """Size and checksum; NotFound if there is no such key."""

    def fetch(self, key: str, folder: Path) -> Path:
        """A local file with the bytes, checked against the checksum; fetched once, then kept in `folder`."""

    def delete(self, key: str) -> None:
        """Forget the key; no error if it is not there."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key below a prefix."""

    def age_s(self, key: str) -> float:
        """Seconds since the key was stored."""

    def tidy(self, older_than_s: float) -> None:
        """Remove what interrupted puts have left behind."""

    def check(self) -> None:
        """Unavailable if nothing can be written."""

    def free_bytes(self) -> int | None:
        """Room left, where that can be known."""


class Doorbell(Protocol):
    """Tells a handler that a row wants it. Losing or doubling a ring is harmless: the row decides."""

    def wake(self, handler: str, row_id: str) -> None: ...

    def check(self) -> bool:
        """Whether the bell can be rung."""
