"""The end of a job on real scans: two trained networks meet test, and the better one becomes a bundle."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from domain.catalogue import Preprocessing
from domain.dataset import Statistics
from domain.errors import Invalid
from domain.job import AnchorResult, Budget, Interval, Objective
from domain.lot import DataFacts, FinishCandidate, FinishOrder, FinishOutcome, SearchFacts
from domain.recipe import DataTreatment, Recipe
from intake.packs import open_pack
from models.build import build
from models.weights import save_weights
from transfer.evaluate import PixelNetwork, evaluation_pixels, predict
from transfer.finish import finish, licence_note, verdict

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


def train(folder: Path, name: str, pack_folder: Path, steps: int, number: int, anchor: str | None) -> FinishCandidate:
    pack = open_pack(pack_folder)
    network = build("tiny_smallnet", n_classes=3, seed=number)
    pixel_network = PixelNetwork(network, HALVES).train()
    rows = np.flatnonzero(pack.split == 0)
    pixels, targets = torch.from_numpy(evaluation_pixels(pack, rows)), torch.from_numpy(np.asarray(pack.labels[rows]))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(pixel_network(pixels), targets).backward()
        optimizer.step()
    save_weights(network.state_dict(), folder / f"{name}.safetensors")
    val = np.flatnonzero(pack.split == 1)
    logits, truth = predict(pixel_network, pack, val), np.asarray(pack.labels[val])
    np.savez(folder / f"{name}.npz", logits=logits, targets=truth)
    return FinishCandidate(
        trial_id=f"tr_{number}", number=number, anchor=anchor, weights=str(folder / f"{name}.safetensors"),
        predictions=str(folder / f"{name}.npz"), pack=str(pack_folder),
        value=float(accuracy_score(truth, logits.argmax(1))),
        recipe=Recipe(
            task="classification", source="scratch:tiny_smallnet", backbone="tiny_smallnet", steps=max(steps, 1),
            data=DataTreatment(resolution=pack.crop),
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def order(tmp_path_factory) -> FinishOrder:
    folder = tmp_path_factory.mktemp("finish")
    winner = train(folder, "winner", write_pack(folder / "pack16", 16), 25, 5, None)
    anchor = train(folder, "anchor", write_pack(folder / "pack32", 32), 2, 0, "fine_tune")  # another resolution
    per_class = {name: {"train": 20, "val": 13, "test": 27} for name in CLASSES}
    statistics = Statistics(
        n_items=180, n_classes=3, per_split=COUNTS, per_class=per_class,
        width_quantiles=(8,) * 5, height_quantiles=(8,) * 5,
    )  # fmt: skip
    return FinishOrder(
        job_id="job_1", job_name="scans | <b>of digits</b>", task="classification", classes=CLASSES,
        objective=Objective(name="accuracy"), winner=winner, anchors=(anchor,), licence="unknown", n_test_looks=2,
        data=DataFacts(
            dataset_id="ds_1", name="digits", content_hash="abc", statistics=statistics, n_findings=1,
            findings={"near_duplicate": 1},
        ),
        search=SearchFacts(
            n_trials=6, by_state={"COMPLETE": 5, "PRUNED": 1}, budget=Budget(trials=6), sampler="tpe",
            pruner="median", seed=0, cost_s=12, elapsed_s=20,
        ),
        scratch=str(folder / "scratch"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def outcome(order: FinishOrder) -> FinishOutcome:
    return finish(FinishOrder.model_validate_json(order.model_dump_json()))  # as it crosses the pipe


def test_numbers_are_those_of_the_bundled_network_on_test(order: FinishOrder, outcome: FinishOutcome) -> None:
    result = outcome.result
    pack = open_pack(Path(order.winner.pack))
    rows = np.flatnonzero(pack.split == 2)
    with zipfile.ZipFile(outcome.bundle) as archive:
        session = onnxruntime.InferenceSession(archive.read("model.onnx"), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(None, {"pixels": evaluation_pixels(pack, rows)})
    measured = accuracy_score(pack.labels[rows], logits.argmax(1))
    assert abs(measured - result.metrics["accuracy"]) * len(rows) <= result.export["n_near_ties_test"]
    picked = probabilities[np.arange(len(rows)), pack.labels[rows]]
    assert result.metrics["log_loss_calibrated"] == pytest.approx(-np.log(picked).mean(), abs=1e-4)
    assert (result.n_test, result.n_test_looks, result.best_number) == (80, 2, 5)
    assert result.test_accuracy.value == result.metrics["accuracy"] > 0.8
    assert result.test_accuracy.low < result.test_accuracy.value <= result.test_accuracy.high
    assert result.selection_bias == pytest.approx(order.winner.value - measured, abs=1 / 80)
    assert result.export["largest_difference"] <= 1e-3
    assert result.export["n_items"] == 100


def test_the_anchor_is_compared_item_by_item(outcome: FinishOutcome) -> None:
    (anchor,) = outcome.result.anchors
    difference = outcome.result.metrics["accuracy"] - anchor.test_accuracy.value
    assert anchor.lift.value == pytest.approx(difference)
    assert difference > 0.1
    assert anchor.lift.low > 0
    assert outcome.result.verdict.startswith("The search helped: the winner is ")
    assert "fine_tune" in outcome.result.verdict
    assert set(outcome.tests) == {"tr_0", "tr_5"}
    assert outcome.tests["tr_0"]["accuracy"] == anchor.test_accuracy.value
    assert set(outcome.tests["tr_5"]) == {"accuracy", "log_loss", "macro_f1", "balanced_accuracy", "ece"}


def test_the_card_states_what_it_must(outcome: FinishOutcome) -> None:
    with zipfile.ZipFile(outcome.bundle) as archive:
        card = archive.read("model_card.md").decode()
        assert "model_card.md" in json.loads(archive.read("MANIFEST.json"))["files"]
        assert b"from scratch" in archive.read("LICENSE-WEIGHTS.txt")
    for heading in ("Data", "Search", "Test", "Anchors", "Calibration", "Classes", "Network", "Export", "Limits"):
        assert f"\n## {heading}\n" in card
    assert "| val | 40 |" in card
    assert "6 trials (5 complete, 1 pruned)" in card
    assert "looked at 2 times" in card
    assert "Val minus test" in card
    assert "near_duplicate 1" in card
    assert outcome.result.verdict in card
    assert "<b>" not in card
    assert "None" not in card


def test_an_anchor_that_wins_is_said_to(order: FinishOrder, tmp_path: Path) -> None:
    winner = order.winner.model_copy(update={"anchor": "linear_probe"})
    again = order.model_copy(
        update={"winner": winner, "anchors": (*order.anchors, winner), "scratch": str(tmp_path / "s")}
    )
    result = finish(again).result
    assert result.verdict.startswith("The search did not help: no trial ranked above the anchor linear_probe")
    assert result.anchors[1].lift == Interval(value=0, low=0, high=0)


def test_no_test_items_no_account(order: FinishOrder, tmp_path: Path) -> None:
    folder = write_pack(tmp_path / "pack", 16)
    np.save(folder / "split.npy", np.zeros(180, np.int8))
    bare = order.model_copy(update={"winner": order.winner.model_copy(update={"pack": str(folder)})})
    with pytest.raises(Invalid, match="test split has no items"):
        finish(bare)


def anchor_result(name: str, low: float, value: float, high: float) -> AnchorResult:
    whole = Interval(value=0.9, low=0.8, high=1)
    lift = Interval(value=value, low=low, high=high)
    return AnchorResult(name=name, trial_id=f"tr_{name}", number=1, val=0.9, test_accuracy=whole, lift=lift)


@pytest.mark.parametrize(
    ("lifts", "beginning"),
    [
        ([(0.01, 0.03, 0.05), (0.02, 0.1, 0.2)], "The search helped: the winner is 3.0 points above"),
        ([(-0.01, 0.02, 0.05)], "The search did not measurably help: the winner is 2.0 points above"),
        ([(-0.01, 0.02, 0.05), (0.1, 0.2, 0.3)], "The search did not measurably help"),
        ([(-0.03, -0.01, 0.05)], "The search did not measurably help: the winner is 1.0 points below"),
        ([(-0.02, 0.0, 0.02)], "The search did not measurably help: the winner is level with"),
        ([(0.1, 0.2, 0.3), (-0.09, -0.05, -0.01)], "The search did not help: the winner is 5.0 points below"),
        ([], "No anchor was trained"),
    ],
)
def test_verdict(lifts: list[tuple[float, float, float]], beginning: str) -> None:
    anchors = tuple(anchor_result(f"a{n}", *lift) for n, lift in enumerate(lifts))
    assert verdict("tr_winner", anchors, n_searched=3).startswith(beginning)


def test_licence_note_says_what_is_known(order: FinishOrder) -> None:
    recipe = order.winner.recipe.model_copy(update={"source": "torchvision:resnet18"})
    known = order.model_copy(update={"winner": order.winner.model_copy(update={"recipe": recipe})})
    assert "not known" in licence_note(known)
    told = licence_note(known.model_copy(update={"licence": "BSD-3-Clause", "licence_text": "Copyright …"}))
    assert "torchvision:resnet18" in told
    assert "BSD-3-Clause" in told
    assert "Copyright …" in told


def test_a_search_that_finished_no_trial_of_its_own_says_so() -> None:
    anchors = (anchor_result("winner", 0.0, 0.0, 0.0),)
    assert verdict("tr_winner", anchors, n_searched=0).startswith("Nothing was searched")
    assert verdict("tr_winner", anchors, n_searched=1).startswith("The search did not help: no trial ranked above")
