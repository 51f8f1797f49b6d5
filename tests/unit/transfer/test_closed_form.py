"""Logistic regression against scikit-learn's, strength by strength."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from transfer.closed_form import STRENGTHS, logits_of, solve_path, span_of
from transfer.evaluate import softmax


def problem(n: int, width: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n + width)
    targets = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, width)) / np.sqrt(width)
    return np.maximum(0, rng.normal(size=(n, width)) + 3 * centres[targets] + 0.5), targets


@pytest.mark.parametrize(("n", "width", "n_classes"), [(90, 20, 4), (40, 200, 3), (60, 12, 2)])
def test_equals_scikit_learn(n: int, width: int, n_classes: int) -> None:
    features, targets = problem(n, width, n_classes)
    answers = solve_path(features, targets, n_classes)
    for place in (8, 16, 24, 32, 44):
        reference = LogisticRegression(C=1 / (n * STRENGTHS[place]), tol=1e-10, max_iter=50_000).fit(features, targets)
        expected = reference.predict_proba(features)
        if n_classes == 2:  # scikit-learn's binary form has one weight vector w; ours has w1 - w0 with half the norm
            reference = LogisticRegression(C=2 / (n * STRENGTHS[place]), tol=1e-10, max_iter=50_000)
            expected = reference.fit(features, targets).predict_proba(features)
        ours = softmax(logits_of([answers[place]], features)[0])
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_gradient_vanishes_at_every_answer() -> None:
    features, targets = problem(50, 30, 3)
    for strength, answer in zip(STRENGTHS, solve_path(features, targets, 3), strict=True):
        probability = softmax(features @ answer.weight.T + answer.bias)
        probability[np.arange(50), targets] -= 1
        gradient = probability.T @ features / 50 + strength * answer.weight
        # Relative to the data term alone: at strong penalties the weights are as small as the gradient.
        assert np.abs(gradient).max() < 1e-4 * max(1.0, np.abs(features).max())
        assert np.abs(probability.sum(0) / 50).max() < 1e-5


def test_a_huge_strength_leaves_the_class_frequencies() -> None:
    features, _ = problem(60, 10, 2)
    targets = (np.arange(60) < 15).astype(np.int64)
    answer = solve_path(features, targets, 2)[-1]
    np.testing.assert_allclose(softmax(features @ answer.weight.T + answer.bias)[:, 1], 0.25, atol=1e-3)


def test_the_span_reproduces_the_features_and_ignores_constant_ones() -> None:
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 50))
    features = np.concatenate([low_rank, np.full((30, 3), 7.0)], axis=1)
    span = span_of(features)
    assert span.coordinates.shape == (30, 4)
    np.testing.assert_allclose(span.mean + span.coordinates @ span.axes.T, features, atol=1e-8)


def test_moving_all_features_changes_no_prediction() -> None:
    features, targets = problem(40, 15, 3)
    one = logits_of(solve_path(features, targets, 3), features)
    two = logits_of(solve_path(features + 100, targets, 3), features + 100)
    np.testing.assert_allclose(softmax(one[20]), softmax(two[20]), atol=1e-4)
