"""Metrics against scikit-learn, intervals and calibration against closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn import metrics as reference
from torch import nn

from domain.catalogue import Preprocessing
from intake.packs import open_pack
from transfer import evaluate
from transfer.evaluate import PixelNetwork

HALF = Preprocessing(resize=4, crop=4, interpolation="bilinear", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, 200)  # the fifth class is predicted, and never true
    logits = rng.normal(0, 2, (200, 5)).astype(np.float32)
    logits[np.arange(200), targets] += 2
    return logits, targets


def test_metrics_agree_with_scikit_learn(answers) -> None:
    logits, targets = answers
    predicted = logits.argmax(1)
    assert 4 in predicted
    chances = torch.from_numpy(logits).double().softmax(1).numpy()
    assert evaluate.accuracy(logits, targets) == pytest.approx(reference.accuracy_score(targets, predicted))
    assert evaluate.log_loss(logits, targets) == pytest.approx(
        reference.log_loss(targets, chances, labels=range(5)), rel=1e-6
    )
    assert evaluate.macro_f1(logits, targets) == pytest.approx(
        reference.f1_score(targets, predicted, average="macro", zero_division=0)
    )
    recalls = reference.recall_score(targets, predicted, labels=range(4), average="macro")
    assert evaluate.balanced_accuracy(logits, targets) == pytest.approx(recalls)
    ones = [reference.roc_auc_score(targets == c, chances[:, c]) for c in range(4)]
    assert evaluate.auc(logits, targets) == pytest.approx(np.mean(ones))
    table = reference.confusion_matrix(targets, predicted, labels=range(5))
    assert (evaluate.confusion(logits, targets) == table).all()


def test_auc_agrees_with_scikit_learn_for_all_classes_and_for_two() -> None:
    rng = np.random.default_rng(8)
    targets = np.arange(90) % 3
    logits = rng.normal(0, 2, (90, 3))
    chances = torch.from_numpy(logits).softmax(1).numpy()
    assert evaluate.auc(logits, targets) == pytest.approx(
        reference.roc_auc_score(targets, chances, multi_class="ovr", average="macro")
    )
    two, pairs = targets[targets < 2], np.round(logits[targets < 2][:, :2])  # many ties
    assert evaluate.auc(pairs, two) == pytest.approx(reference.roc_auc_score(two, pairs[:, 1] - pairs[:, 0]))


def test_auc_by_hand() -> None:
    # Class 0: two of three pairs in order and one tied, (2 + 1/2) / 3; class 1 is its mirror.
    logits = np.array([[2.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert evaluate.auc(logits, np.array([0, 0, 0, 1])) == pytest.approx(2.5 / 3)
    assert evaluate.auc(logits, np.zeros(4, int)) == 0.5
    assert evaluate.auc(np.zeros((0, 2)), np.zeros(0, int)) == 0.5


def test_log_loss_of_even_logits_is_the_logarithm_of_the_classes() -> None:
    assert evaluate.log_loss(np.zeros((7, 3)), np.zeros(7, int)) == pytest.approx(math.log(3))
    assert np.isfinite(evaluate.log_loss(np.array([[1e4, -1e4]]), np.array([1])))


def test_ece_by_hand() -> None:
    # Two items at confidence 0.9, one right; two at 0.6, both right: (2 * |.5 - .9| + 2 * |1 - .6|) / 4 = 0.4
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]))
    targets = np.array([0, 1, 0, 1])
    assert evaluate.ece(logits, targets) == pytest.approx(0.4)
    assert evaluate.reliability(logits, targets) == [
        (2, pytest.approx(0.6), 1.0),
        (2, pytest.approx(0.9), 0.5),
    ]


def test_interval_of_a_share_agrees_with_the_normal_approximation() -> None:
    values = np.repeat([1.0, 0.0], [1600, 400])
    found = evaluate.interval(values, seed=1)
    spread = 1.96 * math.sqrt(0.8 * 0.2 / 2000)
    assert found.value == pytest.approx(0.8)
    assert (found.low, found.high) == (pytest.approx(0.8 - spread, abs=2e-3), pytest.approx(0.8 + spread, abs=2e-3))
    assert found == evaluate.interval(values[::-1], seed=1)
    assert found != evaluate.interval(values, seed=2)


def test_interval_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.1, 60).clip(0, 1)
    found = evaluate.interval(values, n_draws=20_000)
    drawn = np.random.default_rng(9).choice(values, (20_000, 60)).mean(1)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-3)


def test_all_right_is_no_proof_of_perfection() -> None:
    found = evaluate.interval(np.ones(50))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.025 ** (1 / 50))  # Clopper and Pearson
    level = evaluate.lift(np.ones(50), np.ones(50))
    assert level.value == 0
    assert level.high == pytest.approx(1 - 0.025 ** (1 / 50)) == -level.low


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    samples = (rng.random((300, 200)) < 0.7).astype(float)
    found = [evaluate.interval(s, n_draws=500) for s in samples]
    assert 0.90 <= np.mean([i.low <= 0.7 <= i.high for i in found]) <= 0.99


def test_pairing_narrows_the_lift() -> None:
    rng = np.random.default_rng(0)
    anchor = (rng.random(500) < 0.8).astype(float)
    winner = anchor.copy()
    winner[np.flatnonzero(anchor == 0)[:15]] = 1  # right wherever the anchor is, and on 15 more
    found = evaluate.lift(winner, anchor)
    assert found.value == pytest.approx(0.03)
    assert 0 < found.low < 0.03 < found.high < 0.05
    assert evaluate.lift(anchor, winner).value == pytest.approx(-0.03)
    with pytest.raises(ValueError, match="same items"):
        evaluate.lift(winner, anchor[:10])
    with pytest.raises(ValueError, match="no items"):
        evaluate.interval(np.zeros(0))


@pytest.mark.parametrize(("share", "margin"), [(0.9, 5.0), (0.75, 1.0), (0.99, 2.0)])
def test_temperature_closed_form(share: float, margin: float) -> None:
    # Two classes, every margin m, a share p right: p = 1 / (1 + exp(-m / T)), so T = m / log(p / (1 - p)).
    n = 400
    logits = np.tile([margin, 0.0], (n, 1))
    targets = np.repeat([0, 1], [round(share * n), n - round(share * n)])
    plain = evaluate.calibration_temperature(logits, targets, prior=0)
    assert plain == pytest.approx(margin / math.log(share / (1 - share)), rel=1e-6)


def test_temperature_with_its_prior_is_the_minimum(answers) -> None:
    logits, targets = answers[0][:40], answers[1][:40]

    def cost(b: float) -> float:
        return 40 * reference.log_loss(targets, evaluate.softmax(logits * b), labels=range(5)) + 8 * (
            b - 1 - math.log(b)
        )

    expected = optimize.minimize_scalar(cost, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert evaluate.calibration_temperature(logits, targets) == pytest.approx(1 / expected, rel=1e-4)


def test_temperature_undoes_a_scaling_and_lowers_the_loss() -> None:
    rng = np.random.default_rng(1)
    honest = rng.normal(0, 2, (4000, 6))
    targets = np.array([rng.choice(6, p=p) for p in evaluate.softmax(honest)])
    found = evaluate.calibration_temperature(3 * honest, targets, prior=0)
    assert found == pytest.approx(3, rel=0.05)
    assert evaluate.log_loss(3 * honest / found, targets) < evaluate.log_loss(3 * honest, targets)
    assert evaluate.ece(3 * honest, targets, found) < 0.03 < evaluate.ece(3 * honest, targets)


def test_temperature_of_little_or_nothing() -> None:
    assert evaluate.calibration_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0
    assert evaluate.calibration_temperature(np.zeros((9, 3)), np.zeros(9, int)) == pytest.approx(1)  # tells nothing
    sure, right, wrong = np.tile([9.0, 0.0], (8, 1)), np.zeros(8, int), np.ones(8, int)
    assert evaluate.calibration_temperature(sure, right) == pytest.approx(1, abs=0.01)  # all right: no surer for it
    assert evaluate.calibration_temperature(sure, right, prior=0) < 0.5
    assert evaluate.calibration_temperature(sure, wrong, prior=0) == pytest.approx(evaluate.HOTTEST)
    b = 1 / evaluate.calibration_temperature(sure, wrong)
    assert b * (1 + 9 / (1 + math.exp(-9 * b))) == pytest.approx(1)  # 8 * 9 * p(0) + 8 * (1 - 1 / b) = 0, by hand


class _Means(nn.Module):
    """Logits are the means of the three colours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def test_pixels_are_normalised_colour_by_colour() -> None:
    pixels = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 255, 51, 102
    found = PixelNetwork(_Means(), HALF)(pixels)
    assert found.tolist()[0] == pytest.approx([(1 - 0.5) / 0.5, (0.2 - 0.25) / 0.25, 0.4], abs=1e-6)


def test_predict_keeps_the_order_of_rows_and_takes_the_centre(tmp_path: Path) -> None:
    pixels = np.zeros((5, 6, 6, 3), np.uint8)
    pixels[:, 1:5, 1:5, 2] = (np.arange(5) * 10)[:, None, None]
    pixels[:, 0], pixels[:, :, 5] = 255, 255  # outside the crop
    whole = {
        "canvas": 6,
        "resize": 6,
        "crop": 4,
        "classes": ["a", "b"],
        "ids": list("abcde"),
        "n": 5,
        "interpolation": "bilinear",
    }
    (tmp_path / "pack.json").write_text(json.dumps(whole | {"content_hash": "0"}))
    np.save(tmp_path / "pixels.npy", pixels)
    for name, kind in {"labels": np.int64, "split": np.int8, "fold": np.int8}.items():
        np.save(tmp_path / f"{name}.npy", np.zeros(5, kind))
    pack = open_pack(tmp_path)
    network = PixelNetwork(_Means(), HALF).train()
    logits = evaluate.predict(network, pack, np.array([4, 0, 2]), batch=2)
    assert logits[:, 2] * 255 == pytest.approx(np.array([40, 0, 20]), abs=1e-4)
    assert not network.training
    assert evaluate.predict(network, pack, np.array([], int)).shape == (0, 2)
