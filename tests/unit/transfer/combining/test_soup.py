"""Soups: means of weights, chosen on val."""

import pytest
import torch
from torch import Tensor

from transfer.combining import soup


def network(*values: float, count: int = 3) -> dict[str, Tensor]:
    return {"a.weight": torch.tensor(values), "a.running_var": torch.tensor([1.0]), "a.n": torch.tensor(count)}


def near(target: float):  # type: ignore[no-untyped-def]
    """An objective with one peak: the sum of the weights should be `target`."""
    return lambda weights: -abs(float(weights["a.weight"].sum()) - target)


@pytest.mark.parametrize("kind", ["greedy", "uniform"])
def test_a_soup_of_equal_weights_is_the_same(kind: str) -> None:
    one = {"w": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), "n": torch.tensor(7)}
    found = soup.combine([dict(one) for _ in range(3)], lambda _: 0.5, kind=kind)  # type: ignore[arg-type]
    assert all(torch.equal(found.weights[n], one[n]) for n in one)
    assert found.members == (0, 1, 2)


def test_greedy_takes_what_does_not_make_it_worse_best_first() -> None:
    """Singles: -1, -2, -6. (4 + 7) / 2 = 5.5 is better than 4 alone; with -1 in, 3.33 would be worse."""
    found = soup.combine([network(-1.0), network(4.0), network(7.0)], near(5.0))
    assert found.members == (1, 2)
    assert found.singles == (-6.0, -1.0, -2.0)
    assert found.value == pytest.approx(-0.5)
    assert found.weights["a.weight"].tolist() == [5.5]


def test_greedy_is_never_below_the_best_single_and_uniform_can_be() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        nets = [{"a.weight": 3 * torch.randn(4, generator=draw)} for _ in range(5)]
        found = soup.combine(nets, near(1.0))
        assert found.value >= max(found.singles)
        assert found.value == pytest.approx(near(1.0)(found.weights))
    lost = soup.combine([network(1.0), network(9.0)], near(1.0), kind="uniform")
    assert lost.value < max(lost.singles)
    assert lost.weights["a.weight"].tolist() == [5.0]


def test_whole_numbers_are_the_first_ones_and_precision_stays() -> None:
    found = soup.mean([network(1.0, count=8), network(2.0, count=4)])
    assert found["a.n"].item() == 8
    assert found["a.weight"].dtype == torch.float32
    assert found["a.weight"].item() == 1.5


def test_nothing_and_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        soup.combine([], near(0.0))
    with pytest.raises(ValueError, match="same network"):
        soup.combine([network(1.0), network(1.0, 2.0)], near(0.0))
