"""Repeats: the best recipes first, every one once before any is a second time."""

from domain.confirming import Repeat, confirmed, wanted
from domain.job import Confirm, Confirmed

CONFIRM = Confirm(top=2, seeds=2)


def test_every_recipe_of_the_top_once_before_any_a_second_time() -> None:
    ranked, repeats, order = [7, 4, 9], [], []
    while due := wanted(CONFIRM, ranked, repeats):
        order.append(due[0])
        repeats.append(Repeat(10 + len(repeats), due[0]))
    assert order == [7, 4, 7, 4]


def test_a_new_recipe_among_the_top_is_confirmed_as_well() -> None:
    repeats = [Repeat(10, 7), Repeat(11, 4), Repeat(12, 7), Repeat(13, 4)]
    assert wanted(CONFIRM, [14, 7, 4], repeats) == [14, 14]


def test_the_mean_is_over_the_first_trial_and_its_repeats() -> None:
    values = {3: 0.5, 5: 0.9, 8: 0.75, 9: 0.25}
    repeats = [Repeat(9, 3), Repeat(8, 3), Repeat(10, 5)]  # 10 has not become COMPLETE
    assert confirmed(values, repeats) == [Confirmed(number=3, values=(0.5, 0.75, 0.25), mean=0.5)]
