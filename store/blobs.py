"""The blob store of an installation: a local folder, or S3."""

from pathlib import Path

from domain.errors import Invalid
from domain.ports import BlobStore
from store.local_blobs import LocalBlobs
from store.settings import Settings


def open_blobs(settings: Settings) -> BlobStore:
    """The blob store of these settings."""
    url = settings.blob_url
    if url is None:
        return LocalBlobs(settings.home / "blobs")
    if url.startswith("s3://"):
        from store.s3_blobs import S3Blobs  # here, since boto3 takes a second to import

        return S3Blobs(url, endpoint_url=settings.s3_endpoint_url, region=settings.s3_region)
    if url.startswith("file://"):
        return LocalBlobs(Path(url.removeprefix("file://")))
    raise Invalid("bad_settings", f"blob_url: {url!r} is neither s3://bucket/prefix nor file:///folder")
