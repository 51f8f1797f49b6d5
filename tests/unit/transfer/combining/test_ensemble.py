"""Ensembles: means of probabilities, chosen on val."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from transfer.combining import ensemble


def predictions(n_models: int, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    logits = rng.normal(size=(n_models, 40, 3)) + 1.2 * np.eye(3)[labels]
    return list(np.exp(logits) / np.exp(logits).sum(2, keepdims=True)), labels


def minus_log_loss(labels: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda p: float(np.log(p[np.arange(len(labels)), labels]).mean())


def accuracy(labels: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda p: float((p.argmax(1) == labels).mean())


def test_the_log_loss_of_the_mean_is_at_most_the_mean_of_the_log_losses() -> None:
    for seed in range(10):
        candidates, labels = predictions(4, seed)
        found = ensemble.combine(candidates, minus_log_loss(labels), kind="uniform")
        np.testing.assert_allclose(found.probabilities, np.mean(candidates, axis=0), atol=1e-15)
        assert found.value >= np.mean([minus_log_loss(labels)(c) for c in candidates])
        assert found.weights.tolist() == [0.25] * 4


@pytest.mark.parametrize("objective", [minus_log_loss, accuracy])
@pytest.mark.parametrize("n_rounds", [1, 3, 30])
def test_greedy_is_never_below_the_best_single(
    objective: Callable[[np.ndarray], Callable[[np.ndarray], float]], n_rounds: int
) -> None:
    for seed in range(5):
        candidates, labels = predictions(5, seed)
        evaluate = objective(labels)
        found = ensemble.combine(candidates, evaluate, n_rounds=n_rounds)
        assert found.value >= max(evaluate(c) for c in candidates)
        assert found.weights.sum() == pytest.approx(1.0)
        np.testing.assert_allclose(found.probabilities.sum(1), 1.0, atol=1e-12)


def test_greedy_nears_the_best_weights_there_are() -> None:
    candidates, labels = predictions(3)
    evaluate = minus_log_loss(labels)
    grid = [w for w in itertools.product(range(21), repeat=3) if sum(w) == 20]
    best = max(evaluate(np.tensordot(np.array(w) / 20, np.stack(candidates), axes=1)) for w in grid)
    assert ensemble.combine(candidates, evaluate, n_rounds=60).value > best - 1e-3


def test_a_candidate_that_only_harms_stays_out() -> None:
    candidates, labels = predictions(2)
    harmful = np.where(np.eye(3)[labels] == 1, 1e-6, (1 - 1e-6) / 2)
    found = ensemble.combine([harmful, *candidates], minus_log_loss(labels))
    assert found.weights[0] == 0.0


def test_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ensemble.combine([], lambda _: 0.0)
    with pytest.raises(ValueError, match="round"):
        ensemble.combine(predictions(1)[0], lambda _: 0.0, n_rounds=0)
