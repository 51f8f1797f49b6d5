"""What the ranking decides: the source that leads, and those that are not worth a trial."""

from typing import Any

import pytest

from domain.catalogue import catalogue
from domain.default_space import anchors, at_defaults, job_space
from domain.job import Budget, JobSpec, Objective, ResolvedSource
from domain.screening import KEPT, screened
from domain.space import Choice

NAMES = ("mobilenet_v2", "resnet18", "resnet50", "alexnet")


def a_spec(*names: str, space: dict[str, Any] | None = None, **changes: Any) -> JobSpec:
    sources = tuple(ResolvedSource(ref=f"torchvision:{n}", backbone=n, kind="torchvision") for n in names or NAMES)
    found = job_space("classification", sources, catalogue(), n_train=300, has_teacher=False, overrides=space)
    spec = JobSpec(
        task="classification", sources=sources, space=found, chosen=tuple(space or ()), budget=Budget(trials=20),
        objectives=(Objective(name="accuracy"),), n_folds=1,
    )  # fmt: skip
    return spec.model_copy(update=changes)


def an_estimate(*probes: tuple[str, float, float], n_items: int = 400, s: float = 10.0) -> dict[str, Any]:
    """(network, accuracy of its linear probe, another score), best-ranked first."""
    ranking = [
        {"rank": n, "source": f"torchvision:{name}", "n_items": n_items, "scores": {"ridge": ridge, "logme": other}}
        for n, (name, ridge, other) in enumerate(probes, 1)
    ]
    sources = [{"source": e["source"], "s_per_trial": s} for e in ranking]
    return {"ranking": ranking, "ranked_by": ["logme", "ridge"], "sources": sources, "s_per_trial": s}


RANKED = (("resnet50", 0.90, 1.2), ("mobilenet_v2", 0.88, 1.1), ("resnet18", 0.86, 1.0), ("alexnet", 0.60, 0.2))


def refs(*names: str) -> list[str]:
    return [f"torchvision:{name}" for name in names]


def options(spec: JobSpec) -> list[str]:
    (found,) = (d.range for d in spec.space.dimensions if d.path == "source")
    assert isinstance(found, Choice)
    assert found.default == found.options[0]
    return [str(o) for o in found.options]


def test_the_best_ranked_source_leads_and_the_hopeless_one_is_left_out() -> None:
    spec, told = screened(a_spec(), an_estimate(*RANKED))
    assert [s.ref for s in spec.sources] == refs("resnet50", "mobilenet_v2", "resnet18", "alexnet")
    assert options(spec) == refs("resnet50", "mobilenet_v2", "resnet18")
    assert {values["source"] for _, values in anchors(spec)} == set(refs("resnet50"))
    assert "torchvision:alexnet is left out: a linear probe on it gets 60% right" in told[1]
    assert len(told) == 2


def test_behind_by_less_than_the_error_or_ahead_in_one_score_is_not_hopeless() -> None:
    # Two standard errors of 0.90 against 0.86 on 400 items: 2 sqrt(0.09 / 400 + 0.1204 / 400) = 0.0459.
    close = (*RANKED[:2], ("resnet18", 0.86, 1.0), ("alexnet", 0.853, 0.2))
    assert len(options(screened(a_spec(), an_estimate(*close))[0])) == 3
    assert len(options(screened(a_spec(), an_estimate(*close, n_items=300))[0])) == 4
    ahead = (*RANKED[:3], ("alexnet", 0.6, 1.3))
    assert len(options(screened(a_spec(), an_estimate(*ahead))[0])) == 4


def test_the_best_few_always_stay() -> None:
    worse = [(name, 0.9 - 0.2 * n, 1.0 - n) for n, name in enumerate(NAMES)]
    assert options(screened(a_spec(), an_estimate(*worse))[0]) == refs(*NAMES[:KEPT])


@pytest.mark.parametrize(
    "changes", [{"screen": False}, {"space": {"source": refs("mobilenet_v2", "alexnet")}}]
)  # fmt: skip
def test_what_the_job_chose_stays(changes: dict[str, Any]) -> None:
    spec = a_spec(**changes)
    assert screened(spec, an_estimate(*RANKED)) == (spec, [])


def test_one_source_or_no_ranking_changes_nothing() -> None:
    alone = a_spec("resnet18")
    assert screened(alone, an_estimate(RANKED[2])) == (alone, [])
    assert screened(a_spec(), {"s_per_trial": 1.0}) == (a_spec(), [])


def test_a_source_that_the_time_cannot_pay_for_does_not_lead() -> None:
    estimate = an_estimate(*RANKED)
    estimate["sources"][0]["s_per_trial"] = 80.0
    affordable = a_spec(budget=Budget(wall_s=640.0))
    assert screened(affordable, estimate)[0].sources[0].ref == "torchvision:resnet50"
    spec, told = screened(a_spec(budget=Budget(wall_s=600.0)), estimate)
    assert spec.sources[0].ref == "torchvision:mobilenet_v2"
    assert told == [t for t in told if "left out" in t], "it led before: nothing to tell of it"
    assert options(spec)[:2] == refs("mobilenet_v2", "resnet50")
    poor = screened(a_spec(budget=Budget(wall_s=8.0)), estimate)[0]
    assert poor.sources[0].ref == "torchvision:mobilenet_v2", "nothing is affordable: the faster one"


def test_what_is_not_ranked_stays_behind_the_ranked() -> None:
    scratch = ResolvedSource(ref="scratch:resnet18", backbone="resnet18", kind="scratch")
    base = a_spec("mobilenet_v2", "resnet50")
    spec = base.model_copy(update={"sources": (scratch, *base.sources)})
    space = job_space("classification", spec.sources, catalogue(), n_train=300, has_teacher=False)
    spec = spec.model_copy(update={"space": space})
    found, _ = screened(spec, an_estimate(*RANKED[:2]))
    assert [s.ref for s in found.sources] == [*refs("resnet50", "mobilenet_v2"), "scratch:resnet18"]
    assert "optimizer.inner_ratio" in at_defaults(found, found.sources[0].ref)
