"""What every score promises: no order of items, good features above bad ones; and the ranking of candidates."""

import inspect

import numpy as np
import pytest

from domain.errors import Invalid
from transfer import scores
from transfer.ranking import Candidate, rank


def candidate(gap: float, seed: int = 0, width: int = 12) -> Candidate:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 120)
    features = gap * rng.normal(size=(4, width))[labels] + rng.normal(size=(120, width))
    logits = gap * 2 * rng.normal(size=(4, 6))[labels] + rng.normal(size=(120, 6))
    theta = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Candidate(features, labels, theta)


@pytest.mark.parametrize("name", scores.names())
def test_says_what_it_must(name: str) -> None:
    module = scores.load(name)
    assert list(inspect.signature(module.score).parameters) == ["features", "labels", "source_probabilities"]
    assert (module.__doc__ or "").strip().splitlines()[-1]
    assert "Cost:" in (module.__doc__ or "")
    assert set(scores.needs(name)) <= {"source_head"}


@pytest.mark.parametrize("name", scores.names())
def test_the_order_of_items_and_the_names_of_labels_change_nothing(name: str) -> None:
    features, labels, theta = candidate(0.7)
    value = scores.load(name).score(features, labels, theta)
    order = np.random.default_rng(1).permutation(len(labels))
    renamed = np.array([10, 20, 31, 45])[labels]
    assert scores.load(name).score(features[order], renamed[order], theta[order]) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("name", scores.names())
def test_good_features_score_above_bad_ones(name: str) -> None:
    values = [scores.load(name).score(*candidate(gap)) for gap in (0.0, 0.5, 2.0)]
    assert values == sorted(values)
    assert values[0] < values[2]


def test_an_unknown_score_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(Invalid, match="leep"):
        scores.load("nonsense")


def test_the_ranking_puts_the_better_source_first() -> None:
    found = rank({"bad": candidate(0.0), "good": candidate(2.0), "fair": candidate(0.6)})
    assert found.order == ("good", "fair", "bad")
    assert found.mean_rank == {"good": 1.0, "fair": 2.0, "bad": 3.0}
    assert found.counted == scores.names()
    again = rank({"fair": candidate(0.6), "good": candidate(2.0), "bad": candidate(0.0)})
    assert again.order == found.order
    assert again.mean_rank == found.mean_rank


def test_a_score_that_one_candidate_cannot_have_is_shown_but_not_counted() -> None:
    headless = candidate(2.0)._replace(source_probabilities=None)
    found = rank({"headless": headless, "other": candidate(0.6)})
    assert "leep" not in found.counted
    assert "leep" in found.scores["other"]
    assert "leep" not in found.scores["headless"]
    assert found.order == ("headless", "other")


def test_a_further_vote_counts_where_all_candidates_have_it() -> None:
    one = candidate(1.0)
    found = rank({"a": one, "b": one}, ("knn",), {"a": {"elsewhere": 0.5}, "b": {"elsewhere": 0.7}})
    assert (found.order, found.counted) == (("b", "a"), ("knn", "elsewhere"))
    assert found.mean_rank == {"b": 1.25, "a": 1.75}
    assert found.scores["b"]["elsewhere"] == 0.7
    some = rank({"a": one, "b": one}, ("knn",), {"b": {"elsewhere": 0.7}})
    assert (some.order, some.counted) == (("a", "b"), ("knn",))


def test_equals_share_their_places_and_stand_by_name() -> None:
    one = candidate(1.0)
    found = rank({"b": one, "a": one, "c": candidate(0.0)}, ("knn", "logme"))
    assert found.mean_rank == {"b": 1.5, "a": 1.5, "c": 3.0}
    assert found.order == ("a", "b", "c")
    assert rank({}).order == ()


def test_features_must_fit_the_labels_and_be_finite() -> None:
    features, labels, _ = candidate(1.0)
    with pytest.raises(ValueError, match="rows"):
        rank({"a": Candidate(features[:5], labels)})
    features[3, 2] = np.nan
    with pytest.raises(ValueError, match="finite"):
        rank({"a": Candidate(features, labels)})
