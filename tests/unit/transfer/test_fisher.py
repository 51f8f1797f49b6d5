"""Fisher information: a linear softmax in closed form, both estimates, every kind of layer, one item at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from models.build import build
from transfer.fisher import MOST_CLASSES, ItemGradients, choose, information, n_items, scaled


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def linear(n_classes: int = 4) -> nn.Linear:
    net = nn.Linear(3, n_classes).requires_grad_(False)
    with torch.no_grad():
        net.weight.copy_(torch.randn(n_classes, 3, generator=torch.Generator().manual_seed(1)))
        net.bias.zero_()
    return net


ITEMS = torch.randn(300, 3, generator=torch.Generator().manual_seed(2))


def in_closed_form(net: nn.Linear, items: torch.Tensor) -> torch.Tensor:
    """F_{c,d} = mean_i p_c (1 - p_c) x_d^2."""
    p = net(items).softmax(1)
    return torch.einsum("ic,id->cd", p * (1 - p), items**2) / len(items)


def test_a_linear_softmax_is_known() -> None:
    net = linear()
    found = information(net, ["weight", "bias"], ITEMS.split(64), estimate="exact", draws=draws())
    torch.testing.assert_close(found["weight"], in_closed_form(net, ITEMS), rtol=1e-5, atol=1e-7)
    p = net(ITEMS).softmax(1)
    torch.testing.assert_close(found["bias"], (p * (1 - p)).mean(0), rtol=1e-5, atol=1e-7)


def test_the_sampled_estimate_is_right_on_average() -> None:
    net = linear()
    many = ITEMS.repeat(40, 1)
    found = information(net, ["weight"], many.split(500), estimate="sampled", draws=draws())["weight"]
    torch.testing.assert_close(found, in_closed_form(net, ITEMS), rtol=0.08, atol=0.005)
    with_labels = information(net, ["weight"], ITEMS.split(64), estimate="sampled", draws=draws(3))["weight"]
    again = information(net, ["weight"], ITEMS.split(10), estimate="sampled", draws=draws(3))["weight"]
    torch.testing.assert_close(with_labels, again)  # however the items are cut


def test_it_is_not_the_square_of_a_mean() -> None:
    net = linear()
    found = information(net, ["weight"], [ITEMS], estimate="exact", draws=draws())["weight"]
    net.requires_grad_(True)
    logs, p = net(ITEMS).log_softmax(1), net(ITEMS).softmax(1).detach()
    means = [torch.autograd.grad((p[:, c] * logs[:, c]).mean(), net.weight, retain_graph=True)[0] for c in range(4)]
    assert sum(m.square() for m in means).mean() < 0.3 * found.mean()


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_vit", "tiny_convnext", "tiny_efficientnet", "tiny_smallnet"])
def test_per_item_gradients_of_every_family(backbone: str) -> None:
    """Against plain autograd, one item after another; torch has no batched rule for some of their layers."""
    net = build(backbone, n_classes=3, seed=0).eval()
    names = [n for n, _ in net.named_parameters() if not n.startswith("head")]
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 0, 1])
    weights = {n: p.detach() for n, p in net.named_parameters() if n in names}
    found = ItemGradients(net, weights)(inputs, labels)
    own = dict(net.named_parameters())
    for i in range(3):
        log = net(inputs[i : i + 1]).log_softmax(1)[0, labels[i]]
        for name, gradient in zip(names, torch.autograd.grad(log, [own[n] for n in names]), strict=True):
            torch.testing.assert_close(found[name][i], gradient, rtol=1e-3, atol=1e-5)


class Awkward(nn.Module):
    """A layer that no batch of gradients goes through: it looks at its values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * (1.0 if float(x.detach().abs().sum()) >= 0 else 2.0)


def test_layers_that_cannot_be_batched_are_taken_one_by_one() -> None:
    net = Awkward()
    weights = {"inner.weight": net.inner.weight}
    gradients = ItemGradients(net, weights)
    labels = torch.zeros(5, dtype=torch.int64)
    found = gradients(ITEMS[:5], labels)["inner.weight"]
    expected = ItemGradients(net.inner, {"weight": net.inner.weight})(ITEMS[:5], labels)["weight"]
    torch.testing.assert_close(found, expected)


def test_what_is_held_at_once_is_bounded_and_somebody_is_asked_between() -> None:
    """Gradients of 3 * 2^17 weights: two items at a time."""
    net = linear(1 << 17)
    asked: list[int] = []
    information(net, ["weight"], [ITEMS[:5]], estimate="sampled", draws=draws(), between=lambda: asked.append(1))
    assert len(asked) == 3


def test_classes_and_their_shares() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    classes, shares = choose(p, "exact", draws())
    assert classes.tolist()[0] == [0, 1, 2]
    torch.testing.assert_close(shares.sum(1), torch.ones(2))
    drawn = torch.cat([choose(p, "sampled", draws(s))[0] for s in range(300)], 1)
    assert (drawn[1] == 2).all()
    assert abs((drawn[0] == 0).float().mean().item() - 0.7) < 0.1
    many = torch.softmax(torch.randn(2, 200), 1)
    classes, shares = choose(many, "exact", draws())
    assert classes.shape == (2, MOST_CLASSES)
    assert (shares >= many.median()).all()


def test_the_mean_over_all_weights_is_one() -> None:
    found = scaled({"a": torch.rand(3, 4) * 1e-9, "b": torch.rand(5) * 1e-7})
    assert torch.cat([f.flatten() for f in found.values()]).mean().item() == pytest.approx(1, rel=1e-5)
    assert scaled({"a": torch.zeros(3)})["a"].tolist() == [1, 1, 1]


def test_items_are_fewer_where_there_are_many_classes() -> None:
    assert n_items("sampled", 1000) == 256
    assert [n_items("exact", n) for n in (2, 16, 32, 64, 1000)] == [256, 256, 128, 64, 64]
