import pytest
import torch
from torch import nn

from domain.errors import Invalid
from models.build import build, member, members
from models.network import Network, as_map, new_head, pool, seeded


@pytest.fixture
def doubling() -> Network:
    """Two stages that double, and a head that sums: the numbers are worked out by hand."""

    class Double(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    head = nn.Linear(3, 1)
    nn.init.ones_(head.weight)
    nn.init.zeros_(head.bias)
    return Network("toy", {"a": Double(), "b": Double()}, head, feature_dim=3, taps=("a", "b"))


def test_depth_counts_stages(doubling: Network) -> None:
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(doubling.prefix(x, 0), x)
    assert torch.equal(doubling.prefix(x, 1), 2 * x)
    assert torch.equal(doubling.prefix(x, 2), torch.full((1, 3), 4.0))  # pooled
    assert doubling(x).item() == 12.0
    assert doubling.suffix(2 * x, 1).item() == 12.0
    assert doubling.suffix(torch.full((1, 3), 4.0), 2).item() == 12.0


def test_a_prefix_may_begin_where_another_ended(doubling: Network) -> None:
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(doubling.prefix(2 * x, 2, begin=1), doubling.prefix(x, 2))
    assert torch.equal(doubling.prefix(torch.full((1, 3), 4.0), 2, begin=2), doubling.prefix(x, 2))


def test_suffix_gives_the_taps_behind_it(doubling: Network) -> None:
    logits, maps = doubling.suffix_with_taps(torch.ones(1, 3, 2, 2), 1)
    assert tuple(maps) == ("b",)
    assert logits.item() == 6.0


@pytest.mark.parametrize("depth", [-1, 3])
def test_depth_outside_the_network_is_refused(doubling: Network, depth: int) -> None:
    with pytest.raises(ValueError, match="2 stages"):
        doubling.prefix(torch.ones(1, 3, 2, 2), depth)
    with pytest.raises(ValueError, match="2 stages"):
        doubling.suffix(torch.ones(1, 3, 2, 2), depth)


def test_unknown_tap_is_refused_with_the_legal_list(doubling: Network) -> None:
    with pytest.raises(Invalid, match=r"no tap c; it has a, b"):
        doubling.forward_with_taps(torch.ones(1, 3, 2, 2), taps=["c"])


def test_stage_of_a_weight() -> None:
    network = build("tiny_resnet", n_classes=2)
    assert network.stage_of("layer2.0.conv1.weight") == "layer2"
    assert network.stage_of("head.bias") == "head"
    with pytest.raises(KeyError):
        network.stage_of("policy.weight")


def test_pool_of_maps_tokens_and_features() -> None:
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert pool(maps).tolist() == [[1.5, 5.5]]
    tokens = torch.arange(10.0).reshape(1, 5, 2)
    assert pool(tokens).tolist() == [[0.0, 1.0]]
    assert pool(torch.ones(1, 4)).tolist() == [[1.0] * 4]


def test_tokens_are_laid_out_row_by_row_without_the_class_token() -> None:
    tokens = torch.arange(10.0).reshape(1, 5, 2)
    assert as_map(tokens).tolist() == [[[[2.0, 4.0], [6.0, 8.0]], [[3.0, 5.0], [7.0, 9.0]]]]


def test_heads() -> None:
    assert [tuple(w.shape) for w in new_head(6, 4, seed=0).parameters()] == [(4, 6), (4,)]
    mlp = [tuple(w.shape) for w in new_head(6, 4, "mlp", seed=0).parameters()]
    assert mlp == [(12, 6), (12,), (4, 12), (4,)]
    assert build("tiny_resnet", n_classes=4, head="mlp").n_classes == 4
    with pytest.raises(Invalid, match="linear, mlp"):
        new_head(6, 4, "deep", seed=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one"):
        new_head(6, 0, seed=0)


def test_one_seed_gives_one_head_whatever_the_backbone_drew() -> None:
    network = build("tiny_resnet", n_classes=4, seed=9)
    assert torch.equal(network.head.weight, new_head(64, 4, seed=9).weight)  # type: ignore[arg-type]


def test_seeded_restores_the_state_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), seeded(1):
        torch.rand(3).reshape(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_backbone_is_refused_with_the_public_names() -> None:
    with pytest.raises(Invalid, match=r"resnet18.*smallnet.*vit_b_16") as caught:
        build("resnet19", n_classes=2)
    assert caught.value.code == "unknown_backbone"
    assert caught.value.facts["legal"] == sorted(name for name in members() if members()[name].variant.public)
    assert not any(name.startswith("tiny") for name in caught.value.facts["legal"])
    assert member("tiny_vit").family == "vit"
