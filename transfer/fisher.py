"""The diagonal of the Fisher information of the source's weights: how much each one matters to what the source says.

x_i     m items, evaluation pixels              f_c(x; w)   the source's probability of its own class c
w0      the source as loaded, in eval mode      F           one value per weight, shaped as the weights are

    F_jj = 1/m sum_i sum_c f_c(x_i; w0) (d log f_c(x_i; w0) / d w_j)^2

The square is of each item's own gradient: the squared gradient of a batch's mean is something else (about 1/B of it, as
the items' gradients mostly cancel). The classes are the source's own distribution, not the labels of the items, which
would give the "empirical" Fisher information.

    estimate "exact"     the sum over c as it stands, for the `MOST_CLASSES` likeliest classes of each item
    estimate "sampled"   one class per item, drawn from f(x_i): the same in expectation, at one backward pass per item

Kirkpatrick et al. 2017 (elastic weight consolidation); Li, Grandvalet, Davoine 2018 (L2-SP-Fisher).
"""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.network import HEAD
from transfer.bench import Bench
from transfer.step import is_kernel
from transfer.warm import file_key

PREFIX = "fisher/"
ITEMS = 256  # at most, that F is estimated from
EXACT_PASSES = 4096  # backward passes at most, where there is one per item and class,
FEWEST_ITEMS = 64  # but for so many items at least
MOST_CLASSES = 64
# Numbers of per-item gradients held at once. One item at a time is faster on a CPU once the weights outgrow its cache.
AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 28}


# --- what a part prepares


def prepare_information(bench: Bench, *, estimate: str, on: str, scope: str) -> dict[str, Tensor]:
    """F by "fisher/<weight>", for the weights in `scope` that came from the source, scaled to a mean of 1 over them."""
    source, data = bench.setting.source, bench.source_data if on == "source" else None
    n_classes = source.n_classes
    rows = bench.train if data is None else data.items
    rows = np.sort(np.random.default_rng(bench.seed(1)).permutation(rows)[: n_items(estimate, n_classes)])
    key: tuple[object, ...] = ("fisher", estimate, on)
    if data is not None:
        key = (*key, file_key(Path(str(bench.setting.trial.source_pack)) / "pack.json"))

    def make() -> dict[str, Tensor]:
        names = [name for name, _ in source.named_parameters() if name.partition(".")[0] != HEAD]
        batches = bench.batches(rows) if data is None else data.batches(rows)
        draws = np.random.default_rng(bench.seed(2))
        return information(source, names, (x for x, _ in batches), estimate=estimate, draws=draws, between=bench.ask)

    found = bench.once(key, make)
    bench.remark(f"The Fisher information comes from {len(rows)} items and is scaled to a mean of 1 over the weights.")
    if data is None:
        bench.remark("The Fisher information is of the target's items: the method asks for the source's own.")
    if estimate == "exact" and n_classes > MOST_CLASSES:
        bench.remark(f"The Fisher information counts the {MOST_CLASSES} likeliest classes of each item.")
    chosen = {n: f for n, f in found.items() if n in bench.start and (scope == "all" or is_kernel(n, f))}
    return {PREFIX + name: f for name, f in scaled(chosen).items()}


def n_items(estimate: str, n_classes: int) -> int:
    """How many items F is estimated from."""
    if estimate == "sampled":
        return ITEMS
    return min(ITEMS, max(FEWEST_ITEMS, EXACT_PASSES // min(n_classes, MOST_CLASSES)))


def scaled(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """F times what makes its mean over all weights 1; where it vanishes altogether, 1 for each."""
    count = sum(f.numel() for f in found.values())
    total = float(sum(f.sum(dtype=torch.float64) for f in found.values()))
    if not total > 0:  # a source that is certain of everything has nothing to say about its weights
        return {name: torch.ones_like(f) for name, f in found.items()}
    return {name: f * (count / total) for name, f in found.items()}


# --- the estimate


def information(
    net: nn.Module, names: list[str], batches: Iterable[Tensor], *, estimate: str, draws: np.random.Generator,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:  # fmt: skip
    """F of the named weights of `net`, as they are; `between` is called every few items."""
    own = dict(net.named_parameters())
    weights = {name: own[name].detach() for name in names}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    count = 0
    size = sum(weight.numel() for weight in weights.values())
    gradients = ItemGradients(net, weights)
    for batch in batches:
        at_once = max(1, min(len(batch), AT_ONCE.get(batch.device.type, AT_ONCE["cpu"]) // size))
        for inputs in batch.split(at_once):
            with torch.no_grad():
                probabilities = net(inputs).float().softmax(1)
            classes, shares = choose(probabilities, estimate, draws)
            for labels, share in zip(classes.T, shares.T, strict=True):
                between()
                for name, found in gradients(inputs, labels).items():
                    total[name] += torch.tensordot(share, found.square(), dims=1)
            count += len(inputs)
    return {name: found.div_(max(1, count)) for name, found in total.items()}


def choose(probabilities: Tensor, estimate: str, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Classes and their shares of the sum over classes, (B, k) each, from f (B, C)."""
    if estimate == "exact":
        shares, classes = probabilities.topk(min(MOST_CLASSES, probabilities.shape[1]), dim=1)
        return classes, shares
    # By inverting the cumulated distribution: one number per item, however the items are cut into chunks.
    drawn = torch.from_numpy(draws.random(len(probabilities))).to(probabilities.device)
    upper = probabilities.double().cumsum(1)
    classes = torch.searchsorted(upper, (drawn[:, None] * upper[:, -1:]), right=True)
    return classes.clamp_max_(probabilities.shape[1] - 1), torch.ones_like(drawn[:, None], dtype=torch.float32)


class ItemGradients:
    """d log f_c(x_i) / d w for each item of a batch by itself."""

    def __init__(self, net: nn.Module, weights: dict[str, Tensor]) -> None:
        def log_probability(at: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:  # (3, H, W), () -> ()
            logits: Tensor = functional_call(net, at, (x.unsqueeze(0),)).float()
            return logits.log_softmax(1).squeeze(0).gather(0, label.unsqueeze(0)).squeeze(0)

        self._weights = weights
        self._of_one = grad(log_probability)
        self._of_many = vmap(self._of_one, in_dims=(None, 0, 0))
        self._one_by_one = False

    def __call__(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:  # (B, ...), (B,) -> {(B, *weight)}
        if len(inputs) > 1 and not self._one_by_one:
            try:
                return self._together(inputs, labels)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError, UserWarning):
                self._one_by_one = True  # some layer has no rule for a batch of gradients
        found = [self._of_one(self._weights, x, label) for x, label in zip(inputs, labels, strict=True)]
        return {name: torch.stack([one[name] for one in found]) for name in self._weights}

    def _together(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        # Where torch has no rule for a layer it says so and is slower than one item at a time; its fused attention
        # kernels have none, the plain one has.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
            warnings.filterwarnings("error", message=".*performance drop.*")
            return dict(self._of_many(self._weights, inputs, labels))
