"""How near one dataset is to another: the earth mover's distance between the mean features of their classes.

    EMD = min_f sum_ij f_ij d_ij   with   f >= 0,  sum_j f_ij = w_i,  sum_i f_ij = v_j,  d_ij = ||g(s_i) - g(t_j)||_2
    similarity = exp(-gamma EMD),  gamma = 0.01

g(s_i) (D,): mean penultimate feature of source class i, w_i: its share of the images; t_j, v_j: the same of the target.
gamma is tied to the scale of the features, which are not normalised: similarities of one network's features compare
with one another, not with those of another network. Cui et al., CVPR 2018; train split only. The linear programme is
solved exactly.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.spatial.distance import cdist
from torch import Tensor

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

GAMMA = 0.01
MIN_IMAGES = 200  # of a source class


class Classes(NamedTuple):
    """A dataset as its classes see it; rows of classes without images mean nothing."""

    means: Floats  # (C, D)
    counts: Ints  # (C,)

    @property
    def weights(self) -> Floats:
        """(C,) share of the images."""
        shares: Floats = self.counts / self.counts.sum()
        return shares

    def of(self, chosen: Ints) -> "Classes":
        return Classes(self.means[chosen], self.counts[chosen])


def class_means(batches: Iterable[tuple[Tensor, Tensor]], n_classes: int) -> Classes:
    """The mean feature of each class, from batches of features (B, D) and labels (B,), summed in double precision."""
    counts = np.zeros(n_classes, np.int64)
    sums: Tensor | None = None
    for features, labels in batches:
        features, labels = features.detach().double().cpu(), labels.cpu()
        if sums is None:
            sums = torch.zeros(n_classes, features.shape[1], dtype=torch.float64)
        sums.index_add_(0, labels, features)
        counts += np.bincount(labels.numpy(), minlength=n_classes)
    if sums is None:
        raise ValueError("no items, no classes")
    return Classes(sums.numpy() / np.maximum(counts, 1)[:, None], counts)


def distances(source: Floats, target: Floats) -> Floats:  # (Cs, D), (Ct, D) -> (Cs, Ct)
    """Euclidean, between every two classes."""
    found: Floats = cdist(source, target)
    return found


def emd(source: Floats, source_weights: Floats, target: Floats, target_weights: Floats) -> float:
    """The earth mover's distance of two weighted sets of points; each set's weights are made to sum to one."""
    return emd_of(distances(source, target), source_weights, target_weights)


def emd_of(cost: Floats, source_weights: Floats, target_weights: Floats) -> float:  # (Cs, Ct), (Cs,), (Ct,)
    if (source_weights < 0).any() or (target_weights < 0).any():
        raise ValueError("weights must not be negative")
    rows, columns = np.flatnonzero(source_weights > 0), np.flatnonzero(target_weights > 0)
    if not len(rows) or not len(columns):
        raise ValueError("a set without weight has no distance to anything")
    cost, w, v = cost[np.ix_(rows, columns)], source_weights[rows], target_weights[columns]
    n_rows, n_columns = cost.shape
    balance = scipy.sparse.vstack([
        scipy.sparse.kron(scipy.sparse.eye_array(n_rows), np.ones((1, n_columns))),  # what leaves each source class
        scipy.sparse.kron(np.ones((1, n_rows)), scipy.sparse.eye_array(n_columns)),  # what reaches each target class
    ], format="csr")  # fmt: skip
    found = linprog(cost.ravel(), A_eq=balance, b_eq=np.concatenate([w / w.sum(), v / v.sum()]), method="highs")
    if not found.success:
        raise ArithmeticError(f"the transport of {n_rows} to {n_columns} classes has no solution: {found.message}")
    return float(max(found.fun, 0.0))


def similarity(distance: float, gamma: float = GAMMA) -> float:
    """exp(-gamma EMD), in (0, 1]."""
    return float(np.exp(-gamma * distance))


def domain_similarity(source: Classes, target: Classes, *, gamma: float = GAMMA) -> float:
    """How near the datasets are, all classes with images counted."""
    return similarity(emd(source.means, source.weights, target.means, target.weights), gamma)


def single_class_scores(source: Floats, target: Classes, *, gamma: float = GAMMA) -> Floats:  # (Cs, D) -> (Cs,)
    """exp(-gamma sum_j v_j d_ij): the similarity of the target to each source class alone."""
    scores: Floats = np.exp(-gamma * (distances(source, target.means) @ target.weights))
    return scores


def nearest_classes(source: Classes, target: Classes, k: int, *, min_images: int = MIN_IMAGES) -> Ints:
    """The k source classes that are nearest the target one by one, best first; small classes are left out.

    Greedy: the set need not be the k classes with the least EMD. Fewer than k if there are not enough. The order is
    that of `single_class_scores` for any gamma, taken from the distances themselves: the exponential underflows.
    """
    eligible = np.flatnonzero(source.counts >= max(1, min_images))
    gaps = distances(source.means[eligible], target.means) @ target.weights
    return eligible[np.argsort(gaps, kind="stable")[:k]]
