"""Descriptors of pictures: filters, equal-mass bins, divergences, neighbours."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d
from scipy.stats import entropy
from torch import Tensor

from transfer import descriptors
from transfer.descriptors import (
    BINS,
    N_FILTERS,
    SIDE,
    STRIDE,
    divergences,
    edges_of,
    grey,
    histograms,
    kernels,
    nearest,
    neighbours,
    responses,
    target_edges,
)


def pictures(n: int, seed: int = 0) -> Tensor:
    """Noise of a different coarseness each: no two pixels alike."""
    draw = torch.Generator().manual_seed(seed)
    found = [torch.rand(1, 1, 4 + 3 * i, 4 + 3 * i, generator=draw) for i in range(n)]
    smooth = [torch.nn.functional.interpolate(f, (SIDE, SIDE), mode="bicubic") for f in found]
    return torch.cat(smooth) + 1e-3 * torch.rand(n, 1, SIDE, SIDE, generator=draw)


def some_descriptors(n: int, width: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).dirichlet(np.full(width, 0.5), n)).float() * 0.9 + 0.1 / width


# --- responses


def test_there_are_48_filters_without_mean_and_of_unit_length() -> None:
    banks = kernels()
    assert sum(len(bank) for bank in banks) == N_FILTERS == 48
    for bank in banks:
        torch.testing.assert_close(bank.sum((1, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
        torch.testing.assert_close(bank.square().sum((1, 2, 3)), torch.ones(16))


def test_responses_equal_scipys() -> None:
    picture = pictures(1)
    found = responses(picture).view(N_FILTERS, SIDE // STRIDE, SIDE // STRIDE)
    place = 0
    for bank in kernels():
        radius = bank.shape[-1] // 2
        mirrored = np.pad(picture[0, 0].double().numpy(), radius, mode="reflect")
        for kernel in bank[:3]:
            expected = correlate2d(mirrored, kernel[0].double().numpy(), mode="valid")[::STRIDE, ::STRIDE]
            np.testing.assert_allclose(found[place].numpy(), expected, atol=1e-4)
            place += 1
        place += len(bank) - 3


def test_a_wave_excites_the_filters_of_its_direction_and_a_flat_picture_none() -> None:
    at = torch.arange(SIDE, dtype=torch.float32)
    across = (2 * torch.pi / 6 * at).sin().expand(1, 1, SIDE, SIDE)  # wavelength 6 along x: direction 0
    energy = responses(across).square().mean(2)[0].view(3, 8, 2).sum(2)
    assert energy.flatten().argmax().item() == 8  # the middle wavelength, the first direction
    turned = responses(across.transpose(2, 3)).square().mean(2)[0].view(3, 8, 2).sum(2)
    assert turned.flatten().argmax().item() == 8 + 4  # a quarter of a turn
    torch.testing.assert_close(
        responses(torch.full((1, 1, SIDE, SIDE), 0.7)), torch.zeros(1, 48, 1024), atol=1e-4, rtol=0
    )


def test_the_normalisation_of_a_backbone_does_not_show() -> None:
    raw = torch.rand(2, 3, 80, 80, generator=torch.Generator().manual_seed(0))
    found = []
    for mean, std in (((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))):
        seen = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        found.append(grey(seen, mean, std))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=0)
    assert found[0].shape == (2, 1, SIDE, SIDE)
    white = grey(torch.ones(1, 3, 32, 32), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    torch.testing.assert_close(white, torch.ones(1, 1, SIDE, SIDE))


# --- histograms


def test_bins_hold_equal_mass_on_the_target() -> None:
    target = pictures(5)
    edges = target_edges([target[:2], target[2:]], 5)
    free = descriptors.FREE
    found = histograms(responses(target), edges).view(5, N_FILTERS, BINS)
    counts = found * N_FILTERS * (1024 + BINS * free) - free
    torch.testing.assert_close(counts.sum(0), torch.full((N_FILTERS, BINS), 5 * 1024 / BINS), atol=1e-2, rtol=0)


def test_descriptors_sum_to_one_and_are_positive() -> None:
    edges = target_edges([pictures(3)], 3)
    found = histograms(responses(pictures(4, seed=9) * 5), edges)
    assert found.shape == (4, N_FILTERS * BINS)
    torch.testing.assert_close(found.sum(1), torch.ones(4))
    assert (found > 0).all()


def test_histograms_equal_numpys() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(2, 3, 40)).astype(np.float32)
    edges = edges_of(torch.from_numpy(draw.normal(size=(3, 100)).astype(np.float32)), bins=6)
    found = histograms(torch.from_numpy(values), edges).view(2, 3, 6)
    for n in range(2):
        for f in range(3):
            counts, _ = np.histogram(values[n, f], [-np.inf, *edges[f].tolist(), np.inf])
            np.testing.assert_allclose(found[n, f].numpy(), (counts + 0.5) / (3 * 43), atol=1e-6)


def test_thinned_out_quantiles_are_near_the_exact_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    target = pictures(8)
    exact = target_edges([target], 8)
    monkeypatch.setattr(descriptors, "MOST_SAMPLED", 2000)
    one = target_edges([target], 8)
    torch.testing.assert_close(target_edges([target[:3], target[3:]], 8), edges_of(torch.cat([
        responses(target).transpose(0, 1).flatten(1)[:, ::5]], 1)))  # fmt: skip
    spread = responses(target).std((0, 2))[:, None]
    assert ((one - exact) / spread).abs().mean() < 0.05


# --- divergences and neighbours


def test_the_divergence_is_scipys_symmetrised() -> None:
    own, other = some_descriptors(4, 30, 0), some_descriptors(5, 30, 1)
    found = divergences(own, other)
    for i, p in enumerate(own.double().numpy()):
        for j, q in enumerate(other.double().numpy()):
            assert found[i, j].item() == pytest.approx((entropy(p, q) + entropy(q, p)) / 2, abs=1e-5)
    torch.testing.assert_close(divergences(other, own), found.T)
    torch.testing.assert_close(divergences(own, own).diag(), torch.zeros(4), atol=2e-6, rtol=0)


def test_neighbours_come_in_order_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = some_descriptors(12, 20, 2), some_descriptors(40, 20, 3)
    expected = divergences(own, other).argsort(1)[:, :7]
    monkeypatch.setattr(descriptors, "BLOCK", 9)
    monkeypatch.setattr(descriptors, "ROWS", 5)
    assert torch.equal(nearest(own, other.split(4), 7).long(), expected)
    assert nearest(own, other.split(4), 99).shape == (12, 40)


def test_a_duplicated_picture_retrieves_itself() -> None:
    target, others = pictures(4), pictures(9, seed=5)
    source = torch.cat([others[:5], target.flip(0), others[5:]])
    found = neighbours(lambda: target.split(3), 4, source.split(2), 3)
    assert found[:, 0].tolist() == [8, 7, 6, 5]
    edges = target_edges([target], 4)
    own = histograms(responses(target), edges)
    torch.testing.assert_close(divergences(own, own).diag(), torch.zeros(4), atol=1e-5, rtol=0)
    assert divergences(own, own).fill_diagonal_(1).min() > 0.01
