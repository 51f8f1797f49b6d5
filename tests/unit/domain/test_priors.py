"""Recipes for a dataset that no past job is like: what the literature says, inside the job's space."""

from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.default_space import job_space
from domain.history import Meta
from domain.job import Budget, JobSpec, Objective, ResolvedSource, Values
from domain.priors import likeness, priors
from domain.teaching import fixed_trials

SOURCE = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")


def a_spec(space: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    found = job_space("classification", (SOURCE,), catalogue(), n_train=300, has_teacher=False, overrides=space)
    spec = JobSpec(
        task="classification", sources=(SOURCE,), space=found, chosen=tuple(space or ()), budget=Budget(trials=20),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip
    return spec.model_copy(update=changes)


def a_meta(probe: float | None, per_class: float = 60.0, **changes: Any) -> Meta:
    facts = {
        "n_train": int(10 * per_class), "n_classes": 10, "per_class_mean": per_class, "per_class_min": int(per_class),
        "resolution": 224, "probe_accuracy": probe, "chance": 0.1,
    }  # fmt: skip
    return Meta.model_validate(facts | changes)


def effective(values: Values) -> float:
    """The learning rate of the source's weights, as momentum makes it."""
    rate = float(values["optimizer.lr_head"]) * float(values["optimizer.inner_ratio"])
    return rate / (1 - float(values["optimizer.momentum"]))


@pytest.mark.parametrize(
    ("probe", "distance", "expected"),
    [
        # (0.9 - 0.1) / 0.9 = 0.89; 0.7 -> 0.67; 0.5 -> 0.44
        (0.9, None, "similar"), (0.7, None, "middling"), (0.5, None, "dissimilar"), (None, None, None),
        (0.7, 0.5, "similar"), (0.7, 1.5, "dissimilar"), (0.9, 1.5, "middling"), (None, 0.5, "similar"),
    ],
)  # fmt: skip
def test_likeness_by_the_probe_and_the_distance(probe: float | None, distance: float | None, expected: str) -> None:
    assert likeness(a_meta(probe, distance=distance)) == expected


def test_the_more_like_the_source_the_smaller_the_rate_and_the_stronger_the_pull() -> None:
    spec = a_spec(anchors=False)
    similar, middling, dissimilar = (priors(spec, a_meta(probe))[0].values for probe in (0.95, 0.7, 0.4))
    assert effective(similar) < effective(middling) < effective(dissimilar)
    alphas = [float(v["regularizer.l2_sp.alpha"]) for v in (similar, middling, dissimilar)]
    assert alphas == sorted(alphas, reverse=True)
    assert (similar["optimizer.momentum"], dissimilar["optimizer.momentum"]) == (0.0, 0.9)
    heads = [float(v["optimizer.lr_head"]) / (1 - float(v["optimizer.momentum"])) for v in (similar, dissimilar)]
    assert heads[0] == pytest.approx(heads[1]), "the head is new either way"


@pytest.mark.parametrize("probe", [0.95, 0.7, 0.4])
@pytest.mark.parametrize("per_class", [5.0, 60.0, 500.0])
@pytest.mark.parametrize(
    "space",
    [
        {}, {"regularizer": "l2"}, {"optimizer.name": "adamw"}, {"schedule": "lp_ft"},
        {"surgery": ["none", "residual_adapter"], "feature": ["none", "delta"]},
    ],
)  # fmt: skip
def test_every_recipe_is_inside_the_space_legal_new_and_says_why(
    probe: float, per_class: float, space: dict[str, Any]
) -> None:
    spec = a_spec(space)
    found = priors(spec, a_meta(probe, per_class))
    ranges = {d.path: d for d in spec.space.dimensions}
    known = [spec.recipe(values, seed=0) for _, values in fixed_trials(spec, catalogue())]
    assert 1 <= len(found) <= 4
    for start in found:
        for path, value in start.values.items():
            if path != "source":
                assert ranges[path].range.holds(value) if path in ranges else spec.space.fixed[path] == value, path
        assert all(path in start.values for path, d in ranges.items() if d.active(start.values))
        recipe = spec.recipe(start.values, seed=0)
        assert not spec.refusals(recipe, catalogue())
        assert recipe not in known
        assert start.why
        known.append(recipe)


def test_few_items_freeze_deep_and_adapt_many_train_everything_for_longer() -> None:
    spec = a_spec({"surgery": ["none", "residual_adapter"]})
    few = {start.why: start.values for start in priors(spec, a_meta(0.7, 5.0))}
    assert any(
        values["schedule.freeze.depth"] == 3 and values["optimizer.inner_ratio"] == 0.01 for values in few.values()
    )
    assert any(values["surgery"] == "residual_adapter" for values in few.values())
    many = priors(spec, a_meta(0.7, 500.0))[0].values
    default = spec.space.defaults()["steps"]
    assert (many["regularizer"], many["schedule.freeze.depth"], many["steps"]) == ("l2", 0, 2 * int(default))


def test_without_a_look_at_the_features_nothing_is_claimed() -> None:
    assert priors(a_spec(), a_meta(None)) == []
