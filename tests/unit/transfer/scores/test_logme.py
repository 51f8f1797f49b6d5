"""LogME against the exact log-evidence, maximised by force."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from transfer.scores import logme


def problem(n: int, width: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n * width)
    labels = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, width))
    return centres[labels] + rng.normal(size=(n, width)) + 0.3, labels


def by_force(features: np.ndarray, target: np.ndarray) -> float:
    """max over alpha, beta of log N(y; 0, F F' / alpha + I / beta): the same evidence, w integrated out by hand."""

    def negative(logs: np.ndarray) -> float:
        covariance = features @ features.T * np.exp(-logs[0]) + np.eye(len(features)) * np.exp(-logs[1])
        return -float(multivariate_normal(np.zeros(len(features)), covariance).logpdf(target))

    starts = [(a, b) for a in (-2.0, 2.0, 6.0) for b in (0.0, 3.0)]
    return max(-minimize(negative, s, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).fun for s in starts)


@pytest.mark.parametrize(("n", "width", "n_classes"), [(40, 6, 3), (24, 40, 2), (30, 12, 4)])
def test_equals_the_evidence_maximised_by_force(n: int, width: int, n_classes: int) -> None:
    features, labels = problem(n, width, n_classes)
    expected = [by_force(features, (labels == c).astype(float)) / n for c in range(n_classes)]
    assert logme.score(features, labels, None) == pytest.approx(np.mean(expected), abs=1e-6)


def test_the_two_forms_of_the_evidence_agree_at_the_fixed_point() -> None:
    """The docstring's form, at the alpha and beta that the fixed point asks for."""
    features, labels = problem(50, 5, 2)
    y, n, width = (labels == 0).astype(float), 50, 5
    alpha = beta = 1.0
    for _ in range(3000):
        a = alpha * np.eye(width) + beta * features.T @ features
        m = beta * np.linalg.solve(a, features.T @ y)
        s = np.linalg.eigvalsh(features.T @ features)
        gamma = (beta * s / (alpha + beta * s)).sum()
        alpha, beta = gamma / (m @ m), (n - gamma) / ((features @ m - y) ** 2).sum()
    evidence = (
        n / 2 * np.log(beta) + width / 2 * np.log(alpha) - n / 2 * np.log(2 * np.pi)
        - beta / 2 * ((features @ m - y) ** 2).sum() - alpha / 2 * m @ m - np.linalg.slogdet(a)[1] / 2
    )  # fmt: skip
    assert logme.log_evidence(features, y[:, None])[0] == pytest.approx(evidence, abs=1e-6)


def test_scale_and_rotation_of_the_features_change_nothing() -> None:
    features, labels = problem(40, 8, 3)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    value = logme.score(features, labels, None)
    assert logme.score(1000 * features @ turn, labels, None) == pytest.approx(value, abs=1e-9)


def test_features_without_signal_are_worth_as_much_as_none() -> None:
    """w = 0: y ~ N(0, 1 / beta) with beta = n / ||y||^2."""
    labels = np.repeat([0, 1], 20)
    features = np.tile([[1.0], [-1.0]], (20, 1))
    expected = -0.5 * (np.log(2 * np.pi * 0.5) + 1)
    assert logme.score(features, labels, None) == pytest.approx(expected, abs=1e-6)
    assert logme.score(np.zeros((40, 3)), labels, None) == pytest.approx(expected, abs=1e-12)
