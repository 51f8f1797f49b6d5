"""Filter patterns (experimental): each layer's 3x3 kernels stay likely under a mixture fitted to the source's.

x           the 3x3 slices of a layer's kernel (out, in, 3, 3), n = out in points in R^9
pi, mu, S   a mixture of Gaussians fitted to the source's slices of that layer, once, and then fixed

    R = -mean_x log sum_k pi_k N(x; mu_k, S_k),   loss += strength sum_layers R_layer + beta/2 ||w_N||^2

A mean over slices, a sum over layers. Its gradient is 1/n sum_k r_k(x) S_k^-1 (x - mu_k) with r the responsibilities.
R is a log-density: it is not 0 at the start and may be negative. It holds a layer's patterns, not its weights: kernels
may be exchanged, and it does not matter which of them came from where.

components  K of each layer's mixture; fewer where a layer has fewer than ten slices for each
covariance  "full", or "diag": the nine pixels independent within a component
w_N         new weights, mostly the head's: they decay towards zero

The mixture is scikit-learn's GaussianMixture, at most 50 rounds from a start by k-means++, fitted to at most 8192
slices; a thousandth of the layer's variance is added to every component's. Each step looks at 1024 slices of a layer at
most, drawn anew: the same gradient on average. It is part of the loss under AdamW too (beta is not): like a loss on
data, it has no step of its own.

Aygun, Aytar, Ekenel, Exploiting convolution filter patterns for transfer learning, ICCV workshops 2017. The paper's
equations could not be checked: what is here follows its abstract. No public implementation is known.

Cost: once, a fit per layer (ResNet-18, full, one thread: 9 s in all at K = 16, about three minutes at 256); per step
the densities of 1024 slices per layer, about 3 % of a step of ResNet-18 at K = 16.
"""

import math
import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from domain.errors import Invalid
from domain.space import Choice, FloatRange, IntRange
from transfer.bench import Bench
from transfer.penalties import half_squared_distance, pull
from transfer.step import PartState, Step, Weights

SPACE = {
    "components": IntRange(low=16, high=256, log=True, default=16),
    "covariance": Choice(options=("full", "diag"), default="full"),
    "strength": FloatRange(low=1e-5, high=1e-1, log=True, default=1e-3),
    "beta": FloatRange(low=1e-4, high=1e-1, log=True, default=1e-2),
}
NEEDS = ("start", "conv3x3")

PREFIX = "filter_patterns/"
SLICES_PER_COMPONENT = 10
MOST_FITTED, MOST_LOOKED_AT = 8192, 1024
FLOOR = 1e-3  # of a layer's variance
TOLERANCE, MOST_ROUNDS = 1e-3, 50


class Mixture(NamedTuple):
    """K Gaussians in R^D; `roots` are the upper triangular roots of the precisions, S_k^-1 = roots_k roots_k'."""

    log_shares: Tensor  # (K,)
    means: Tensor  # (K, D)
    roots: Tensor  # (K, D, D)


def prepare(
    bench: Bench, *, components: int, covariance: str, strength: float, beta: float,  # noqa: ARG001
) -> dict[str, Tensor]:  # fmt: skip
    kernels = {name: w for name, w in bench.start.items() if has_patterns(w)}
    if not kernels:
        raise Invalid("no_filter_patterns", f"{bench.recipe.backbone} has no 3x3 kernels that came from the source")

    def make() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for place, (name, kernel) in enumerate(kernels.items()):
            bench.ask()
            fitted = fit(slices(kernel), components, covariance, np.random.default_rng(bench.seed(100 + place)))
            for part, tensor in fitted._asdict().items():
                found[f"{PREFIX}{name}/{part}"] = tensor.to(kernel.device, torch.float32)
        return found

    return bench.once(("filter_patterns", components, covariance, tuple(kernels)), make)


def loss(
    step: Step, *, components: int, covariance: str, strength: float, beta: float,  # noqa: ARG001
) -> Tensor:  # fmt: skip  # ()
    names, shared, _ = step.weights.shared("kernels")
    found = []
    for name, weight in zip(names, shared, strict=True):
        if has_patterns(weight):
            mixture = Mixture(*(step.prepared[f"{PREFIX}{name}/{part}"] for part in Mixture._fields))
            found.append(surprise(some_slices(weight, step.rng), mixture))
    held = strength * torch.stack(found).sum() if found else torch.zeros(())
    if step.weights.decoupled:
        return held
    return held + beta * half_squared_distance(step.weights.new("kernels")[1])


def after_step(
    weights: Weights, start: Mapping[str, Tensor], lr: Mapping[str, float], state: PartState,  # noqa: ARG001
    *, components: int, covariance: str, strength: float, beta: float,  # noqa: ARG001
) -> None:  # fmt: skip
    if weights.decoupled:
        names, new = weights.new("kernels")
        pull(new, None, [lr[n] * beta for n in names])


def has_patterns(weight: Tensor) -> bool:
    # A layer of a single slice has nothing to fit a mixture to.
    return weight.ndim == 4 and tuple(weight.shape[2:]) == (3, 3) and weight.numel() > 9


def slices(kernel: Tensor) -> Tensor:  # (out, in, 3, 3) -> (out * in, 9)
    return kernel.reshape(-1, 9)


def some_slices(kernel: Tensor, rng: np.random.Generator) -> Tensor:  # -> (at most MOST_LOOKED_AT, 9)
    n_out, n_in = kernel.shape[:2]
    if n_out * n_in <= MOST_LOOKED_AT:
        return slices(kernel)
    # With replacement: choosing a few of a million without it takes longer than what follows.
    rows, columns = (torch.from_numpy(rng.integers(n, size=MOST_LOOKED_AT)) for n in (n_out, n_in))
    return kernel[rows.to(kernel.device), columns.to(kernel.device)].reshape(-1, 9)


# --- the mixture


def surprise(x: Tensor, mixture: Mixture) -> Tensor:  # (n, D) -> ()
    """-mean_x log sum_k pi_k N(x; mu_k, S_k), in float32; autocast leaves the float64 within alone."""
    exact = Mixture(*(t.double() for t in mixture))
    return -log_densities(x.double(), exact).logsumexp(1).mean().float()


def log_densities(x: Tensor, mixture: Mixture) -> Tensor:  # (n, D) -> (n, K)
    """log pi_k N(x; mu_k, S_k), all in float64."""
    # Multiplied out, x'Px - 2 x'P mu + mu'P mu: two products of matrices instead of (n, K, D) numbers. Near a narrow
    # component the terms nearly cancel, which float32 would not survive.
    precisions = mixture.roots @ mixture.roots.transpose(1, 2)
    pulls = torch.einsum("kde,ke->kd", precisions, mixture.means)
    own = mixture.log_shares + mixture.roots.diagonal(dim1=1, dim2=2).log().sum(1)
    own = own - ((pulls * mixture.means).sum(1) + x.shape[1] * math.log(2 * math.pi)) / 2
    squares = (x[:, :, None] * x[:, None, :]).flatten(1)  # (n, D * D)
    return x @ pulls.T - squares @ precisions.flatten(1).T / 2 + own


def fit(x: Tensor, components: int, covariance: str, rng: np.random.Generator) -> Mixture:
    """The mixture of the rows of x (n, D), in float64 on the CPU."""
    # Not above: its import takes a second, which every trial would wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rows = np.sort(rng.permutation(len(x))[:MOST_FITTED])
    points = x.detach().cpu().double().numpy()[rows]
    found = GaussianMixture(
        min(components, max(1, len(points) // SLICES_PER_COMPONENT)), covariance_type=covariance,
        reg_covar=FLOOR * float(points.var(0).mean()) + 1e-12, tol=TOLERANCE, max_iter=MOST_ROUNDS,
        init_params="k-means++", random_state=int(rng.integers(2**32)),
    )  # fmt: skip
    with warnings.catch_warnings():
        # Any fixed mixture will do: one that would still rise a little after the last round is as good to stay near.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found.fit(points)
    shares, means, roots = (torch.from_numpy(a) for a in (found.weights_, found.means_, found.precisions_cholesky_))
    return Mixture(shares.log(), means, roots if covariance == "full" else torch.diag_embed(roots))
