"""LEEP by hand, and at both ends of its range."""

import numpy as np
import pytest

from transfer.scores import leep


def test_two_items_two_classes_by_hand() -> None:
    """theta = [[.8, .2], [.4, .6]], y = [0, 1]: P(z) = (.6, .4), P(0 | z) = (.4 / .6, .1 / .4) = (2/3, 1/4)."""
    theta, labels = np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 1])
    first = 2 / 3 * 0.8 + 1 / 4 * 0.2
    second = 1 / 3 * 0.4 + 3 / 4 * 0.6
    expected = (np.log(first) + np.log(second)) / 2
    assert leep.score(np.zeros((2, 1)), labels, theta) == pytest.approx(expected, abs=1e-15)


def test_a_source_that_decides_the_labels_reaches_the_upper_bound() -> None:
    labels = np.array([5, 2, 2, 9, 5])
    theta = np.eye(4)[[0, 1, 3, 2, 0]]  # two source classes may stand for one label, and one stay unused
    assert leep.score(np.zeros((5, 1)), labels, theta) == pytest.approx(0.0, abs=1e-15)


def test_a_source_that_says_nothing_leaves_the_entropy_of_the_labels() -> None:
    labels = np.repeat([0, 1, 2], [5, 3, 2])
    shares = np.array([0.5, 0.3, 0.2])
    theta = np.tile([0.1, 0.6, 0.3], (10, 1))
    assert leep.score(np.zeros((10, 1)), labels, theta) == pytest.approx((shares * np.log(shares)).sum(), abs=1e-14)


def test_it_is_a_likelihood_below_that_of_the_empirical_best() -> None:
    """At most 0, and splitting a source class in two equal halves changes nothing."""
    rng = np.random.default_rng(0)
    theta, labels = rng.dirichlet(np.ones(4), 30), rng.integers(0, 3, 30)
    value = leep.score(np.zeros((30, 1)), labels, theta)
    halves = np.repeat(theta, 2, axis=1) / 2
    assert value < 0
    assert leep.score(np.zeros((30, 1)), labels, halves) == pytest.approx(value, abs=1e-14)


def test_without_a_head_it_refuses() -> None:
    with pytest.raises(ValueError, match="head"):
        leep.score(np.zeros((2, 1)), np.array([0, 1]), None)
