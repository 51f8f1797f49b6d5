"""LEEP: mean log-likelihood of the labels under what the source's own classes say of them.

    P(y, z) = 1/n sum_{i: y_i = y} theta_z(x_i)         theta (n, Cs), the source head's probabilities
    LEEP = 1/n sum_i log sum_z P(y_i | z) theta_z(x_i)  <= 0

0 where the source's classes decide the labels, minus the entropy of the labels (in nats) where they say nothing.
Nguyen et al., ICML 2020. Scores of sources with different classes are comparable, those of other datasets are not.

Cost: n Cs additions; needs the source's head.
"""

import numpy as np
from numpy.typing import NDArray

NEEDS = ("source_head",)

Floats = NDArray[np.float64]


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    if source_probabilities is None:
        raise ValueError("LEEP needs the probabilities of the source's head")
    return log_expected_prediction(source_probabilities, labels)


def log_expected_prediction(theta: Floats, labels: NDArray[np.int64]) -> float:  # (n, Cs), (n,)
    _, own = np.unique(labels, return_inverse=True)
    joint = np.zeros((own.max() + 1, theta.shape[1]))
    np.add.at(joint, own, theta)
    # A source class that no item believes in has no conditional, and needs none: its theta is 0 everywhere.
    conditional = joint / np.maximum(joint.sum(0), np.finfo(np.float64).tiny)  # P(y | z)
    return float(np.log((conditional[own] * theta).sum(1)).mean())
