"""The bundle: what the user downloads, and the proof that it predicts what the trained network predicts.

model.safetensors  recipe.json  labels.json  preprocessing.json  preprocess.py  model.onnx  model_card.md
predict.py  requirements.txt  LICENSE-WEIGHTS.txt  MANIFEST.json (size and sha256 of every other file)
members.json (of a combination: trial number, recipe and share of each; `recipe.json` is then the first one's)
"""

import copy
import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from domain.catalogue import Preprocessing
from domain.errors import Conflict
from domain.recipe import Recipe
from intake.packs import Pack
from models.ensemble import Ensemble
from models.network import Network
from models.weights import save_weights
from transfer.evaluate import Floats, Ints, PixelNetwork, evaluation_pixels, predict, softmax

TOLERANCE = 1e-3  # largest |logit difference| between ONNX Runtime and torch
CHECKED_AT_LEAST = 256  # items, where there are so many outside test
OPSET = 20
EPOCH = (1980, 1, 1, 0, 0, 0)  # the zip of the same files is the same zip
COMPRESSED = {".json", ".md", ".py", ".txt"}  # weights hardly shrink and take long


@dataclass(frozen=True, slots=True)
class ExportCheck:
    """ONNX Runtime against torch. A near-tie is an item whose two best logits are within twice the tolerance: only
    there may the two name different classes."""

    n_items: int
    n_val: int
    largest_difference: float  # of any logit of any item
    largest_probability_difference: float
    n_near_ties: int
    n_top1_different: int
    tolerance: float = TOLERANCE

    def facts(self) -> dict[str, Any]:
        return asdict(self)


class ExportedNetwork(nn.Module):
    """pixels (B, R, R, 3) uint8 -> logits (B, C), probabilities softmax(logits / T) (B, C)."""

    def __init__(self, network: PixelNetwork, temperature: float) -> None:
        super().__init__()
        self.network = network
        self.temperature = temperature

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(pixels)
        return logits, torch.softmax(logits / self.temperature, 1)


def export(
    network: Network | Ensemble,
    *,
    recipe: Recipe,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    temperature: float,
    licence: str,
    pack: Pack,
    folder: Path,
    members: Sequence[dict[str, Any]] = (),
    device: str = "cpu",
    n_threads: int = 1,
) -> ExportCheck:
    """Write every file but the card and the manifest into `folder`; Conflict("export_mismatch") if ONNX differs."""
    folder.mkdir(parents=True, exist_ok=True)
    pixel_network = PixelNetwork(network, preprocessing).eval()
    described = preprocessing_facts(preprocessing)
    save_weights(network.state_dict(), folder / "model.safetensors")
    write_json(folder / "recipe.json", recipe.model_dump(mode="json"))
    if members:
        write_json(folder / "members.json", list(members))
    write_json(folder / "labels.json", list(classes))
    write_json(folder / "preprocessing.json", described | {"calibration_temperature": temperature})
    _copy(files("intake.preprocess").joinpath(f"{recipe.task}.py"), folder / "preprocess.py")
    _copy(files("transfer").joinpath("predict_template.py"), folder / "predict.py")
    _copy(files("transfer").joinpath("requirements_bundle.txt"), folder / "requirements.txt")
    (folder / "LICENSE-WEIGHTS.txt").write_text(licence, "utf-8")
    metadata = {
        "task": recipe.task,
        "labels": json.dumps(list(classes), ensure_ascii=False),
        "preprocessing": json.dumps(described),
        "calibration_temperature": repr(temperature),
    }
    write_onnx(pixel_network, folder / "model.onnx", temperature=temperature, size=pack.crop, metadata=metadata)
    return check_export(
        pixel_network, folder / "model.onnx", pack, temperature=temperature, device=device, n_threads=n_threads
    )


def preprocessing_facts(preprocessing: Preprocessing) -> dict[str, Any]:
    """Evaluation pixels in words and numbers, for programs other than predict.py."""
    return preprocessing.model_dump(mode="json") | {
        "steps": "upright RGB; short side to `resize`; centre crop `crop`; (x / 255 - mean) / std",
        "input": "pixels, uint8, (N, crop, crop, 3), RGB after resize and crop; the graph itself normalises",
        "outputs": "logits (N, C); probabilities (N, C) = softmax(logits / calibration_temperature)",
    }


def write_onnx(
    network: PixelNetwork, path: Path, *, temperature: float, size: int, metadata: dict[str, str], title: str = "graft"
) -> None:
    """One file with the weights inside, any batch size; Conflict("export_failed") if the network has no ONNX form."""
    graph = ExportedNetwork(copy.deepcopy(network).cpu().float(), temperature).eval()
    for module in graph.modules():
        if "inplace" in vars(module):  # the exporter takes such operations apart, in twice the time
            vars(module)["inplace"] = False
    fold_batch_norms(graph)
    sample = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # two: a batch of one would be taken for a constant
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                graph, (sample,), dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                input_names=["pixels"], output_names=["logits", "probabilities"],
                dynamic_shapes=({0: torch.export.Dim("n_items", min=1)},),
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise Conflict("export_failed", f"the network cannot be written as ONNX: {reason}") from error
    if program is None:
        raise Conflict("export_failed", "the network cannot be written as ONNX")
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces with this machine's paths
    program.model.metadata_props.update(metadata)
    program.model.producer_name = title
    program.save(str(path), external_data=False)


def fold_batch_norms(graph: nn.Module) -> None:
    """Have convolutions do what the batch norms behind them do: the exporter would, in twice the time.

    Stage by stage, for whole networks branch on shapes. A stage that does so itself, or that hooks see into (what they
    do between a convolution and its batch norm would be lost), is left as it is.
    """
    for network in [module for module in graph.modules() if isinstance(module, Network)]:
        for name in network.stage_names:
            stage = network.get_submodule(name)
            if any(module._forward_hooks or module._forward_pre_hooks for module in stage.modules()):
                continue
            with suppress(fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NameError):
                setattr(network, name, fuse(stage))


def open_onnx(path: Path, *, n_threads: int = 1) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def checked_rows(split: Ints) -> tuple[Ints, int]:
    """All of val, filled up with train to 256 items, never test; and how many are val's."""
    val, train = np.flatnonzero(split == 1), np.flatnonzero(split == 0)
    return np.concatenate([val, train[: max(0, CHECKED_AT_LEAST - len(val))]]), len(val)


def check_export(
    network: PixelNetwork,
    path: Path,
    pack: Pack,
    *,
    temperature: float,
    device: str = "cpu",
    n_threads: int = 1,
    batch: int = 64,
) -> ExportCheck:
    """Compare the file with the network it came from; Conflict("export_mismatch") if they disagree."""
    rows, n_val = checked_rows(np.asarray(pack.split))
    expected = predict(network, pack, rows, batch=batch, device=device)
    session = open_onnx(path, n_threads=n_threads)
    answers = [
        session.run(["logits", "probabilities"], {"pixels": evaluation_pixels(pack, rows[start : start + batch])})
        for start in range(0, len(rows), batch)
    ]
    logits, probabilities = (np.concatenate([a[k] for a in answers]) for k in range(2))
    check = ExportCheck(
        n_items=len(rows),
        n_val=n_val,
        largest_difference=_largest(logits, expected),
        largest_probability_difference=_largest(probabilities, softmax(expected, temperature)),
        n_near_ties=int(near_ties(expected).sum()),
        n_top1_different=int((logits.argmax(1) != expected.argmax(1)).sum()),
    )
    clear = ~near_ties(expected)
    same = bool((logits.argmax(1) == expected.argmax(1))[clear].all())
    # Written so that a NaN fails.
    if not (check.largest_difference <= TOLERANCE and check.largest_probability_difference <= TOLERANCE and same):
        raise Conflict(
            "export_mismatch",
            f"ONNX Runtime and torch differ by up to {check.largest_difference:.2g} in a logit "
            f"(at most {TOLERANCE:g} is allowed) over {check.n_items} items",
            **check.facts(),
        )
    return check


def near_ties(logits: Floats) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) where the two best logits are within twice the tolerance."""
    best = np.partition(logits, -2, axis=1)[:, -2:]
    ties: np.ndarray[Any, np.dtype[np.bool_]] = best[:, 1] - best[:, 0] <= 2 * TOLERANCE
    return ties


def _largest(a: Floats, b: Floats) -> float:
    return float(np.abs(a.astype(np.float64) - b).max()) if a.size else 0.0


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """MANIFEST.json: `facts`, and size and sha256 of every other file."""
    listed = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.name != "MANIFEST.json"):
        with path.open("rb") as file:
            listed[path.name] = {
                "size_bytes": path.stat().st_size,
                "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            }
    write_json(folder / "MANIFEST.json", facts | {"files": listed})


def write_zip(folder: Path, path: Path) -> Path:
    """The files of `folder`, flat, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for source in sorted(p for p in folder.iterdir() if p.is_file()):
            entry = zipfile.ZipInfo(source.name, EPOCH)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED if source.suffix in COMPRESSED else zipfile.ZIP_STORED
            with source.open("rb") as read, archive.open(entry, "w", force_zip64=True) as write:
                while chunk := read.read(1 << 20):
                    write.write(chunk)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    return partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _copy(source: Any, target: Path) -> None:
    target.write_bytes(source.read_bytes())
