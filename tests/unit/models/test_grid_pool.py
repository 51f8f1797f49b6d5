import pytest
import torch
from torch.nn import functional

from models.grid_pool import GridPool, averages


def test_a_map_of_that_size_stays() -> None:
    x = torch.randn(1, 2, 3, 3)
    assert GridPool(3)(x) is x


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (7, 4), (9, 12)])
def test_the_numbers_and_slopes_of_adaptive_average_pooling(height: int, width: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    got, expected = GridPool(3)(x), functional.adaptive_avg_pool2d(x, 3)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    (slope,) = torch.autograd.grad((got * weighting).sum(), x)
    (theirs,) = torch.autograd.grad((expected * weighting).sum(), x)
    torch.testing.assert_close(slope, theirs, rtol=1e-6, atol=1e-6)


def test_cells_overlap_where_sizes_do_not_divide() -> None:
    torch.testing.assert_close(averages(5, 2), torch.tensor([[1.0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]) / 3)
    assert averages(1, 2).tolist() == [[1.0], [1.0]]
