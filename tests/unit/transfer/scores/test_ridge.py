"""The closed form against fits that really leave an item out."""

import numpy as np
import pytest

from transfer.closed_form import span_of
from transfer.scores import ridge


@pytest.mark.parametrize(("n", "width"), [(30, 4), (12, 20)])
@pytest.mark.parametrize("strength", [1e-3, 1.0])
def test_equals_fits_without_each_item(n: int, width: int, strength: float) -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(n)
    features, targets = rng.normal(size=(n, width)), np.eye(3)[rng.integers(0, 3, n)]
    span = span_of(features)
    found = ridge.left_out(span, targets, strength)
    for i in range(n):
        others = np.arange(n) != i
        # The penalty of the whole fit: n strength times the mean variance along an axis.
        fit = Ridge(alpha=n * strength * span.spread.mean()).fit(features[others], targets[others])
        assert found[i] == pytest.approx(fit.predict(features[i : i + 1])[0], abs=1e-8)


def test_separable_classes_are_all_told_apart_and_noise_is_not() -> None:
    labels = np.repeat(np.arange(3), 20)
    rng = np.random.default_rng(0)
    assert ridge.score(np.eye(3)[labels] + 0.01 * rng.normal(size=(60, 3)), labels, None) == 1.0
    assert ridge.score(rng.normal(size=(60, 200)), labels, None) < 0.55


def test_features_that_are_all_alike_say_the_others_mean() -> None:
    labels = np.array([0, 0, 0, 1])
    assert ridge.score(np.ones((4, 3)), labels, None) == 0.75
    with pytest.raises(ValueError, match="two items"):
        ridge.score(np.eye(2), np.array([0, 1]), None)
