"""The distributed form with its bytes in an S3-compatible store: from upload to a bundle fetched in pieces."""

import hashlib
import io
import zipfile
from pathlib import Path

import boto3
import httpx
import pytest

from tests.system.installation import KEY, installed

AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


def test_a_job_whose_bytes_lie_in_s3(
    tmp_path: Path, postgres_url: str, redis_url: str, s3_bucket: str, s3_endpoint: str, two_digits: Path
) -> None:
    settings = {
        "GRAFT_DATABASE_URL": postgres_url, "GRAFT_REDIS_URL": redis_url, "GRAFT_BLOB_URL": f"{s3_bucket}/graft",
        "GRAFT_S3_ENDPOINT_URL": s3_endpoint, "GRAFT_S3_REGION": "us-east-1",
    }  # fmt: skip
    bucket = s3_bucket.removeprefix("s3://")
    with installed(tmp_path / "home", **settings) as installation:
        installation.start_api()
        installation.start_worker()
        with installation.client() as client:
            dataset = client.datasets.wait(client.datasets.upload(two_digits).id, timeout_s=60)
            job = client.jobs.submit(
                dataset.id, sources=["scratch:smallnet"], trials=2, n_folds=1, sampler="random", pruner="none",
                space={"steps": 125, "data.flip": False, "data.batch_size": 32},
            )  # fmt: skip
            done = client.jobs.wait(job.id, timeout_s=120)
            assert done.state == "COMPLETE", done.error
            whole = client.jobs.download_bundle(job.id, tmp_path / "bundle.zip").read_bytes()
            assert "model.onnx" in zipfile.ZipFile(io.BytesIO(whole)).namelist()
            check_ranges(f"{installation.url}/v1/jobs/{job.id}/bundle", whole)

            assert not (installation.home / "blobs").exists(), "nothing was kept beside the store"
            store = boto3.client("s3", endpoint_url=s3_endpoint)
            keys = [o["Key"] for o in store.list_objects_v2(Bucket=bucket)["Contents"]]
            assert all(key.startswith("graft/ws_") for key in keys)
            assert {Path(key).name for key in keys} >= {"items.zip", "bundle.zip", "weights.safetensors"}
            client.jobs.delete(job.id)
            client.datasets.delete(dataset.id)
            installation.until(lambda: "Contents" not in store.list_objects_v2(Bucket=bucket), for_s=15)
            store.close()


def check_ranges(url: str, whole: bytes) -> None:
    """Any part of the bundle, in the terms of RFC 9110."""
    head = httpx.head(url, headers=AUTHORIZED)
    assert head.headers["accept-ranges"] == "bytes"
    assert int(head.headers["content-length"]) == len(whole)
    pieces = []
    for start in range(0, len(whole), 1 << 20):
        wanted = {"Range": f"bytes={start}-{start + (1 << 20) - 1}", "If-Range": head.headers["etag"]}
        piece = httpx.get(url, headers=AUTHORIZED | wanted)
        assert piece.status_code == 206
        end = min(start + (1 << 20), len(whole)) - 1
        assert piece.headers["content-range"] == f"bytes {start}-{end}/{len(whole)}"
        pieces.append(piece.content)
    assert hashlib.sha256(b"".join(pieces)).digest() == hashlib.sha256(whole).digest()
    assert httpx.get(url, headers=AUTHORIZED | {"Range": "bytes=-4"}).content == whole[-4:]
    assert httpx.get(url, headers=AUTHORIZED | {"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert httpx.get(url, headers=AUTHORIZED | {"If-None-Match": head.headers["etag"]}).status_code == 304
    with pytest.raises(httpx.HTTPStatusError):
        httpx.get(url).raise_for_status()
