"""Leave-one-out neighbours against cosines looked up one by one."""

from collections import Counter

import numpy as np
import pytest

from transfer.scores import knn


def by_hand(features: np.ndarray, labels: np.ndarray) -> float:
    right = 0
    for i, one in enumerate(features):
        cosines = {
            j: one @ other / np.sqrt(one @ one * (other @ other)) for j, other in enumerate(features) if j != i
        }  # fmt: skip
        votes = Counter(int(labels[j]) for j in sorted(cosines, key=lambda j: -cosines[j])[: knn.K])
        right += labels[i] == min(votes, key=lambda label: (-votes[label], label))
    return right / len(features)


@pytest.mark.parametrize(("n", "n_classes"), [(40, 3), (25, 2), (30, 8)])
def test_equals_the_cosines_by_hand(n: int, n_classes: int) -> None:
    rng = np.random.default_rng(n)
    labels = rng.integers(0, n_classes, n)
    features = rng.normal(size=(n_classes, 6))[labels] + rng.normal(size=(n, 6))
    assert knn.score(features, labels, None) == pytest.approx(by_hand(features, labels), abs=1e-12)


def test_an_item_is_no_neighbour_of_its_own_and_length_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "K", 1)
    features = np.array([[1.0, 0.0], [9.0, 0.1], [0.0, 1.0], [0.1, 9.0]])
    assert knn.score(features, np.array([0, 0, 1, 1]), None) == 1.0
    assert knn.score(features, np.array([0, 1, 0, 1]), None) == 0.0


def test_items_that_are_all_alike_are_still_not_their_own_neighbours() -> None:
    assert knn.score(np.ones((4, 3)), np.array([0, 0, 0, 1]), None) == 0.75
    assert knn.score(np.zeros((4, 3)), np.array([0, 0, 0, 1]), None) == 0.75


def test_few_items_have_few_neighbours() -> None:
    assert knn.score(np.eye(2), np.array([0, 1]), None) == 0.0
    with pytest.raises(ValueError, match="neighbours"):
        knn.score(np.eye(1), np.array([0]), None)
