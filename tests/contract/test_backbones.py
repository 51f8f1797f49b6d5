"""Every registered backbone: shapes, stages, taps, gradients; torchvision's weights give torchvision's numbers."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model, get_weight
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.vision_transformer import VisionTransformer

from models.build import build, members
from models.facts import facts_of
from models.network import HEAD, Network, seeded
from models.weights import rename, start_from

MEMBERS = members()
PUBLIC = [name for name, entry in MEMBERS.items() if entry.variant.public]
MINIATURES = [name for name, entry in MEMBERS.items() if not entry.variant.public]
PUBLISHED = [name for name in PUBLIC if MEMBERS[name].variant.weights]


def pixels(n: int, side: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def lived_in(model: nn.Module) -> nn.Module:
    """Batch-norm statistics and zero-initialised weights as training would leave them."""
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1, generator=draw)
                module.running_var.uniform_(0.5, 1.5, generator=draw)
            for name, weight in module.named_parameters(recurse=False):
                if weight.dim() == 1 or name in ("layer_scale", "class_token") or isinstance(module, nn.Linear):
                    weight.add_(torch.randn(weight.shape, generator=draw), alpha=0.05)
    return model.eval()


def test_every_family_has_a_public_member_and_a_miniature() -> None:
    families = {entry.family for entry in MEMBERS.values()}
    assert {MEMBERS[name].family for name in PUBLIC} == families
    assert {MEMBERS[name].family for name in MINIATURES} == families


def test_the_backbones_of_the_service() -> None:
    assert set(PUBLIC) == {
        "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v2_w035", "mobilenet_v3_small",
        "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny", "vit_b_16", "smallnet",
    }  # fmt: skip


@pytest.mark.parametrize("name", list(MEMBERS))
def test_shapes_at_the_smallest_and_the_largest_resolution(name: str) -> None:
    entry = MEMBERS[name]
    facts = facts_of(entry)
    with torch.device("meta"):
        network = build_on_meta(name)
    for side in {entry.variant.min_resolution, *entry.variant.resolutions[:1], *entry.variant.resolutions[-1:]}:
        x = torch.empty(2, 3, side, side, device="meta")
        logits, maps = network.eval().forward_with_taps(x)
        assert logits.shape == (2, 7)
        assert network.features(x).shape == (2, facts.feature_dim)
        assert tuple(maps) == facts.taps
        assert all(tap.dim() == 4 and tap.shape[0] == 2 for tap in maps.values())
        sides = [tap.shape[2] for tap in maps.values()]
        assert sides == sorted(sides, reverse=True)


def build_on_meta(name: str) -> Network:
    entry = MEMBERS[name]
    anatomy = entry.anatomy()
    return Network(
        name, anatomy.stages, nn.Linear(anatomy.feature_dim, 7), feature_dim=anatomy.feature_dim, taps=anatomy.taps
    )


@pytest.mark.parametrize("name", list(MEMBERS))
def test_stages_hold_every_weight_once(name: str) -> None:
    with torch.device("meta"):
        network = build_on_meta(name)
    held = [weight for stage in network.stages.values() for weight in stage.parameters()]
    assert len({id(weight) for weight in held}) == len(held)
    assert {id(w) for w in held} | {id(w) for w in network.head.parameters()} == {id(w) for w in network.parameters()}
    assert {network.stage_of(weight) for weight in network.state_dict()} == {*network.stage_names, HEAD}


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_is_torchvisions_without_its_classifier(name: str) -> None:
    facts = facts_of(MEMBERS[name])
    whole = get_weight(MEMBERS[name].variant.weights).meta["num_params"]
    assert facts.n_weights == whole - 1000 * (facts.feature_dim + 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_names_are_all_known(name: str) -> None:
    with torch.device("meta"):
        theirs = get_model(name, weights=None).state_dict()
        ours = build_on_meta(name).state_dict()
    backbone, head = rename(theirs, MEMBERS[name])
    wanted = {key: tensor.shape for key, tensor in ours.items() if not key.startswith(f"{HEAD}.")}
    assert {key: tensor.shape for key, tensor in backbone.items()} == wanted
    assert set(head) == {"head.weight", "head.bias"}


def torchvisions(name: str) -> nn.Module:
    """torchvision's own network of the same size: by name, or assembled for the miniatures."""
    settings = MEMBERS[name].variant.settings
    if name == "tiny_vit":
        return VisionTransformer(**settings)
    if name == "tiny_convnext":
        return ConvNeXt([CNBlockConfig(*row) for row in settings["blocks"]])
    if name == "tiny_efficientnet":
        blocks = [MBConvConfig(*row) for row in settings["blocks"]]
        return EfficientNet(blocks, dropout=0.2, last_channel=settings["last_channel"])
    model: nn.Module = get_model(name, weights=None)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "tiny_efficientnet",
        "tiny_convnext",
        "tiny_vit",
    ],
)
def test_torchvisions_weights_give_torchvisions_logits(name: str) -> None:
    with seeded(3):
        model = torchvisions(name)
    theirs = lived_in(model)
    ours = build(name, n_classes=1000, seed=1)
    start_from(ours, theirs.state_dict(), with_head=True)
    x = pixels(2, 32)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MINIATURES)
def test_gradient_reaches_the_first_stage(name: str) -> None:
    network = build(name, n_classes=3).train()
    functional.cross_entropy(network(pixels(4, 32)), torch.tensor([0, 1, 2, 0])).backward()
    for stage in network.stages.values():
        assert any(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in stage.parameters())
    assert all(weight.grad is not None for weight in network.parameters())


@pytest.mark.parametrize("name", MINIATURES)
def test_prefix_and_suffix_are_forward_bit_for_bit(name: str) -> None:
    network = build(name, n_classes=3, head="mlp")
    lived_in(network)
    x = pixels(3, 32)
    with torch.no_grad():
        whole = network(x)
        for depth in range(network.n_stages + 1):
            assert torch.equal(network.suffix(network.prefix(x, depth), depth), whole)
        assert torch.equal(network.head(network.features(x)), whole)


@pytest.mark.parametrize("name", MINIATURES)
def test_taps_are_the_outputs_of_their_stages(name: str) -> None:
    network = build(name, n_classes=3).train()
    twin = copy.deepcopy(network)
    x = pixels(4, 32)
    logits, maps = network.forward_with_taps(x)
    # A later stage must not write into an earlier stage's output: compare with copies taken stage by stage.
    activation = x
    for stage in twin.stage_names:
        activation = twin.run(activation.clone(), upto=stage, start_at=stage)
        if stage in maps:
            values = activation[:, 1:].transpose(1, 2) if activation.dim() == 3 else activation.flatten(2)
            assert torch.equal(maps[stage].flatten(2), values)
    torch.stack([tap.square().mean() for tap in maps.values()]).sum().backward()
    only = network.forward_with_taps(x, taps=network.taps[-1:])[1]
    assert tuple(only) == network.taps[-1:]
    assert logits.requires_grad


@pytest.mark.parametrize("name", MINIATURES)
def test_training_draws_nothing_at_random(name: str) -> None:
    network = build(name, n_classes=3).train()
    before = torch.get_rng_state()
    network(pixels(4, 32)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", MINIATURES)
def test_same_seed_same_weights_and_the_global_state_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build(name, n_classes=3, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize("name", MINIATURES)
def test_blocks_lie_in_stages_in_order(name: str) -> None:
    network = build(name, n_classes=3)
    depths = [network.stage_names.index(network.stage_of(block)) for block in network.block_names]
    assert depths == sorted(depths)
    assert bool(network.block_names) == ("blocks" in facts_of(MEMBERS[name]).provides)


@pytest.mark.parametrize("name", [name for name in MINIATURES if "double_backward" in facts_of(MEMBERS[name]).provides])
def test_input_gradient_can_be_differentiated_again(name: str) -> None:
    network = build(name, n_classes=3).eval()
    x = pixels(2, 32).requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[:, 0].sum(), x, create_graph=True)
    slope.square().sum().backward()
    first = next(iter(network.stages.values()))
    assert any(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in first.parameters())
