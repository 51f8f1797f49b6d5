"""Many linear heads on the same kept features, trained together.

Trials of one lot that train nothing but a linear head (`domain.heads`) take the same steps on the same features. They
differ in where the head begins, in the order of the items, in learning rate, momentum, clipping, smoothing and decay.
Head m of M:

    X (M, B, D) its items' features, Y (M, B, C) its smoothed targets, P = softmax(X W^T + b)
    dW = (P - Y)^T X / B + beta W        (M, C, D)
    db = sum_B (P - Y) / B  [+ beta b]   (M, C), decayed too where the penalty's scope is "all"
    both times min(1, clip / (|(dW, db)| + 1e-6)), then  v <- momentum v + d,  w <- w - lr_t v

The gradient of the cross-entropy of a linear map is written out, so that a step is two batched products for as many
heads as fit into a core's cache, where one head alone is mostly the overhead of its calls. Each head ends where it
would have ended by itself, up to the order of summation. Kernels alone decay unless a part says otherwise; nothing else
of a penalty reaches a new head.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from domain.heads import head_key
from domain.lot import TrialOrder
from domain.recipe import Recipe
from models.network import HEAD, new_head
from transfer import memory
from transfer.loop import Loop, Snapshot
from transfer.parts import BoundPart, bind_all
from transfer.prefix import Kept
from transfer.setting import seed_of
from transfer.warm import Shelf

NAMES = (f"{HEAD}.weight", f"{HEAD}.bias")
MAX_BYTES = 1 << 29  # of what is noted at evaluations, and of features
CACHE_BYTES = 1 << 21  # as much as a core has nearby; half and twice as much were 5 % slower
ASK_EVERY = 20  # steps of all heads between questions whether to go on


class Head(NamedTuple):
    """What one head has of its own."""

    trial_id: str
    recipe: Recipe
    seed: int  # of its phase
    begin: int  # of its first weights
    decay: float
    decays_bias: bool
    penalty: str | None  # name of the term


class Runs(NamedTuple):
    """What became of heads that were trained together. Each bears its part of the time once it reads this: what is read
    by nobody, for the lot went to another worker, is in no trial's cost."""

    snapshots: dict[str, list[Snapshot]]  # by trial; none where there was no room for all of them at once
    by: str  # the trial in whose time they were trained
    seconds: float

    @property
    def n_bytes(self) -> int:
        found = (t for run in self.snapshots.values() for s in run for t in (*s.weights.values(), *s.velocity.values()))
        return sum(t.numel() * t.element_size() for t in found)


RUNS: Shelf[Runs] = Shelf(MAX_BYTES, lambda runs: runs.n_bytes)


def train(loop: Loop) -> Iterator[None]:
    """Take the steps of a phase as `loop.train()` does, beside its peers where it is a head among heads."""
    loop.begin()
    snapshots = together(loop)
    if snapshots is None:
        yield from loop.train()
        return
    for snapshot in snapshots:
        loop.bench.ask()
        loop.become(snapshot)
        yield


def together(loop: Loop) -> list[Snapshot] | None:
    """What this phase's head is at its evaluations, trained beside its peers in the lot; None where it has none, or is
    more than a head."""
    setting = loop.setting
    key = head_key(loop.recipe, loop.net.n_stages) if _trains_a_head(loop) else None
    if key is None:
        return None
    peers = [head for trial in setting.order.trials if (head := _as_head(loop, trial, key)) is not None]
    beside_others = len(peers) > 1 and setting.trial.trial_id in [p.trial_id for p in peers]
    if not beside_others or not _fits(loop, len(peers)):
        return None
    lot = (setting.order.lot_id, setting.order.fence, loop.bench.fold, setting.start_key, setting.pack_key, key)
    own = setting.trial.trial_id
    runs = RUNS.get(lot, lambda: _train(loop, peers))
    if runs.snapshots:  # each bears its part of what all of them took
        loop.bench.borrowed_s += runs.seconds / len(peers) - (runs.seconds if runs.by == own else 0.0)
    return runs.snapshots.get(own)


def _fits(loop: Loop, n_heads: int) -> bool:
    """Whether what is noted for all fits of these heads may be kept, and the features of every look at once."""
    data, width = loop.recipe.data, loop.net.feature_dim
    noted = 8 * width * loop.setting.n_classes * len(loop.evaluations) * n_heads * loop.setting.n_fits
    table = 4 * width * len(loop.bench.train) * max(1, loop.setting.task.n_looks(data))
    return noted <= MAX_BYTES and table <= MAX_BYTES


def _trains_a_head(loop: Loop) -> bool:
    """Whether this phase is the first, and plain descent on a linear head above kept looks."""
    phase, kept = loop.phase, loop.kept
    return (
        loop.step == loop.index == 0 and kept is not None and kept.looks and kept.depth == loop.net.n_stages
        and set(loop.weights) == set(NAMES) and not loop.bench.rates
        and phase.patience is None and not phase.terms and not phase.optimizer
        and loop.setting.precision == "float32"
    )  # fmt: skip


def _as_head(loop: Loop, trial: TrialOrder, key: str) -> Head | None:
    """What a trial of the lot is as a head beside this one; None if it is something else."""
    own, recipe = loop.setting.trial, trial.recipe
    same_files = (trial.pack, trial.source, trial.resume) == (own.pack, own.source, None)
    if not same_files or head_key(recipe, loop.net.n_stages) != key:
        return None
    penalties = [part for part in bind_all(recipe) if part.slot == "regularizer"]
    if any(not part.flag("DECAYS_NEW") for part in penalties):
        return None
    decay, decays_bias = _decay(penalties)
    fold = loop.bench.fold
    return Head(
        trial.trial_id, recipe, seed_of(recipe.seed, fold, 1 + loop.index), seed_of(recipe.seed, fold), decay,
        decays_bias, penalties[0].name if penalties else None,
    )  # fmt: skip


def _decay(parts: Sequence[BoundPart]) -> tuple[float, bool]:
    """Strength of the decay of new weights, and whether it reaches biases."""
    if not parts:
        return 0.0, False
    (part,) = parts
    return float(part.params[part.module.DECAYS_NEW]), part.params.get("scope") == "all"


# --- training


class _Gone(Exception):
    """Features that were kept are not there any more."""


def _train(loop: Loop, heads: Sequence[Head]) -> Runs:
    """Every head's snapshots; none where there is no room for all of them at once: then each is trained alone."""
    began, by = time.perf_counter(), loop.setting.trial.trial_id
    found: dict[str, list[Snapshot]] = {head.trial_id: [] for head in heads}
    try:
        for snapshots in _steps(loop, heads):
            for head, snapshot in zip(heads, snapshots, strict=True):
                found[head.trial_id].append(snapshot)
    except _Gone:
        found = {}
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        found = {}
    return Runs(found, by, time.perf_counter() - began)


def _steps(loop: Loop, heads: Sequence[Head]) -> Iterator[list[Snapshot]]:
    """All heads, step by step; yields where the phase is evaluated."""
    setting, size, device = loop.setting, loop.recipe.data.batch_size, loop.setting.device
    train, n_classes, width = loop.bench.train, setting.n_classes, loop.net.feature_dim
    n_batches = max(1, len(train) // size)
    begun = [new_head(width, n_classes, "linear", seed=head.begin).state_dict() for head in heads]
    w = torch.stack([state["weight"] for state in begun]).to(device)  # (M, C, D)
    b = torch.stack([state["bias"] for state in begun]).to(device)  # (M, C)
    vw, vb, dw = torch.zeros_like(w), torch.zeros_like(b), torch.empty_like(w)

    def column(values: Sequence[float]) -> Tensor:  # (M, 1, 1)
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)

    decay, momentum = column([h.decay for h in heads]), column([h.recipe.optimizer.momentum for h in heads])
    bias_decay = column([h.decay * h.decays_bias for h in heads])[..., 0]
    clip = column([h.recipe.optimizer.grad_clip or float("inf") for h in heads])
    smoothing = column([h.recipe.data.label_smoothing for h in heads])
    rates, classes = _rates(loop, heads).to(device), torch.arange(n_classes, device=device)[:, None]
    features, labels = _Features(loop.kept), torch.from_numpy(loop.bench.train_labels).to(device)
    task, penalty = torch.zeros(len(heads), device=device), torch.zeros(len(heads), device=device)
    for step in range(loop.n_steps):
        epoch, batch = divmod(step, n_batches)
        if step % ASK_EVERY == 0:
            loop.bench.ask()
        if batch == 0:
            order = torch.from_numpy(np.stack([_order(len(train), head.seed, epoch) for head in heads])).to(device)
            first = torch.stack([features.rows(loop, head, epoch) for head in heads]).to(device)[:, None]
        at = order[:, batch * size : (batch + 1) * size]  # (M, B)
        n_items = at.shape[1]
        y = (labels[at][:, None] == classes).float().mul_(1 - smoothing).add_(smoothing / n_classes)  # (M, C, B)
        for near in _near(features.table, len(heads), n_items):
            x = features.table.index_select(0, (first[near] + at[near]).view(-1)).view(-1, n_items, width)
            log_p = torch.baddbmm(b[near, :, None], w[near], x.mT).log_softmax(1)
            task[near] -= (y[near] * log_p).sum((1, 2)) / n_items
            error = log_p.exp_().sub_(y[near]).div_(n_items)
            torch.bmm(error, x, out=dw[near])
            y[near] = error
        penalty += (decay * _squares(w) + bias_decay[..., None] * _squares(b[..., None]))[:, 0, 0] / 2
        dw.addcmul_(decay, w)
        db = torch.addcmul(y.sum(2), bias_decay, b)
        norm = (_squares(dw) + _squares(db[..., None])).sqrt()
        factor = (clip / (norm + 1e-6)).clamp(max=1.0)
        vw.mul_(momentum).addcmul_(dw, factor)
        vb.mul_(momentum[..., 0]).addcmul_(db, factor[..., 0])
        w.addcmul_(rates[step], vw, value=-1)
        b.addcmul_(rates[step, ..., 0], vb, value=-1)
        done = step + 1
        if done in loop.evaluations or done == loop.n_steps:
            yield [
                Snapshot(
                    done, epoch, batch + 1, dict(zip(NAMES, (w[m].clone(), b[m].clone()), strict=True)),
                    dict(zip(NAMES, (vw[m].clone(), vb[m].clone()), strict=True)),
                    {"task": task[m].clone()} | ({} if h.penalty is None else {h.penalty: penalty[m].clone()}),
                )
                for m, h in enumerate(heads)
            ]  # fmt: skip
            task.zero_()
            penalty.zero_()


def _near(table: Tensor, n_heads: int, n_items: int) -> Iterator[slice]:
    """Heads whose batches stay in a core's cache until they are used for the second time; on a device all of them."""
    n_bytes = n_items * table.shape[1] * table.element_size()
    most = n_heads if table.device.type != "cpu" else max(1, CACHE_BYTES // n_bytes)
    return (slice(at, at + most) for at in range(0, n_heads, most))


def _squares(tensors: Tensor) -> Tensor:
    """Sum of squares of each: (M, ., .) -> (M, 1, 1)."""
    norms: Tensor = torch.linalg.vector_norm(tensors.flatten(1), dim=1)
    return norms.square().view(-1, 1, 1)


def _rates(loop: Loop, heads: Sequence[Head]) -> Tensor:
    """(T, M, 1, 1) learning rate of every head at every step."""
    warmups = {h.recipe.optimizer.warmup_frac for h in heads}
    curves = {w: [loop.phase.rate(step, loop.n_steps, w) for step in range(loop.n_steps)] for w in warmups}
    curve_of = np.array([curves[h.recipe.optimizer.warmup_frac] for h in heads])
    rates = curve_of.T * [h.recipe.optimizer.lr_head for h in heads]
    return torch.from_numpy(rates.astype(np.float32))[..., None, None]


def _order(n: int, seed: int, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Places of the training items in an epoch, as the loop draws them."""
    return np.random.default_rng((seed, epoch, 2)).permutation(np.arange(n))


class _Features:
    """Features of the training items in every look, one table: look after look, item after item."""

    def __init__(self, kept: Kept | None) -> None:
        self._kept = kept
        self._first: dict[int | None, int] = {}
        self.table = torch.empty(0)

    def rows(self, loop: Loop, head: Head, epoch: int) -> Tensor:
        """Where the look that a head has in an epoch begins."""
        view = loop.setting.task.view_of(head.seed, epoch, head.recipe.data)
        if view not in self._first:
            prefix = None if self._kept is None else self._kept.filled(view, loop.bench.train)
            if prefix is None:
                raise _Gone
            self._first[view] = len(self.table)
            read = prefix.read(loop.bench.train).float()
            self.table = torch.cat([self.table.to(read), read]) if len(self.table) else read
        return torch.tensor(self._first[view])
