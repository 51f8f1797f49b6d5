"""The earth mover's distance against what is known of it, and the choice of source classes."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from transfer.similarity import (
    Classes,
    class_means,
    domain_similarity,
    emd,
    nearest_classes,
    similarity,
    single_class_scores,
)


def points(n: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 1.0, n)
    return rng.normal(size=(n, width)), weights / weights.sum()


def test_one_source_class_leaves_the_weighted_mean_distance() -> None:
    target, weights = points(6, 4, 0)
    source = np.ones((1, 4))
    expected = (np.linalg.norm(target - 1, axis=1) * weights).sum()
    assert emd(source, np.array([3.0]), target, weights) == pytest.approx(expected, abs=1e-10)


def test_equal_numbers_and_weights_are_an_assignment() -> None:
    source, _ = points(9, 5, 1)
    target, _ = points(9, 5, 2)
    cost = cdist(source, target)
    expected = cost[linear_sum_assignment(cost)].mean()
    assert emd(source, np.ones(9), target, np.ones(9)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_in_one_dimension_it_is_wassersteins(seed: int) -> None:
    source, w = points(7, 1, seed)
    target, v = points(11, 1, 50 + seed)
    expected = wasserstein_distance(source[:, 0], target[:, 0], w, v)
    assert emd(source, w, target, v) == pytest.approx(expected, abs=1e-9)


def test_it_is_a_distance() -> None:
    (a, u), (b, v), (c, w) = points(5, 3, 3), points(8, 3, 4), points(6, 3, 5)
    ab, bc, ac = emd(a, u, b, v), emd(b, v, c, w), emd(a, u, c, w)
    assert emd(a, u, a, u) == pytest.approx(0.0, abs=1e-12)
    assert emd(b, v, a, u) == pytest.approx(ab, abs=1e-9)
    assert ac <= ab + bc + 1e-9
    assert ab > 0
    order = np.random.default_rng(0).permutation(5)
    assert emd(a[order], u[order], b, v) == pytest.approx(ab, abs=1e-9)


def test_scale_and_weightless_classes() -> None:
    (a, u), (b, v) = points(5, 3, 3), points(4, 3, 4)
    value = emd(a, u, b, v)
    assert emd(10 * a, u, 10 * b, v) == pytest.approx(10 * value, abs=1e-8)
    assert emd(a, 7 * u, b, v) == pytest.approx(value, abs=1e-9)
    padded = np.concatenate([a, np.full((1, 3), 1e6)])
    assert emd(padded, np.append(u, 0.0), b, v) == pytest.approx(value, abs=1e-9)
    with pytest.raises(ValueError, match="weight"):
        emd(a, np.zeros(5), b, v)
    with pytest.raises(ValueError, match="negative"):
        emd(a, -u, b, v)


def test_the_published_scale_of_similarity() -> None:
    """ImageNet to CUB: EMD 57.532 is similarity .563; to Dogs 48.044 is .619 (Cui et al.'s demo)."""
    assert round(similarity(57.532), 3) == 0.563
    assert round(similarity(48.044), 3) == 0.619


def test_class_means_equal_those_taken_at_once() -> None:
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(50, 4, generator=draw), torch.randint(0, 3, (50,), generator=draw)
    batches = [(features[at : at + 16], labels[at : at + 16]) for at in range(0, 50, 16)]
    found = class_means(batches, 5)
    for c in range(3):
        np.testing.assert_allclose(found.means[c], features[labels == c].double().mean(0).numpy(), atol=1e-12)
    assert found.counts.tolist() == [*np.bincount(labels.numpy()), 0, 0]
    assert found.weights.sum() == pytest.approx(1.0)
    assert domain_similarity(found, found) == pytest.approx(1.0, abs=1e-12)  # empty classes weigh nothing
    with pytest.raises(ValueError, match="no items"):
        class_means([], 3)


def test_the_nearest_classes_one_by_one() -> None:
    target = Classes(np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([30, 10]))
    source = Classes(
        np.array([[9.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.1, 0.0], [4.0, 0.0]]), np.array([300, 300, 300, 10, 300])
    )
    scores = single_class_scores(source.means, target)
    assert scores[1] == pytest.approx(np.exp(-0.01 * (0.75 * 1 + 0.25 * 3)))
    assert nearest_classes(source, target, 3).tolist() == [2, 1, 4]  # the near class 3 has too few images
    assert nearest_classes(source, target, 2, min_images=10).tolist() == [2, 3]
    assert nearest_classes(source, target, 99).tolist() == [2, 1, 4, 0]
    assert nearest_classes(source, target, 3, min_images=1000).tolist() == []
    far = Classes(source.means * 1e6, source.counts)  # every score underflows to 0, the order stays
    assert (single_class_scores(far.means, target) == 0).sum() >= 3
    assert nearest_classes(far, target, 4).tolist()[0] == 2


def test_one_class_alone_is_the_emd_to_it() -> None:
    (a, _), (b, _) = points(4, 3, 3), points(5, 3, 4)
    target = Classes(b, np.array([4, 1, 3, 2, 5]))
    expected = [similarity(emd(a[i : i + 1], np.ones(1), b, target.weights)) for i in range(4)]
    np.testing.assert_allclose(single_class_scores(a, target), expected, atol=1e-12)
