"""The end of a job on real scans: two trained networks meet test, and the better one becomes a bundle."""

import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.metrics import accuracy_score

from domain.errors import Invalid
from domain.job import AnchorResult, FrontPoint, Interval
from domain.lot import FinishCandidate, FinishOrder, FinishOutcome
from domain.recipe import Recipe
from intake.packs import open_pack
from tests.unit.transfer.scans import order_of, train, write_pack
from transfer.evaluate import evaluation_pixels
from transfer.finish import finish, licence_note, verdict


@pytest.fixture(scope="module")
def order(tmp_path_factory) -> FinishOrder:
    folder = tmp_path_factory.mktemp("finish")
    winner = train(folder, "winner", write_pack(folder / "pack16", 16), 25, 5, None)
    anchor = train(folder, "anchor", write_pack(folder / "pack32", 32), 2, 0, "fine_tune")  # another resolution
    return order_of(folder, winner, anchor)


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
    assert set(outcome.tests["tr_5"]) == {"accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc", "ece"}


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


def test_the_card_shows_the_front_and_what_was_measured(order: FinishOrder, tmp_path: Path) -> None:
    facts = {"latency_ms": 3.14159, "size_bytes": 45061.0, "source_accuracy": 0.5}
    front = tuple(
        FrontPoint(trial_id=c.trial_id, number=c.number, values={"accuracy": c.value, "latency_ms": 2.0 + c.number})
        for c in (order.winner, order.anchors[0])
    )
    winner = order.winner.model_copy(update={"measured": facts})
    asked = order.model_copy(update={"winner": winner, "front": front, "scratch": str(tmp_path / "s")})
    outcome = finish(FinishOrder.model_validate_json(asked.model_dump_json()))
    assert [(p.number, p.chosen) for p in outcome.result.front] == [(5, True), (0, False)]
    assert any("2 trials are on the front of accuracy and latency_ms" in s for s in outcome.result.summary)
    with zipfile.ZipFile(outcome.bundle) as archive:
        card = archive.read("model_card.md").decode()
    assert "| trial | accuracy | latency_ms |" in card
    assert f"| 5, taken | {order.winner.value:.4g} | 7 |" in card
    for told in ("one image in 3.14 ms", "weights of 45,061 bytes", "50.0% of the source dataset's test images"):
        assert told in card


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


def candidate(trial_id: str) -> FinishCandidate:
    recipe = Recipe(task="classification", source="scratch:tiny_smallnet", backbone="tiny_smallnet")
    return FinishCandidate(trial_id=trial_id, number=5, recipe=recipe, weights="", pack="", value=0.9)


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
    assert verdict(candidate("tr_winner"), anchors, n_searched=3).startswith(beginning)


def test_licence_note_says_what_is_known(order: FinishOrder) -> None:
    recipe = order.winner.recipe.model_copy(update={"source": "torchvision:resnet18"})
    known = order.model_copy(update={"winner": order.winner.model_copy(update={"recipe": recipe})})
    assert "not known" in licence_note(known)
    told = licence_note(
        known.model_copy(update={"licences": {"torchvision:resnet18": "BSD-3-Clause"}, "licence_text": "Copyright …"})
    )
    assert "torchvision:resnet18" in told
    assert "BSD-3-Clause" in told
    assert "Copyright …" in told


def test_a_search_that_finished_no_trial_of_its_own_says_so() -> None:
    anchors = (anchor_result("winner", 0.0, 0.0, 0.0),)
    own = candidate("tr_winner")
    assert verdict(own, anchors, n_searched=0).startswith("Nothing was searched")
    assert verdict(own, anchors, n_searched=1).startswith("The search did not help: no trial ranked above")


def test_an_anchor_kept_against_a_lucky_trial_says_so() -> None:
    anchors = (anchor_result("winner", 0.0, 0.0, 0.0),)
    told = verdict(candidate("tr_winner"), anchors, n_searched=4, passed_over=candidate("tr_lucky"))
    assert told.startswith("The search did not help: trial 5 ranked above the anchor winner on val by no more than")
