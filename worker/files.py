"""Local files for an order: items, packs and weights, fetched or built once per machine and kept in the cache."""

import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

from domain.catalogue import catalogue
from domain.errors import Invalid, NotFound, Unavailable
from domain.job import JobSpec
from domain.lot import SourceFiles
from domain.recipe import Recipe
from domain.teaching import needs
from intake.preprocess.classification import scaled
from store.cache import fetch_blob, once
from worker.context import Context
from worker.crew import clean_environment

log = logging.getLogger(__name__)

SANDBOX_MEMORY_BYTES = 8 << 30
SANDBOX_CPU_S = 4 * 3600
SANDBOX_FILE_BYTES = 64 << 30


def sandboxed(arguments: list[str]) -> dict[str, object]:
    """Run `python -m intake …` in a child with memory, CPU and file limits and no credentials; its one line of JSON."""
    limits = [
        "--max-memory-bytes", str(SANDBOX_MEMORY_BYTES), "--max-cpu-s", str(SANDBOX_CPU_S),
        "--max-file-bytes", str(SANDBOX_FILE_BYTES),
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")}
    environment["OPENBLAS_NUM_THREADS"] = "1"  # the buffers of idle threads count against the memory limit
    done = subprocess.run(
        [sys.executable, "-m", "intake", *limits, *arguments],
        env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if not lines:
        tail = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise Invalid("intake_crashed", f"reading the data ended with status {done.returncode}: {tail[0][:300]}")
    answer = json.loads(lines[-1])
    if "error" in answer:
        error = answer["error"]
        raise Invalid(error["code"], error["detail"], **error.get("facts", {}))
    body: dict[str, object] = answer["ok"]
    return body


def pack_folder(
    context: Context, items_blob: str, backbone: str, resolution: int, *, n_threads: int | None = None
) -> Path:
    """The packed dataset as `backbone` wants its pixels at `resolution`; built on the first call on this machine."""
    spec = catalogue().backbone(backbone).preprocessing
    canvas, crop = scaled(spec.resize, spec.crop, resolution)
    # <workspace>/datasets/<id>/<fence>/items.zip: packs of two workspaces never meet.
    workspace, _, dataset_id, fence, _ = items_blob.split("/")
    name = f"{dataset_id}-{fence}-{canvas}-{crop}-{spec.interpolation}"
    folder = context.cache / workspace / "packs" / name

    def build(partial: Path) -> None:
        items = fetch_blob(context.blobs, items_blob, context.cache / workspace / "items")
        sandboxed([
            "pack", str(items), str(partial / "pack"),
            "--resize", str(canvas), "--crop", str(crop), "--interpolation", spec.interpolation,
            *(() if n_threads is None else ("--threads", str(n_threads))),
        ])  # fmt: skip

    return once(folder, build) / "pack"


def source_files(context: Context, spec: JobSpec, ref: str) -> SourceFiles:
    source = spec.source(ref)
    if source.kind == "scratch":
        return SourceFiles(weights=None)
    if source.kind == "torchvision":
        weights = catalogue().backbone(source.backbone).weights
        # The trial process looks in the weights folder and, where that is allowed, asks torchvision.
        return SourceFiles(weights=ref, n_classes=weights[0].n_classes if weights else 0)
    assert source.blob is not None
    path = fetch_blob(context.blobs, source.blob, context.cache / source.blob.split("/", 1)[0] / "weights")
    return SourceFiles(weights=str(path), n_classes=source.n_classes or len(source.classes))


def source_pack(
    context: Context, items_blob: str | None, recipe: Recipe, measure: Collection[str] = (), *,
    n_threads: int | None = None,
) -> str | None:  # fmt: skip
    """The packed source dataset as the recipe wants its pixels, where one of its parts learns from source data or the
    trained network is measured on it."""
    if items_blob is None or ("source_data" not in needs(recipe, catalogue()) and "source_accuracy" not in measure):
        return None
    return str(pack_folder(context, items_blob, recipe.backbone, recipe.data.resolution, n_threads=n_threads))


def fetch_weights(context: Context, source: SourceFiles) -> None:
    """Bring torchvision's weights of a source into the weights folder, in a process of its own, for a worker's has no
    torch; Unavailable if they cannot be fetched."""
    _, published, backbone = str(source.weights).partition("torchvision:")
    folder = context.settings.weights
    if not published or (folder / f"{backbone}.safetensors").exists():
        return
    command = [sys.executable, "-m", "models", backbone, str(folder)]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise Unavailable("weights_unavailable", f"weights of {backbone}: {said[0]}")


def fetch_resume_point(context: Context, key: str) -> Path:
    """The archive of a resume point on this machine, until it is unpacked."""
    return context.blobs.fetch(key, context.cache / key.partition("/")[0] / "resume")


def fetch_folder(context: Context, key: str, folder: Path) -> str | None:
    """Unpack a resume point that this installation has written; None if it is gone or damaged (start over then).

    A blob store that does not answer is no reason to start over: that is Unavailable.
    """
    archive: Path | None = None
    try:
        archive = fetch_resume_point(context, key)
        with zipfile.ZipFile(archive) as bundle:
            bundle.extractall(folder)
    except (NotFound, Unavailable, zipfile.BadZipFile) as error:
        if isinstance(error, Unavailable) and error.code != "blob_corrupt":
            raise
        log.warning("resume point %s cannot be used: %s", key, error)
        return None
    finally:
        if archive is not None:
            archive.unlink(missing_ok=True)  # it is read once
    return str(folder)
