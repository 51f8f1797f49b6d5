"""Who trains, who chooses, who judges: stratified, near-duplicates on one side, decided by content alone.

The order of items is that of a keyed hash of their ids, so the same pictures get the same splits whatever they are
called and in whatever order or archive they arrive.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain.dataset import N_FOLDS, Split
from domain.errors import Invalid

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST
_MADE = (TRAIN, TEST, VAL)  # who is served first when a class is too small for all
_JUDGES = (None, TRAIN, VAL, TEST)  # a later one must not see its like in an earlier one


class Shares(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    train: Annotated[float, Field(gt=0, lt=1)] = 0.7
    val: Annotated[float, Field(gt=0, lt=1)] = 0.15
    test: Annotated[float, Field(gt=0, lt=1)] = 0.15

    @model_validator(mode="after")
    def check(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError("the shares of train, val and test must sum to 1")
        return self


class SplitOptions(BaseModel):
    """How to divide what the upload does not divide itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Shares = Shares()
    n_train_per_class: Annotated[int, Field(ge=1)] | None = None  # the rest of a class goes to what is made of it
    n_labelled_per_class: Annotated[int, Field(ge=2)] | None = None  # train + val; all else is test
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.n_train_per_class and self.n_labelled_per_class:
            raise ValueError("give n_train_per_class or n_labelled_per_class, not both")
        return self


def read_options(options: dict[str, object]) -> SplitOptions:
    try:
        return SplitOptions.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise Invalid("bad_options", f"dataset options: {where + ': ' if where else ''}{first['msg']}") from None


class Entry(NamedTuple):
    """One item to place. Entries of one cluster stay together; `split` is what the upload says, if anything."""

    id: str
    label: int
    cluster: int
    split: Split | None


class Placed(NamedTuple):
    splits: list[Split | None]  # None: left out, over the asked number of training items
    folds: list[int]
    source: Literal["given", "made", "partly"]


def place(entries: Sequence[Entry], options: SplitOptions) -> Placed:
    """Splits and folds of all entries. Unmarked entries count as train, out of which missing splits are cut; those
    that look like a marked one go where it goes."""
    given = {entry.split for entry in entries}
    marked = {e.cluster: e.split for e in sorted(entries, key=lambda e: _JUDGES.index(e.split)) if e.split}
    wanted = [split for split in _MADE if split is TRAIN or split not in given]
    if options.n_labelled_per_class:
        wanted = list(_MADE)  # what is given as test stays test
    splits = [entry.split or marked.get(entry.cluster, TRAIN) for entry in entries]
    pool = [i for i, split in enumerate(splits) if split is TRAIN or (options.n_labelled_per_class and split is VAL)]
    chosen: dict[int, Split | None] = {}
    if len(wanted) > 1 or options.n_train_per_class:
        chosen = _divide(entries, pool, wanted, options)
    result = [chosen.get(i, split) for i, split in enumerate(splits)]
    source: Literal["given", "made", "partly"] = "partly"
    if not given & {TRAIN, VAL, TEST}:
        source = "made"
    elif len(wanted) == 1:
        source = "given"
    return Placed(result, _folds(entries, result, options.seed), source)


def _divide(
    entries: Sequence[Entry], pool: Sequence[int], wanted: Sequence[Split], options: SplitOptions
) -> dict[int, Split | None]:
    chosen: dict[int, Split | None] = {}
    debts: dict[Split, float] = dict.fromkeys(wanted, 0.0)
    for groups in _by_class(entries, pool, f"split:{options.seed}").values():
        n = sum(len(group) for group in groups)
        quota: dict[Split | None, int] = dict(_quota(n, wanted, options, debts).items())
        if (surplus := n - sum(quota.values())) > 0:
            quota[None] = surplus
        # Clusters first, each where most room is left; single items then fill what remains exactly.
        for group in sorted(groups, key=len, reverse=True):
            if len(group) > 1:
                target = max(quota, key=lambda split: quota[split])
            else:
                target = next((split for split in (TEST, VAL, TRAIN, None) if quota.get(split, 0) > 0), TRAIN)
            quota[target] -= len(group)
            chosen |= dict.fromkeys(group, target)
    return chosen


def _by_class(entries: Sequence[Entry], pool: Sequence[int], salt: str) -> dict[int, list[list[int]]]:
    """Clusters of every class in hash order. A cluster across classes counts where its first member belongs."""
    keys = {i: hashlib.sha256(f"{salt}:{entries[i].id}".encode()).digest() for i in pool}
    clusters: dict[int, list[int]] = defaultdict(list)
    for i in sorted(pool, key=lambda i: (keys[i], entries[i].label)):
        clusters[entries[i].cluster].append(i)
    classes: dict[int, list[list[int]]] = defaultdict(list)
    for group in clusters.values():
        classes[entries[group[0]].label].append(group)
    return dict(sorted(classes.items()))


def _quota(n: int, wanted: Sequence[Split], options: SplitOptions, debts: dict[Split, float]) -> dict[Split, int]:
    """How many of a class's n items each split gets."""
    if k := options.n_labelled_per_class:
        k = min(k, n, max(2, n - 1))
        n_val = min(k - 1, max(1, round(0.3 * k)))
        return {TRAIN: k - n_val, VAL: n_val, TEST: n - k}
    weights = {split: getattr(options.split, split.value) for split in wanted}
    if options.n_train_per_class:
        k = min(options.n_train_per_class, max(1, n - len(wanted) + 1))
        rest = {split: weight for split, weight in weights.items() if split is not TRAIN}
        return {TRAIN: k} | (_apportion(n - k, rest, debts) if rest else {})
    return _apportion(n, weights, debts)


def _apportion(n: int, weights: dict[Split, float], debts: dict[Split, float]) -> dict[Split, int]:
    """Largest remainders, what rounding took from a split being owed to it by the next class; while n allows,
    nobody gets nothing."""
    total = sum(weights.values())
    exact = {split: n * weight / total for split, weight in weights.items()}
    counts = {split: int(value) for split, value in exact.items()}
    for _ in range(n - sum(counts.values())):
        counts[max(counts, key=lambda split: exact[split] - counts[split] + debts[split])] += 1
    first, *others = weights
    for split in [first, *sorted(others, key=lambda split: -debts[split])][:n]:
        if counts[split] == 0:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[split] += 1
    for split, value in exact.items():
        debts[split] += value - counts[split]
    return counts


def _folds(entries: Sequence[Entry], splits: Sequence[Split | None], seed: int) -> list[int]:
    """Folds of train + val: each cluster where its class has the fewest so far, in a division into K for every K.

    60 numbers leave every combination of remainders by 3, 4 and 5, so that one division does not bind another: the
    number with the least load, summed over the divisions, is the best in each of them.
    """
    folds = [-1] * len(entries)
    total = np.zeros(N_FOLDS, np.int64)
    pool = [i for i, split in enumerate(splits) if split in (TRAIN, VAL)]
    for groups in _by_class(entries, pool, f"fold:{seed}").values():
        own = np.zeros(N_FOLDS, np.int64)
        for group in sorted(groups, key=len, reverse=True):
            fold = int(np.lexsort((total, own))[0])  # of equals the first
            for k in range(2, 6):
                own[fold % k :: k] += len(group)
                total[fold % k :: k] += len(group)
            for i in group:
                folds[i] = fold
    return folds
