"""H-score with a shrunk covariance: of use also where there are fewer items than features.

    H_a = tr(S_a^-1 (1 - a) cov(E[f | y])),  S_a = (1 - a) cov(f) + a tr(cov(f)) / D I        f (n, D)

a in [0, 1] is Ledoit and Wolf's closed form (2004), from the features alone: a = min(b, d) / d with

    d = ||cov(f) - m I||_F^2 / D,  m = tr(cov(f)) / D,  b = (1/n sum_i ||f_i - mean||^4 - ||cov(f)||_F^2) / (n D)

as scikit-learn has it. a = 0 is Bao's H-score. Ibrahim et al., "Newer is not always better", 2021.

Cost: one eigendecomposition of the smaller Gram matrix, O(n D min(n, D)), and n D^2 multiplications for a.
"""

import numpy as np
from numpy.typing import NDArray

from transfer.closed_form import span_of

Floats = NDArray[np.float64]


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    # Not above: its import takes a second, which every trial would wait for.
    from sklearn.covariance import ledoit_wolf_shrinkage

    span, width = span_of(features), features.shape[1]
    if not len(span.spread):
        return 0.0
    between = np.zeros_like(span.spread)
    for label in np.unique(labels):
        members = span.coordinates[labels == label]
        between += len(members) / len(labels) * members.mean(0) ** 2
    a = float(ledoit_wolf_shrinkage(features))
    return float(((1 - a) * between / ((1 - a) * span.spread + a * span.spread.sum() / width)).sum())
