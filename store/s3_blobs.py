"""Blobs in an S3-compatible store. An object appears whole: its checksum is known before an upload is completed."""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

from domain.errors import NotFound, Unavailable
from domain.ports import BlobInfo
from store.blob_bytes import CHUNK_BYTES, check_key, check_sum, fetch_into, missing, opened

PART_BYTES = 16 << 20  # 10 000 parts at most: objects up to 156 GiB, one part in memory at a time
_ABSENT = {"404", "NoSuchKey", "NotFound"}


class S3Blobs:
    """Keys below a prefix of a bucket, the sha256 in each object's metadata; credentials from where boto3 looks."""

    def __init__(
        self, url: str, *, endpoint_url: str | None = None, region: str | None = None, timeout_s: float = 30.0
    ) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        config = Config(
            connect_timeout=5, read_timeout=timeout_s, retries={"mode": "standard", "max_attempts": 5},
            # Stores other than Amazon's seldom give a bucket its own host name.
            s3={"addressing_style": "path"} if endpoint_url else {},
        )  # fmt: skip
        self._s3: Any = boto3.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)

    def put(self, key: str, source: BinaryIO | Path, *, sha256: str | None = None) -> BlobInfo:
        """One pass if the checksum is given; else it has to be read first, since metadata precede the bytes."""
        name = self._name(key)
        with opened(source) as file, _translated(key):
            if sha256 is not None:
                return self._put(name, file, sha256.lower())
            if file.seekable():
                start = file.tell()
                digest = _digest(file)
                file.seek(start)
                return self._put(name, file, digest)
            with tempfile.TemporaryFile() as spool:
                digest = _digest(file, spool)
                spool.seek(0)
                return self._put(name, spool, digest)

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        if end is not None and end <= start:
            self.info(key)
            return iter(())
        span = {} if start == 0 and end is None else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        with _translated(key):
            try:
                answer = self._s3.get_object(Bucket=self.bucket, Key=self._name(key), **span)
            except ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidRange", "416"):
                    return iter(())
                raise
        return _stream(key, answer["Body"])

    def info(self, key: str) -> BlobInfo:
        head = self._head(key)
        return BlobInfo(head["ContentLength"], head["Metadata"].get("sha256", ""))

    def fetch(self, key: str, folder: Path) -> Path:
        return fetch_into(self, key, folder)

    def delete(self, key: str) -> None:
        with _translated(key):
            self._s3.delete_object(Bucket=self.bucket, Key=self._name(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        with _translated(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for page in pages:
                for item in page.get("Contents", ()):
                    yield item["Key"].removeprefix(self.prefix)

    def check(self) -> None:
        """Unavailable if the bucket does not answer."""
        with _translated(""):
            try:
                self._s3.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                raise Unavailable("blobs_unavailable", f"bucket {self.bucket} cannot be reached") from error

    def free_bytes(self) -> int | None:
        return None

    def age_s(self, key: str) -> float:
        """Seconds since the blob was stored."""
        return time.time() - float(self._head(key)["LastModified"].timestamp())

    def tidy(self, older_than_s: float) -> None:
        """End the multipart uploads that interrupted puts have left behind."""
        with _translated(""):
            pages = self._s3.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for upload in page.get("Uploads", ()):
                    if time.time() - upload["Initiated"].timestamp() > older_than_s:
                        place = {"Bucket": self.bucket, "Key": upload["Key"]}
                        self._s3.abort_multipart_upload(**place, UploadId=upload["UploadId"])

    def _name(self, key: str) -> str:
        return self.prefix + check_key(key)

    def _head(self, key: str) -> Any:
        with _translated(key):
            return self._s3.head_object(Bucket=self.bucket, Key=self._name(key))

    def _put(self, name: str, file: BinaryIO, sha256: str) -> BlobInfo:
        place = {"Bucket": self.bucket, "Key": name}
        metadata = {"Metadata": {"sha256": sha256}}
        part = _read_part(file)
        if len(part) < PART_BYTES:
            check_sum(hashlib.sha256(part).hexdigest(), sha256)
            self._s3.put_object(**place, **metadata, Body=part)
            return BlobInfo(len(part), sha256)
        upload = place | {"UploadId": self._s3.create_multipart_upload(**place, **metadata)["UploadId"]}
        try:
            parts: list[dict[str, Any]] = []
            size_bytes, digest = 0, hashlib.sha256()
            while part:
                number = len(parts) + 1
                etag = self._s3.upload_part(**upload, PartNumber=number, Body=part)["ETag"]
                parts.append({"PartNumber": number, "ETag": etag})
                digest.update(part)
                size_bytes += len(part)
                part = _read_part(file)
            check_sum(digest.hexdigest(), sha256)
            self._s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            with suppress(ClientError, BotoCoreError):  # tidy() ends what cannot be ended now
                self._s3.abort_multipart_upload(**upload)
            raise
        return BlobInfo(size_bytes, sha256)


def _read_part(file: BinaryIO) -> bytes:
    """A whole part, also from a stream that hands out less at a time; shorter only at the end."""
    chunks: list[bytes] = []
    left = PART_BYTES
    while left and (chunk := file.read(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _digest(file: BinaryIO, copy: Any = None) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    return digest.hexdigest()


def _stream(key: str, body: Any) -> Iterator[bytes]:
    with _translated(key), body:
        yield from body.iter_chunks(CHUNK_BYTES)


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] in _ABSENT:
            found: NotFound = missing(key)
            raise found from None
        detail = f"the blob store refused: {error.response['Error'].get('Code')}"
        raise Unavailable("blobs_unavailable", detail) from error
    except (BotoCoreError, ReadTimeoutError) as error:
        raise Unavailable("blobs_unavailable", "the blob store does not answer; try again") from error
