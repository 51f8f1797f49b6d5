"""H-score: the variance between the classes' mean features, measured in units of the features' own covariance.

    H = tr(cov(f)^+ cov(E[f | y]))        f (n, D), covariances with 1/n, ^+ the pseudo-inverse

Between 0 (the classes have one mean) and min(D, C - 1). Bao et al., ICIP 2019.

With n <= D + 1 it would be C - 1 for any features in general position, which ranks nothing: the score is then nan, and
`h_score_shrunk` is the variant with a shrunk covariance for that. Public implementations differ in the cut-off of the
pseudo-inverse (here: eps max(n, D) of the largest eigenvalue) and in dividing by n or n - 1.

Cost: one eigendecomposition of the smaller Gram matrix, O(n D min(n, D)).
"""

import numpy as np
from numpy.typing import NDArray

from transfer.closed_form import span_of

Floats = NDArray[np.float64]


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    n, width = features.shape
    if n <= width + 1:
        return float("nan")
    span = span_of(features)
    between = np.zeros_like(span.spread)
    for label in np.unique(labels):
        members = span.coordinates[labels == label]
        between += len(members) / len(labels) * members.mean(0) ** 2
    # In principal coordinates cov(f) is diagonal, so only the diagonal of the other covariance counts.
    return float((between / span.spread).sum())
