import pytest

from domain.errors import Invalid
from domain.sampler import check_sampler, choose
from domain.space import Choice, Condition, Dimension, FloatRange, Space


def number(path: str, *when: Condition) -> Dimension:
    return Dimension(path=path, range=FloatRange(low=0, high=1, default=0.5), when=when)


METHOD = Dimension(path="method", range=Choice(options=("a", "b"), default="a"))
NUMBERS = Space(dimensions=(number("x"), number("y")))
MIXED = Space(dimensions=(number("x"), METHOD))
CONDITIONAL = Space(dimensions=(METHOD, number("a.x", Condition(path="method", values=("a",)))))


@pytest.mark.parametrize(
    ("space", "n_trials", "n_objectives", "name"),
    [
        (CONDITIONAL, 5, 1, "qmc"),
        (CONDITIONAL, 30, 1, "tpe"),
        (CONDITIONAL, None, 1, "tpe"),
        (MIXED, 60, 1, "tpe"),
        (NUMBERS, 60, 1, "gp"),
        (NUMBERS, 101, 1, "tpe"),
        (NUMBERS, 500, 1, "cmaes"),
        (NUMBERS, None, 1, "tpe"),
        (NUMBERS, 60, 2, "tpe"),
        (NUMBERS, 500, 2, "nsga2"),
    ],
)
def test_the_choice_follows_from_the_space_the_trials_and_the_objectives(
    space: Space, n_trials: int | None, n_objectives: int, name: str
) -> None:
    assert choose(space, n_trials=n_trials, n_objectives=n_objectives)[0] == name


def test_a_condition_that_always_holds_makes_no_branch() -> None:
    space = Space(dimensions=(number("a.x", Condition(path="method", values=("a",))),), fixed={"method": "a"})
    assert choose(space, n_trials=60)[0] == "gp"
    check_sampler("cmaes", space, n_objectives=1)


def test_the_reason_names_what_decided() -> None:
    assert "1 of 2 dimensions" in choose(CONDITIONAL, n_trials=30)[1]
    assert "5 trials" in choose(NUMBERS, n_trials=5)[1]


def test_a_refusal_says_what_to_take_instead() -> None:
    with pytest.raises(Invalid, match="take tpe or nsga2"):
        check_sampler("pshe2", NUMBERS, n_objectives=2)
    with pytest.raises(Invalid, match="take tpe"):
        check_sampler("cmaes", CONDITIONAL, n_objectives=1)
    check_sampler("pshe2", CONDITIONAL, n_objectives=1)
    check_sampler("nsga2", NUMBERS, n_objectives=2)
