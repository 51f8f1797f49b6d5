"""H-score, plain and shrunk, against traces of explicit matrices and a closed form."""

import numpy as np
import pytest

from transfer.scores import h_score, h_score_shrunk


def problem(n: int, width: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + width)
    labels = np.arange(n) % n_classes
    return rng.normal(size=(n_classes, width))[labels] + rng.normal(size=(n, width)) @ rng.normal(
        size=(width, width)
    ), labels


def conditional_means(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([features[labels == label].mean(0) for label in labels])


def test_equals_the_trace() -> None:
    features, labels = problem(60, 7, 4)
    cov = np.cov(features.T, bias=True)
    between = np.cov(conditional_means(features, labels).T, bias=True)
    expected = np.trace(np.linalg.solve(cov, between))
    assert h_score.score(features, labels, None) == pytest.approx(expected, abs=1e-10)


def test_two_gaussians_in_closed_form() -> None:
    """Means -m and m, covariance s^2 I: H = |m|^2 / (|m|^2 + s^2), and m^2 / (m^2 + s^2) is the Fisher ratio seen."""
    noise = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * 0.5  # covariance 0.25 I, mean 0, exactly
    mean = np.array([1.5, 2.0])
    features = np.concatenate([noise + mean, noise - mean])
    labels = np.repeat([0, 1], 4)
    assert h_score.score(features, labels, None) == pytest.approx(6.25 / 6.5, abs=1e-12)


def test_fewer_items_than_features_say_nothing_about_the_plain_one() -> None:
    features, labels = problem(20, 50, 4)
    assert np.isnan(h_score.score(features, labels, None))
    assert 0 < h_score_shrunk.score(features, labels, None) < 2.9


def test_any_invertible_map_leaves_the_plain_one_alone() -> None:
    features, labels = problem(60, 5, 3)
    bent = features @ np.random.default_rng(1).normal(size=(5, 5)) + 7
    value = h_score.score(features, labels, None)
    assert h_score.score(bent, labels, None) == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(("n", "width"), [(60, 7), (15, 40)])
def test_the_shrunk_one_equals_the_trace(n: int, width: int) -> None:
    """Ledoit and Wolf's weight from the items' outer products, as their paper writes it."""
    features, labels = problem(n, width, 3)
    centred = features - features.mean(0)
    cov, identity = np.cov(features.T, bias=True), np.eye(width)
    scale = np.trace(cov) / width
    spread = ((cov - scale * identity) ** 2).sum()
    noise = sum(((np.outer(x, x) - cov) ** 2).sum() for x in centred) / n**2
    a = noise / spread
    assert 0 < a < 1
    between = np.cov(conditional_means(features, labels).T, bias=True)
    expected = np.trace(np.linalg.solve((1 - a) * cov + a * scale * identity, (1 - a) * between))
    assert h_score_shrunk.score(features, labels, None) == pytest.approx(expected, rel=1e-9)


def test_features_that_never_vary_are_worth_nothing() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    assert h_score.score(np.ones((6, 3)), labels, None) == 0.0
    assert h_score_shrunk.score(np.ones((6, 3)), labels, None) == 0.0
