"""What mattered, in a study where we know it."""

import numpy as np
import pytest

from domain.space import Choice, Condition, Dimension, FloatRange, Space
from domain.states import TrialState
from search.importance import MIN_TRIALS
from search.study import Past, Search


def study(n: int, direction: str) -> Search:
    """`a` decides, `b` adds a tenth, `c` and `d` do nothing; `e` is there for half of the trials."""
    names = [Dimension(path=p, range=FloatRange(low=0.0, high=1.0, default=0.5)) for p in "abcd"]
    kind = Dimension(path="kind", range=Choice(options=("x", "y"), default="x"))
    y = Condition(path="kind", values=("y",))
    inner = Dimension(path="kind.y.e", range=FloatRange(low=0.0, high=1.0, default=0.5), when=(y,))
    space = Space(dimensions=(*names, kind, inner))
    search = Search(space, direction=direction, sampler="random", pruner="none", seed=0)  # type: ignore[arg-type]
    rng, sign = np.random.default_rng(1), 1 if direction == "maximize" else -1
    for number in range(n):
        a, b, c, d, e = rng.random(5).tolist()
        values = {"a": a, "b": b, "c": c, "d": d, "kind": "y" if number % 2 else "x"}
        if number % 2:
            values["kind.y.e"] = e
        search.learn([Past(number, TrialState.COMPLETE, values, sign * (a + b / 10))])
    return search


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("n", [MIN_TRIALS, 200])
def test_what_decides_comes_first(direction: str, n: int) -> None:
    found = study(n, direction).importance()
    assert next(iter(found)) == "a"
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_with_many_trials_what_does_nothing_is_nearly_nothing() -> None:
    found = study(400, "maximize").importance()
    assert found["a"] > 0.6
    assert max(found.get(path, 0.0) for path in ("c", "d", "kind", "kind.y.e")) < 0.15


def test_too_few_trials_say_nothing() -> None:
    assert study(MIN_TRIALS - 1, "maximize").importance() == {}
