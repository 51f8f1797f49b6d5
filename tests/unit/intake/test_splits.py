from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.dataset import N_FOLDS, Split
from domain.errors import Invalid
from intake.splits import Entry, Placed, place, read_options

TRAIN, VAL, TEST = Split.TRAIN, Split.VAL, Split.TEST


def entries_of(*sizes: int, split: Split | None = None, offset: int = 0) -> list[Entry]:
    total = 0
    found = []
    for label, size in enumerate(sizes):
        found += [Entry(f"id{offset}-{label}-{k}", label, offset + total + k, split) for k in range(size)]
        total += size
    return found


def counts(entries: Sequence[Entry], placed: Placed, label: int) -> tuple[int, int, int]:
    found = Counter(s for e, s in zip(entries, placed.splits, strict=True) if e.label == label)
    return found[TRAIN], found[VAL], found[TEST]


def test_default_shares() -> None:
    entries = entries_of(100, 20)
    placed = place(entries, read_options({}))
    assert counts(entries, placed, 0) == (70, 15, 15)
    assert counts(entries, placed, 1) == (14, 3, 3)
    assert placed.source == "made"


def test_rounding_is_owed_to_the_next_class() -> None:
    entries = entries_of(*[10] * 20)
    placed = place(entries, read_options({}))
    total = Counter(placed.splits)
    assert (total[TRAIN], total[VAL], total[TEST]) == (140, 30, 30)


def test_two_items_a_class_still_fill_all_splits() -> None:
    entries = entries_of(2, 2)
    placed = place(entries, read_options({}))
    assert sorted(Counter(placed.splits).values()) == [1, 1, 2]
    assert all(counts(entries, placed, label)[0] == 1 for label in range(2))


@pytest.mark.parametrize(("k", "expected"), [(2, (1, 1, 98)), (5, (3, 2, 95)), (10, (7, 3, 90)), (20, (14, 6, 80))])
def test_labelled_per_class(k: int, expected: tuple[int, int, int]) -> None:
    entries = entries_of(100, 100)
    placed = place(entries, read_options({"n_labelled_per_class": k}))
    assert counts(entries, placed, 0) == counts(entries, placed, 1) == expected


def test_labelled_per_class_never_takes_from_a_given_test() -> None:
    entries = (
        entries_of(30, split=TRAIN) + entries_of(10, split=VAL, offset=100) + entries_of(20, split=TEST, offset=200)
    )
    placed = place(entries, read_options({"n_labelled_per_class": 10}))
    assert counts(entries, placed, 0) == (7, 3, 50)
    assert placed.splits[40:] == [TEST] * 20


def test_train_per_class_of_undivided_data() -> None:
    entries = entries_of(100, 50)
    placed = place(entries, read_options({"n_train_per_class": 10}))
    assert counts(entries, placed, 0) == (10, 45, 45)
    assert counts(entries, placed, 1) == (10, 20, 20)


def test_train_per_class_of_divided_data_leaves_the_rest_out() -> None:
    entries = (
        entries_of(30, split=TRAIN) + entries_of(10, split=VAL, offset=100) + entries_of(20, split=TEST, offset=200)
    )
    placed = place(entries, read_options({"n_train_per_class": 5}))
    assert counts(entries, placed, 0) == (5, 10, 20)
    assert placed.splits.count(None) == 25
    assert all(fold == -1 for fold, split in zip(placed.folds, placed.splits, strict=True) if split is None)


def test_given_splits_stay() -> None:
    entries = [*entries_of(9, split=TRAIN), *entries_of(4, split=VAL, offset=50), *entries_of(5, split=TEST, offset=90)]
    placed = place(entries, read_options({}))
    assert placed.splits == [e.split for e in entries]
    assert placed.source == "given"


@pytest.mark.parametrize(("have", "cut"), [(TEST, VAL), (VAL, TEST)])
def test_missing_split_is_cut_out_of_train_alone(have: Split, cut: Split) -> None:
    entries = entries_of(85, split=TRAIN) + entries_of(15, split=have, offset=100)
    placed = place(entries, read_options({}))
    assert placed.source == "partly"
    assert placed.splits[85:] == [have] * 15
    assert Counter(placed.splits[:85]) == {TRAIN: 70, cut: 15}


@pytest.mark.parametrize(
    "options",
    [
        {"split": {"train": 0.5, "val": 0.5, "test": 0.5}}, {"split": {"train": 1.0, "val": 0.0, "test": 0.0}},
        {"n_train_per_class": 0}, {"n_labelled_per_class": 1}, {"seed": -1}, {"colour": "red"},
        {"n_train_per_class": 3, "n_labelled_per_class": 3}, {"split": "half"},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(Invalid, match="bad_options"):
        read_options(options)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 25), min_size=2, max_size=5),
    joins=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99))),
    seed=st.integers(0, 5), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_properties(sizes: list[int], joins: list[tuple[int, int]], seed: int, order: object) -> None:
    entries = entries_of(*sizes)
    for i, j in joins:
        i, j = i % len(entries), j % len(entries)
        low, high = sorted((entries[i].cluster, entries[j].cluster))
        entries = [e._replace(cluster=low) if e.cluster == high else e for e in entries]
    placed = place(entries, read_options({"seed": seed}))

    sides, folds = defaultdict(set), defaultdict(set)
    for entry, split, fold in zip(entries, placed.splits, placed.folds, strict=True):
        sides[entry.cluster].add(split)
        folds[entry.cluster].add(fold)
        assert split is not None
        assert (fold == -1) == (split == TEST)
        assert fold < N_FOLDS
    assert all(len(found) == 1 for found in [*sides.values(), *folds.values()])  # clusters stay together

    shuffled = list(entries)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    again = place(shuffled, read_options({"seed": seed}))
    where = {e.id: (s, f) for e, s, f in zip(entries, placed.splits, placed.folds, strict=True)}
    assert where == {e.id: (s, f) for e, s, f in zip(shuffled, again.splits, again.folds, strict=True)}


@pytest.mark.parametrize("k", [2, 3, 4, 5])
@pytest.mark.parametrize("sizes", [(100, 50), (12,) * 17, (4,) * 5])
def test_folds_are_stratified_and_even_for_every_number_of_them(k: int, sizes: tuple[int, ...]) -> None:
    entries = entries_of(*sizes)
    placed = place(entries, read_options({}))
    inside = [(e.label, f % k) for e, f in zip(entries, placed.folds, strict=True) if f >= 0]
    per_class = Counter(inside)
    for label in range(len(sizes)):
        found = [per_class[label, fold] for fold in range(k)]
        assert max(found) - min(found) <= 1
    totals = Counter(fold for _, fold in inside)
    assert max(totals.values()) - min(totals.values()) <= 1


def test_seeds_differ() -> None:
    entries = entries_of(100, 50)
    assert place(entries, read_options({"seed": 1})).splits != place(entries, read_options({})).splits


def test_an_unmarked_copy_of_a_test_item_does_not_train() -> None:
    entries = [*entries_of(10, 10), *entries_of(4, 4, split=TEST, offset=50)]
    entries[3] = entries[3]._replace(cluster=entries[20].cluster)
    placed = place(entries, read_options({}))
    assert placed.splits[3] == TEST
    assert placed.source == "partly"


def test_the_only_item_left_beside_a_given_test_trains() -> None:
    entries = [*entries_of(8, 1, split=TRAIN), *entries_of(4, 4, split=TEST, offset=50)]
    placed = place(entries, read_options({"n_labelled_per_class": 4}))
    assert placed.splits[8] == TRAIN
