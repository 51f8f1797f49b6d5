"""Leave-one-out accuracy of the five nearest neighbours by cosine.

    score = 1/n sum_i [y_i = most frequent label among the k items j != i with the largest f_i'f_j / (|f_i| |f_j|)]

f (n, D). Of labels that are equally frequent the smallest wins. Features are neither centred nor scaled per dimension.

Cost: n^2 D multiplications, in chunks (scikit-learn's brute force); exact, no index.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

K = 5


def score(features: Floats, labels: NDArray[np.int64], source_probabilities: Floats | None) -> float:  # noqa: ARG001
    # Not above: its import takes a second, which every trial would wait for.
    from sklearn.neighbors import KNeighborsClassifier

    if len(labels) < 2:
        raise ValueError("one item has no neighbours")
    classifier = KNeighborsClassifier(min(K, len(labels) - 1), metric="cosine", algorithm="brute")
    # Asked about None, it says of each item what the others say of it.
    return float(classifier.fit(features, labels).score(None, labels))
