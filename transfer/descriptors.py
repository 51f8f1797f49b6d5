"""What a picture looks like to no network in particular: histograms of Gabor responses, and nearest neighbours by them.

    r_f (h, w)   response of filter f, of 48: 8 directions, 3 wavelengths, even and odd phase, on the grey picture
    H_f (b,)     share of the pixels whose r_f falls into each of b bins
    descriptor   all H_f one after another, divided by 48: (48 b,), it sums to one

The bins of a filter hold equally many pixels of the target's pictures taken together: its edges are the target's own
quantiles. Two descriptors are compared by the symmetrised Kullback-Leibler divergence

    d(p, q) = 1/2 [KL(p | q) + KL(q | p)] = 1/2 sum_k (p_k - q_k) (log p_k - log q_k) >= 0

Ge & Yu, CVPR 2017. They offer Gabor filters or the first two layers of AlexNet, the latter with 100 bins; here pictures
are 64 x 64, responses are read at every second pixel, b = 20, and each bin gets half a pixel for free, without which an
empty bin makes the divergence infinite.

Cost: about 22 million multiplications and 50 000 searches per picture; n_target n_source 2 x 960 for the divergences.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

SIDE, STRIDE = 64, 2
DIRECTIONS, WAVELENGTHS = 8, (3.0, 6.0, 12.0)  # pixels
N_FILTERS = DIRECTIONS * len(WAVELENGTHS) * 2
BINS = 20
FREE = 0.5  # pixels per bin
MOST_SAMPLED = 1 << 19  # responses per filter that the quantiles are taken from
BLOCK, ROWS = 4096, 2048  # source and target pictures compared at once

LUMA = (0.299, 0.587, 0.114)


@cache
def kernels() -> tuple[Tensor, ...]:
    """One bank (16, 1, s, s) per wavelength: Gaussian windows times waves, without mean, of unit length."""
    return tuple(_bank(wavelength) for wavelength in WAVELENGTHS)


def _bank(wavelength: float) -> Tensor:
    sigma = wavelength / 2
    radius = math.ceil(2.5 * sigma)
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(at, at, indexing="ij")
    window = torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    found = []
    for direction in range(DIRECTIONS):
        angle = math.pi * direction / DIRECTIONS
        along = 2 * math.pi / wavelength * (x * math.cos(angle) + y * math.sin(angle))
        for wave in (along.cos(), along.sin()):
            kernel = window * (wave - (window * wave).sum() / window.sum())  # nothing on a flat picture
            found.append(kernel / kernel.square().sum().sqrt())
    return torch.stack(found)[:, None].float()


def grey(inputs: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:  # (B, 3, R, R) -> (B, 1, 64, 64)
    """Luma in 0..1 of normalised pictures, at the descriptor's size."""
    weights = torch.tensor(LUMA, device=inputs.device) * torch.tensor(std, device=inputs.device)
    offset = sum(w * m for w, m in zip(LUMA, mean, strict=True))
    luma = (inputs.float() * weights.view(1, 3, 1, 1)).sum(1, keepdim=True) + offset
    smaller = inputs.shape[-1] > SIDE
    return functional.interpolate(luma, (SIDE, SIDE), mode="bilinear", antialias=smaller, align_corners=False)


def responses(pictures: Tensor) -> Tensor:  # (B, 1, 64, 64) -> (B, 48, 1024)
    """Every filter at every second pixel, the picture mirrored at its borders."""
    found = []
    for bank in kernels():
        radius = bank.shape[-1] // 2
        padded = functional.pad(pictures, (radius,) * 4, mode="reflect")
        found.append(functional.conv2d(padded, bank.to(pictures.device), stride=STRIDE))
    return torch.cat(found, 1).flatten(2)


def edges_of(samples: Tensor, bins: int = BINS) -> Tensor:  # (F, N) -> (F, bins - 1)
    """Where to cut so that every bin holds equally many of the samples; ties fall into one bin."""
    ordered = samples.sort(1).values
    cuts = torch.arange(1, bins, device=samples.device) * samples.shape[1] // bins
    return ordered[:, cuts].contiguous()


def histograms(found: Tensor, edges: Tensor) -> Tensor:  # (B, F, P), (F, bins - 1) -> (B, F * bins), rows sum to 1
    """Descriptors from responses."""
    n, n_filters, n_pixels = found.shape
    bins = edges.shape[1] + 1
    values = found.transpose(0, 1).reshape(n_filters, -1).contiguous()
    place = torch.searchsorted(edges, values, right=True).view(n_filters, n, n_pixels).transpose(0, 1)
    row = torch.arange(n * n_filters, device=found.device).view(n, n_filters, 1)
    counts = torch.bincount((row * bins + place).flatten(), minlength=n * n_filters * bins).view(n, -1).float()
    return (counts + FREE) / (n_filters * (n_pixels + bins * FREE))


def target_edges(pictures: Iterable[Tensor], n: int) -> Tensor:
    """The edges from the responses of the n target pictures, thinned out evenly where they are very many."""
    step = max(1, math.ceil(n * (SIDE // STRIDE) ** 2 / MOST_SAMPLED)) | 1  # odd: no pixel is always left out
    kept, offset = [], 0
    for batch in pictures:
        found = responses(batch).transpose(0, 1).flatten(1)  # (F, B * P)
        kept.append(found[:, offset::step])
        offset = (offset - found.shape[1]) % step
    return edges_of(torch.cat(kept, 1))


def divergences(own: Tensor, other: Tensor) -> Tensor:  # (n, K), (m, K) -> (n, m)
    """Symmetrised Kullback-Leibler, between every two rows of positive numbers that sum to one."""
    width = own.shape[1]
    log_own, log_other = (own * width).log(), (other * width).log()  # small numbers cancel better
    crossed = own @ log_other.T + log_own @ other.T
    return ((own * log_own).sum(1)[:, None] + (other * log_other).sum(1) - crossed).clamp(min=0) / 2


def nearest(own: Tensor, others: Iterable[Tensor], k: int) -> Tensor:  # (n, K), batches (m, K) -> (n, k)
    """Places of the k nearest of all `others`, counted through the batches, for each row of `own`; nearest first."""
    best = torch.empty(len(own), 0)
    places = torch.empty(len(own), 0, dtype=torch.int32)
    before = 0
    for block in _blocks(others):
        found_best, found_places = [], []
        for at in range(0, len(own), ROWS):
            rows = slice(at, at + ROWS)
            gaps = torch.cat([best[rows], divergences(own[rows], block)], 1)
            numbers = torch.arange(before, before + len(block), dtype=torch.int32).expand(len(gaps), -1)
            smallest = gaps.topk(min(k, gaps.shape[1]), dim=1, largest=False)
            found_best.append(smallest.values)
            found_places.append(torch.cat([places[rows], numbers], 1).gather(1, smallest.indices))
        best, places = torch.cat(found_best), torch.cat(found_places)
        before += len(block)
    return places


def _blocks(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The same rows in blocks of about `BLOCK`."""
    waiting: list[Tensor] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= BLOCK:
            yield torch.cat(waiting)
            waiting = []
    if waiting:
        yield torch.cat(waiting)


def neighbours(
    target: Callable[[], Iterable[Tensor]], n_target: int, source: Iterable[Tensor], k: int
) -> Tensor:  # (n_target, k)
    """The k nearest source pictures of every target picture, from batches of grey pictures (B, 1, 64, 64).

    `target` is gone through twice: once for the edges, once for the descriptors.
    """
    edges = target_edges(target(), n_target)
    own = torch.cat([histograms(responses(batch), edges).cpu() for batch in target()])
    return nearest(own, (histograms(responses(batch), edges).cpu() for batch in source), k)
