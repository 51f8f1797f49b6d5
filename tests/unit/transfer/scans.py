"""Real scans in a pack, small networks trained on them, and the order that finishes a job of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from domain.catalogue import Preprocessing
from domain.dataset import Statistics
from domain.job import Budget, Objective
from domain.lot import DataFacts, FinishCandidate, FinishOrder, SearchFacts
from domain.recipe import DataTreatment, Recipe
from intake.packs import open_pack
from models.build import build
from models.network import Network
from models.weights import save_weights
from transfer.evaluate import PixelNetwork, evaluation_pixels, predict

CLASSES = ("nought", "one", "two")
HALVES = Preprocessing(resize=16, crop=16, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
COUNTS = {"train": 60, "val": 40, "test": 80}


def write_pack(folder: Path, side: int) -> Path:
    """Scans of 0, 1, 2 at `side` pixels, in classes of the same size."""
    folder.mkdir()
    scans, labels = load_digits(n_class=3, return_X_y=True)
    n = sum(COUNTS.values())
    grey = (scans[:n].reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    pixels = np.kron(grey, np.ones((1, side // 8, side // 8), np.uint8))[..., None].repeat(3, 3)
    split = np.repeat(np.array([0, 1, 2], np.int8), list(COUNTS.values()))
    for name, array in {"pixels": pixels, "labels": labels[:n].astype(np.int64), "split": split, "fold": split}.items():
        np.save(folder / f"{name}.npy", array)
    facts = {
        "n": n,
        "canvas": side,
        "resize": side,
        "crop": side,
        "interpolation": "bilinear",
        "classes": CLASSES,
        "content_hash": "0",
    }
    ids = [hashlib.sha256(g.tobytes() + bytes([i % 256])).hexdigest() for i, g in enumerate(grey)]
    (folder / "pack.json").write_text(json.dumps(facts | {"ids": ids}))
    return folder


def train(
    folder: Path, name: str, pack_folder: Path, steps: int, number: int, anchor: str | None,
    classes: tuple[int, ...] = (0, 1, 2),
) -> FinishCandidate:  # fmt: skip
    """A network trained on some of the classes, and written down as a trial's."""
    return write_down(folder, name, pack_folder, trained(pack_folder, steps, number, classes), number, anchor)


def trained(pack_folder: Path, steps: int, number: int, classes: tuple[int, ...] = (0, 1, 2)) -> Network:
    pack = open_pack(pack_folder)
    network = build("tiny_smallnet", n_classes=3, seed=number)
    pixel_network = PixelNetwork(network, HALVES).train()
    rows = np.flatnonzero((pack.split == 0) & np.isin(pack.labels, classes))
    pixels, targets = torch.from_numpy(evaluation_pixels(pack, rows)), torch.from_numpy(np.asarray(pack.labels[rows]))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(pixel_network(pixels), targets).backward()
        optimizer.step()
    return network.eval()


def write_down(
    folder: Path, name: str, pack_folder: Path, network: Network, number: int, anchor: str | None = None,
    **changes: Any,
) -> FinishCandidate:  # fmt: skip
    """The network's weights and its predictions on val, as a trial leaves them; `changes` are of its recipe."""
    pack = open_pack(pack_folder)
    save_weights(network.state_dict(), folder / f"{name}.safetensors")
    val = np.flatnonzero(pack.split == 1)
    logits, truth = predict(PixelNetwork(network, HALVES), pack, val), np.asarray(pack.labels[val])
    np.savez(folder / f"{name}.npz", logits=logits, targets=truth, rows=val)
    return FinishCandidate(
        trial_id=f"tr_{number}", number=number, anchor=anchor, weights=str(folder / f"{name}.safetensors"),
        predictions=str(folder / f"{name}.npz"), pack=str(pack_folder),
        value=float(accuracy_score(truth, logits.argmax(1))),
        recipe=Recipe(
            task="classification", source="scratch:tiny_smallnet", backbone="tiny_smallnet",
            data=DataTreatment(resolution=pack.crop),
        ).model_copy(update=changes),
    )  # fmt: skip


def order_of(folder: Path, winner: FinishCandidate, *anchors: FinishCandidate, **changes: Any) -> FinishOrder:
    per_class = {name: {"train": 20, "val": 13, "test": 27} for name in CLASSES}
    statistics = Statistics(
        n_items=180, n_classes=3, per_split=COUNTS, per_class=per_class,
        width_quantiles=(8,) * 5, height_quantiles=(8,) * 5,
    )  # fmt: skip
    return FinishOrder(
        job_id="job_1", job_name="scans | <b>of digits</b>", task="classification", classes=CLASSES,
        objective=Objective(name="accuracy"), winner=winner, anchors=anchors, n_test_looks=2,
        data=DataFacts(
            dataset_id="ds_1", name="digits", content_hash="abc", statistics=statistics, n_findings=1,
            findings={"near_duplicate": 1},
        ),
        search=SearchFacts(
            n_trials=6, n_searched=5, by_state={"COMPLETE": 5, "PRUNED": 1}, budget=Budget(trials=6), sampler="tpe",
            pruner="median", seed=0, cost_s=12, elapsed_s=20,
        ),
        scratch=str(folder / "scratch"),
    ).model_copy(update=changes)  # fmt: skip
