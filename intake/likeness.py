"""Which pictures are the same picture saved twice? Resized, compressed again or slightly brighter copies are found;
two scans of a hand-written 1 are not. Measured on six real sets: copies at JPEG quality 75 or another size lie below
0.1 in all but a few cases, different pictures above 0.1 in all but one pair of 1,797 digits of 8 x 8 pixels.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 16
TOLERANCE = 0.1  # distance of two thumbnails after mean and contrast are taken out, 0 .. 2
MIN_CONTRAST = 4.0  # standard deviation in grey levels; below it a picture is blank and resembles every other blank
MAX_GAIN = 1.25  # contrast may differ by this factor,
MAX_SHIFT = 24.0  # and mean brightness by these grey levels
_N_COORDINATES = 24
_BLOCK = 256
_MAX_MATCHES = 64  # per picture: enough to hold a large cluster together without looking at all its pairs

Print = NDArray[np.uint8]  # (SIDE * SIDE * 3,)


def fingerprint(image: Image.Image) -> Print:
    """A thumbnail of an RGB image."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=4.0)
    return np.asarray(small, dtype=np.uint8).reshape(-1)


def pairs(prints: NDArray[np.uint8], tolerance: float = TOLERANCE) -> NDArray[np.int64]:
    """(M, 2) pairs of near-duplicates among (N, SIDE * SIDE * 3) fingerprints: enough of them to connect each cluster.

    Coordinates along fixed orthonormal directions bound the distance from below. Sorting by one of them leaves a
    window of candidates, a small matrix product thins it out, and what is left is compared exactly.
    """
    n, size = prints.shape
    mean = prints.mean(axis=1, dtype=np.float64)
    contrast = prints.std(axis=1, dtype=np.float64)
    textured = np.flatnonzero(contrast >= MIN_CONTRAST)
    points = np.empty((n, _N_COORDINATES), np.float32)
    basis = _basis()
    for start in range(0, n, 4096):
        part = slice(start, start + 4096)
        scale = np.maximum(contrast[part, None], 1e-9) * np.sqrt(size)
        points[part] = (prints[part] - mean[part, None]) / scale @ basis
    order = textured[np.argsort(points[textured, 0], kind="stable")]
    points = points[order]
    slack = tolerance * 1.01 + 1e-4
    found = []
    for start in range(0, len(order), _BLOCK):
        rows = points[start : start + _BLOCK]
        end = int(np.searchsorted(points[:, 0], rows[-1, 0] + slack, side="right"))
        columns = points[start:end]
        squares = (rows**2).sum(1)[:, None] + (columns**2).sum(1)[None] - 2 * rows @ columns.T
        i, j = np.nonzero(np.triu(squares <= slack**2, k=1))  # (rows, columns): row i is column i
        rank = np.arange(len(i)) - np.searchsorted(i, i)
        i, j = i[rank < _MAX_MATCHES], j[rank < _MAX_MATCHES]
        a, b = order[start + i], order[start + j]
        alike = _compare(prints, a, b, mean, contrast, tolerance)
        found.append(np.stack([a[alike], b[alike]], axis=1))
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def _compare(
    prints: NDArray[np.uint8], a: NDArray[np.int64], b: NDArray[np.int64],
    mean: NDArray[np.float64], contrast: NDArray[np.float64], tolerance: float,
) -> NDArray[np.bool_]:  # fmt: skip
    low, high = np.minimum(contrast[a], contrast[b]), np.maximum(contrast[a], contrast[b])
    product = np.empty(len(a))
    for start in range(0, len(a), 4096):
        part = slice(start, start + 4096)
        product[part] = (prints[a[part]].astype(np.int64) * prints[b[part]]).mean(axis=1)
    correlation = (product - mean[a] * mean[b]) / (low * high)
    alike: NDArray[np.bool_] = 2 - 2 * correlation <= tolerance**2
    return alike & (high <= MAX_GAIN * low) & (np.abs(mean[a] - mean[b]) <= MAX_SHIFT)


def _basis() -> NDArray[np.float64]:
    """(SIDE * SIDE * 3, 24): the lowest cosines over the picture, the same for all three colours, then of colour
    differences; orthonormal, so that a distance never grows."""
    t = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    waves = np.stack([np.cos(k * t) for k in range(5)])
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    colours = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    order = sorted((y + x + 2 * c, c, y, x) for c in range(3) for y in range(5) for x in range(5))[1:]  # 0: the mean
    vectors = [np.einsum("y,x,c->yxc", waves[y], waves[x], colours[c]).ravel() for _, c, y, x in order]
    return np.stack(vectors[:_N_COORDINATES], axis=1)


class Clusters:
    """Union-find over 0 .. n-1; the smallest index of a cluster is its name."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.find(i), self.find(j)))
        self._parent[high] = low

    def names(self) -> list[int]:
        return [self.find(i) for i in range(len(self._parent))]


def cluster(prints: NDArray[np.uint8], classes: Sequence[Hashable]) -> tuple[list[int], list[list[int]]]:
    """The cluster of each picture, named by its first member, and the clusters too large to be believed.

    When over half of a class looks alike (one camera, one scene), likeness says nothing about copies: the cluster is
    looked at again at half the tolerance, twice, and what still hangs together then counts as different pictures.
    """
    sizes: dict[Hashable, int] = {}
    for name in classes:
        sizes[name] = sizes.get(name, 0) + 1
    clusters = Clusters(len(prints))
    doubted: list[list[int]] = []
    todo = [(np.arange(len(prints)), TOLERANCE)]
    while todo:
        members, tolerance = todo.pop()
        for group in _connected(prints[members], tolerance):
            chosen = members[group]
            if not _covers_a_class([classes[i] for i in chosen], sizes):
                for i in chosen[1:]:
                    clusters.join(int(chosen[0]), int(i))
                continue
            if tolerance == TOLERANCE:
                doubted.append(chosen.tolist())
            if tolerance > TOLERANCE / 4:
                todo.append((chosen, tolerance / 2))
    return clusters.names(), sorted(doubted)


def _connected(prints: NDArray[np.uint8], tolerance: float) -> list[list[int]]:
    clusters = Clusters(len(prints))
    for i, j in pairs(prints, tolerance).tolist():
        clusters.join(i, j)
    groups: dict[int, list[int]] = {}
    for i, name in enumerate(clusters.names()):
        groups.setdefault(name, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def _covers_a_class(members: Sequence[Hashable], sizes: dict[Hashable, int]) -> bool:
    return any(members.count(name) > max(2, sizes[name] / 2) for name in set(members))
