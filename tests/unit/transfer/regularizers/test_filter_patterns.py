"""Filter patterns: the densities of scikit-learn and scipy, a ridge to the mean, gradients by responsibilities."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture

from transfer.regularizers import filter_patterns
from transfer.regularizers.filter_patterns import Mixture, fit, has_patterns, log_densities, some_slices, surprise

PARAMS = {"components": 16, "covariance": "full", "strength": 0.1, "beta": 0.01}


def three_clouds(n: int = 600, seed: int = 0) -> torch.Tensor:
    """Three clouds in nine dimensions."""
    rng = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(3, 9, generator=rng)
    return (centres[torch.arange(n) % 3] + 0.5 * torch.randn(n, 9, generator=rng)).double()


def as_sklearn(mixture: Mixture) -> GaussianMixture:
    found = GaussianMixture(len(mixture.means), covariance_type="full")
    found.weights_, found.means_ = mixture.log_shares.exp().numpy(), mixture.means.numpy()
    found.precisions_cholesky_ = mixture.roots.numpy()
    return found


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_densities_are_those_of_scikit_learn(covariance: str) -> None:
    x = three_clouds()
    mixture = fit(x, 5, covariance, np.random.default_rng(0))
    mixture = Mixture(*(t.double() for t in mixture))
    np.testing.assert_allclose(
        log_densities(x, mixture).logsumexp(1).numpy(), as_sklearn(mixture).score_samples(x.numpy()),
        rtol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_densities_are_those_of_scipy(covariance: str) -> None:
    x = three_clouds()
    mixture = fit(x, 5, covariance, np.random.default_rng(0))
    covariances = np.linalg.inv((mixture.roots @ mixture.roots.transpose(1, 2)).numpy())
    expected = [
        share + multivariate_normal(mean, cov).logpdf(x.numpy())
        for share, mean, cov in zip(mixture.log_shares.numpy(), mixture.means.numpy(), covariances, strict=True)
    ]
    np.testing.assert_allclose(log_densities(x, mixture).numpy().T, expected, rtol=1e-9)
    if covariance == "diag":
        assert (covariances == covariances * np.eye(9)).all()


def test_more_rounds_are_never_less_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a fit that is cut short says nothing about it."""
    x = three_clouds()
    found = []
    for rounds in (1, 2, 5, 50):
        monkeypatch.setattr(filter_patterns, "MOST_ROUNDS", rounds)
        found.append(-surprise(x, fit(x, 6, "full", np.random.default_rng(2))).item())
    assert found == sorted(found)


def test_a_fit_finds_the_clouds_and_is_the_same_again() -> None:
    """As likely as the three Gaussians that the clouds themselves are worth."""
    x = three_clouds()
    one, two = (fit(x, 3, "full", np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    clouds = [x[i::3].numpy() for i in range(3)]
    densities = [multivariate_normal(c.mean(0), np.cov(c.T, bias=True)).logpdf(x.numpy()) for c in clouds]
    expected = np.logaddexp.reduce(densities, axis=0).mean() - math.log(3)
    assert -surprise(x, one).item() == pytest.approx(expected, abs=0.02)


def test_one_unit_component_is_a_ridge_to_the_mean() -> None:
    x = three_clouds().float().requires_grad_()
    mean = torch.arange(9.0)
    value = surprise(x, Mixture(torch.zeros(1), mean[None], torch.eye(9)[None]))
    expected = (x - mean).square().sum(1).mean() / 2 + 4.5 * math.log(2 * math.pi)
    torch.testing.assert_close(value, expected)
    value.backward()
    torch.testing.assert_close(x.grad, ((x - mean) / len(x)).detach())


def test_the_gradient_goes_by_responsibilities() -> None:
    """1/n sum_k r_k(x) S_k^-1 (x - mu_k)."""
    x = (three_clouds(seed=5) + 0.3).requires_grad_()
    mixture = Mixture(*(t.double() for t in fit(three_clouds(), 4, "full", np.random.default_rng(0))))
    surprise(x, mixture).backward()
    theirs = as_sklearn(mixture)
    r = torch.from_numpy(theirs.predict_proba(x.detach().numpy()))
    precisions = mixture.roots @ mixture.roots.transpose(1, 2)
    away = x.detach()[:, None] - mixture.means
    torch.testing.assert_close(x.grad, torch.einsum("nk,kde,nke->nd", r, precisions, away) / len(x))


def test_it_is_float32_under_autocast() -> None:
    x = three_clouds().float()
    mixture = Mixture(*(t.float() for t in fit(x, 4, "full", np.random.default_rng(0))))
    plain = surprise(x, mixture)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = surprise(x, mixture)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain)


def test_layers_with_few_slices_have_few_components() -> None:
    assert len(fit(three_clouds(35), 16, "full", np.random.default_rng(0)).means) == 3
    assert len(fit(three_clouds(4), 16, "diag", np.random.default_rng(0)).means) == 1
    same = fit(torch.ones(40, 9), 16, "full", np.random.default_rng(0))  # a layer of constants has no variance at all
    assert all(torch.isfinite(t).all() for t in same)
    assert has_patterns(torch.ones(2, 1, 3, 3))
    assert not has_patterns(torch.ones(1, 1, 3, 3))  # one slice alone


def test_the_loss_of_a_network(make_step, moved) -> None:
    """The sum over 3x3 layers of means over slices, and the head's decay."""
    weights, start = moved
    kernel = start["stem.conv.weight"]
    mixture = Mixture(*(t.float() for t in fit(kernel.reshape(-1, 9), 16, "full", np.random.default_rng(0))))
    prepared = {f"filter_patterns/stem.conv.weight/{part}": t for part, t in mixture._asdict().items()}
    value = filter_patterns.loss(make_step(weights, start, prepared=prepared), **PARAMS)
    expected = 0.1 * surprise(weights["stem.conv.weight"].reshape(-1, 9), mixture)
    expected = expected + 0.005 * weights["head.weight"].square().sum()
    torch.testing.assert_close(value, expected)
    value.backward()
    assert {n for n, w in weights.items() if w.grad is not None} == {"stem.conv.weight", "head.weight"}
    at_start = {name: t.clone() for name, t in start.items()}
    assert filter_patterns.loss(make_step(at_start, start, prepared=prepared), **PARAMS) < value


def test_large_layers_are_sampled() -> None:
    kernel = torch.arange(20_000.0).view(200, 100, 1, 1).expand(-1, -1, 3, 3)
    found = some_slices(kernel, np.random.default_rng(0))
    assert found.shape == (1024, 9)
    assert (found == found[:, :1]).all()  # slices as they are
    assert found.mean().item() == pytest.approx(10_000, rel=0.1)
    assert torch.equal(some_slices(kernel[:2, :3], np.random.default_rng(0)), kernel[:2, :3].reshape(6, 9))
