"""NLEEP: LEEP with the components of a Gaussian mixture, fitted to the features, in place of the source's classes.

    f' = principal components of the features that hold 80 % of their variance, (n, d)
    theta_v(x) = p(v | f'(x)) of a Gaussian mixture with V components
    NLEEP = 1/n sum_i log sum_v P(y_i | v) theta_v(x_i),  P(y, v) = 1/n sum_{i: y_i = y} theta_v(x_i)

Li et al., CVPR 2021. V is five per class, as public implementations have it, but no more than one per five items.

Those fit full covariances from a random start; with few items per component they are singular. Here they are diagonal
(in principal coordinates), with a hundredth of the coordinates' mean variance added, and the start (k-means++) has a
fixed seed. Components and mixture are scikit-learn's; it gets the items sorted by their features, so that the score
does not depend on their order.

Cost: one singular value decomposition, O(n D min(n, D)), and at most 100 rounds of EM, n V d each; needs no head.
"""

import warnings

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ENERGY = 0.8
PER_CLASS, ITEMS_PER_COMPONENT = 5, 5
FLOOR = 0.01
MAX_ROUNDS, TOLERANCE = 100, 1e-4  # of the mean log-likelihood


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    order = np.lexsort(features.T)
    _, own = np.unique(labels[order], return_inverse=True)
    n_components = max(1, min(PER_CLASS * (own.max() + 1), len(labels) // ITEMS_PER_COMPONENT))
    theta = responsibilities(principal(features[order]), n_components)
    joint = np.zeros((own.max() + 1, theta.shape[1]))
    np.add.at(joint, own, theta)
    conditional = joint / np.maximum(joint.sum(0), np.finfo(np.float64).tiny)
    return float(np.log((conditional[own] * theta).sum(1)).mean())


def principal(features: Floats) -> Floats:  # (n, D) -> (n, d)
    """The fewest principal coordinates that hold `ENERGY` of the variance, the strongest first."""
    if not np.ptp(features, axis=0).any():
        return np.zeros((len(features), 1))
    from sklearn.decomposition import PCA  # not above: its import takes a second, which every trial would wait for

    found: Floats = PCA(ENERGY, svd_solver="full").fit_transform(features)
    return found


def responsibilities(points: Floats, n_components: int) -> Floats:  # (n, d) -> (n, V)
    """p(component | point) of a mixture of Gaussians with diagonal covariances."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(
        n_components, covariance_type="diag", reg_covar=FLOOR * points.var(0).mean() + np.finfo(np.float64).eps,
        tol=TOLERANCE, max_iter=MAX_ROUNDS, init_params="k-means++", random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        # What the last round has found is good enough to compare sources by.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found: Floats = mixture.fit(points).predict_proba(points)
    return found
