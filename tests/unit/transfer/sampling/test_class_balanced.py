"""Class-balanced draws: the law of the classes, from its two ends."""

import numpy as np
import pytest

from transfer.sampling.class_balanced import probabilities

LABELS = np.repeat([0, 1, 2], [100, 25, 4])


@pytest.mark.parametrize(("strength", "expected"), [(0.0, [100, 25, 4]), (0.5, [10, 5, 2]), (1.0, [1, 1, 1])])
def test_a_class_is_drawn_in_proportion_to_its_power(strength: float, expected: list[float]) -> None:
    p = probabilities(LABELS, strength)
    by_class = [p[c == LABELS].sum() for c in range(3)]
    np.testing.assert_allclose(by_class, np.array(expected) / sum(expected), atol=1e-12)
    assert p.sum() == pytest.approx(1.0)


def test_items_of_a_class_are_equals() -> None:
    p = probabilities(LABELS, 0.7)
    assert all(len(np.unique(p[c == LABELS])) == 1 for c in range(3))
