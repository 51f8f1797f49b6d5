"""NLEEP: its mixture against a round of EM written out, its principal coordinates, and separated clusters."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from transfer.scores import leep, nleep


def blobs(n: int, width: int, n_classes: int, gap: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + width)
    labels = np.arange(n) % n_classes
    return gap * rng.normal(size=(n_classes, width))[labels] + rng.normal(size=(n, width)), labels


def test_keeps_the_coordinates_that_hold_four_fifths_of_the_variance() -> None:
    features, _ = blobs(60, 9, 4, 1.0)
    values, axes = np.linalg.eigh(np.cov(features.T))
    values, axes = values[::-1], axes[:, ::-1]
    n_kept = next(k for k in range(1, 10) if values[:k].sum() >= 0.8 * values.sum())
    ours = nleep.principal(features)
    assert ours.shape == (60, n_kept)
    expected = (features - features.mean(0)) @ axes[:, :n_kept]
    np.testing.assert_allclose(np.abs(ours), np.abs(expected), atol=1e-9)  # an axis has no sign


def one_round(points: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, float]:
    """The most likely mixture for these responsibilities: the responsibilities that it leads to, its log-likelihood."""
    floor = nleep.FLOOR * points.var(0).mean()
    log_joint = []
    for own in theta.T:
        mean = np.average(points, axis=0, weights=own)
        variance = np.average((points - mean) ** 2, axis=0, weights=own) + floor
        log_joint.append(np.log(own.mean()) + multivariate_normal(mean, np.diag(variance)).logpdf(points))
    total = np.logaddexp.reduce(log_joint, axis=0)
    return np.exp(np.array(log_joint) - total).T, float(total.mean())


def test_the_mixture_is_a_fixed_point_as_likely_as_the_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nleep, "MAX_ROUNDS", 3000)
    monkeypatch.setattr(nleep, "TOLERANCE", 1e-13)
    points, labels = blobs(150, 2, 3, 6.0)
    theta = nleep.responsibilities(points, 3)
    np.testing.assert_allclose(theta.sum(1), 1.0, atol=1e-12)
    again, likelihood = one_round(points, theta)
    np.testing.assert_allclose(theta, again, atol=1e-4)
    assert likelihood >= one_round(points, np.eye(3)[labels])[1]


def test_more_rounds_are_never_less_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = blobs(150, 4, 3, 1.0)
    found = []
    for rounds in (1, 3, 10, 100):
        monkeypatch.setattr(nleep, "MAX_ROUNDS", rounds)
        found.append(one_round(points, nleep.responsibilities(points, 15))[1])
    assert found == sorted(found)


def test_well_separated_classes_reach_the_upper_bound() -> None:
    features, labels = blobs(90, 6, 3, 60.0)
    assert nleep.score(features, labels, None) == pytest.approx(0.0, abs=1e-6)


def test_it_is_leep_of_the_mixture() -> None:
    features, labels = blobs(75, 6, 3, 1.0)
    order = np.lexsort(features.T)  # in which the mixture gets them
    features, labels = features[order], labels[order]
    theta = nleep.responsibilities(nleep.principal(features), 15)
    expected = leep.log_expected_prediction(theta, labels)
    assert nleep.score(features, labels, None) == pytest.approx(expected, abs=1e-14)


def test_constant_features_leave_the_entropy() -> None:
    labels = np.repeat([0, 1], [15, 5])
    expected = 0.75 * np.log(0.75) + 0.25 * np.log(0.25)
    assert nleep.score(np.ones((20, 4)), labels, None) == pytest.approx(expected, abs=1e-9)
