"""The paired edge, by numbers worked out by hand."""

import math

import numpy as np
import pytest
from sklearn.metrics import log_loss

from transfer import evaluate
from transfer.edges import paired_edge
from transfer.evaluate import softmax


def logits(*rights: float) -> np.ndarray:
    """Two classes, the target is class 0: rows whose probability of the target is as given."""
    return np.log(np.array([[p, 1 - p] for p in rights]))


TARGETS = np.zeros(4, np.int64)


def test_accuracy_is_compared_item_by_item() -> None:
    ours, theirs = logits(0.9, 0.9, 0.9, 0.1), logits(0.9, 0.1, 0.1, 0.1)
    edge = paired_edge("accuracy", [ours], [theirs], TARGETS)
    # differences 0, 1, 1, 0: mean 1/2, variance 4 * (1/2)^2 / 3 = 1/3, error sqrt(1/3 / 4)
    assert edge.value == pytest.approx(0.5)
    assert edge.error == pytest.approx(math.sqrt(1 / 12))
    assert edge.holds
    assert not paired_edge("accuracy", [theirs], [ours], TARGETS).holds


def test_log_loss_is_better_when_smaller_and_its_edge_positive_then() -> None:
    rng, targets = np.random.default_rng(0), np.arange(60) % 3
    theirs = rng.normal(size=(60, 3))
    ours = theirs + np.eye(3)[targets]
    edge = paired_edge("log_loss", [ours], [theirs], targets)
    z, w = (each / evaluate.calibration_temperature(each, targets) for each in (ours, theirs))
    assert edge.value == pytest.approx(log_loss(targets, softmax(w)) - log_loss(targets, softmax(z)))
    assert edge.holds


def test_confidence_alone_is_no_edge() -> None:
    """Three times as sure of the same: a log-loss far worse, and the same network once it is calibrated."""
    rng, targets = np.random.default_rng(0), np.arange(300) % 3
    modest = np.eye(3)[targets] + rng.normal(size=(300, 3))
    raw = evaluate.log_loss(3 * modest, targets) - evaluate.log_loss(modest, targets)
    assert raw > 0.2
    assert abs(paired_edge("log_loss", [modest], [3 * modest], targets).value) < 0.02


def test_several_seeds_count_by_their_mean() -> None:
    lucky, unlucky, theirs = logits(0.9, 0.9, 0.9, 0.9), logits(0.1, 0.1, 0.1, 0.9), logits(0.9, 0.9, 0.1, 0.1)
    assert paired_edge("accuracy", [lucky], [theirs], TARGETS).holds
    edge = paired_edge("accuracy", [lucky, unlucky], [theirs], TARGETS)
    assert edge.value == pytest.approx((1 + 0.25) / 2 - 0.5)
    assert edge.error == pytest.approx(np.std([-0.5, -0.5, 0.5, 1.0], ddof=1) / 2)
    assert not edge.holds


@pytest.mark.parametrize("objective", ["accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc"])
def test_nobody_has_an_edge_over_himself(objective: str) -> None:
    rng = np.random.default_rng(0)
    one, targets = rng.normal(size=(60, 3)), np.arange(60) % 3
    edge = paired_edge(objective, [one], [one], targets)
    assert edge.value == 0
    assert not edge.holds


@pytest.mark.parametrize("objective", ["macro_f1", "balanced_accuracy", "auc"])
def test_the_error_of_other_objectives_comes_from_resamples(objective: str) -> None:
    rng, targets = np.random.default_rng(0), np.arange(300) % 3
    right = np.eye(3)[targets]
    good, poor = 2 * right + rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    edge = paired_edge(objective, [good], [poor], targets)
    assert edge.holds
    assert 0.01 < edge.error < 0.08  # some sqrt(2 * 0.2 / 300) = 0.04
    assert paired_edge(objective, [poor], [good], targets).value == -edge.value


def test_one_item_proves_nothing() -> None:
    assert not paired_edge("accuracy", [logits(0.9)], [logits(0.1)], TARGETS[:1]).holds
