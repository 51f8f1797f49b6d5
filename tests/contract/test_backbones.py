"""Every registered backbone: shapes, stages, taps, gradients; torchvision's weights give torchvision's numbers."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model, get_weight
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vgg import VGG, make_layers
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
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet10", "resnet18_w025", "mobilenet_v2",
        "mobilenet_v2_w035", "mobilenet_v2_w050", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0",
        "efficientnet_v2_s", "convnext_tiny", "vgg16_bn", "vgg19_bn", "densenet121", "inception_v3", "alexnet",
        "squeezenet1_1", "cifar_resnet20", "cifar_resnet56", "bit_r50x1", "vit_b_16", "swin_t", "smallnet",
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
        name,
        anatomy.stages,
        nn.Linear(anatomy.feature_dim, 7),
        feature_dim=anatomy.feature_dim,
        taps=anatomy.taps,
        conv_taps=anatomy.conv_taps,
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
    # inception_v3 has a second head: convolutions 768 -> 128 and 5x5 to 768 with batch norm, and a linear layer
    second = 768 * 128 + 2 * 128 + 128 * 768 * 25 + 2 * 768 + 1000 * 769 if name == "inception_v3" else 0
    assert facts.n_weights == whole - second - 1000 * (facts.feature_dim + 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_names_are_all_known(name: str) -> None:
    with torch.device("meta"):
        theirs = torchvisions(name).state_dict()
        ours = build_on_meta(name).state_dict()
    backbone, head = rename(theirs, MEMBERS[name])
    wanted = {key: tensor.shape for key, tensor in ours.items() if not key.startswith(f"{HEAD}.")}
    assert {key: tensor.shape for key, tensor in backbone.items()} == wanted
    loadable = "source_head" in facts_of(MEMBERS[name]).provides
    assert set(head) == ({"head.weight", "head.bias"} if loadable else set())


@pytest.mark.parametrize("name", list(MEMBERS))
def test_own_names_are_left_as_they_are(name: str) -> None:
    with torch.device("meta"):
        own = build_on_meta(name).state_dict()
    backbone, head = rename(own, MEMBERS[name])
    assert {**backbone, **head}.keys() == own.keys()


def torchvisions(name: str) -> nn.Module:
    """torchvision's own network of the same size: by name, or assembled for the miniatures."""
    settings = MEMBERS[name].variant.settings
    if name == "tiny_vit":
        return VisionTransformer(**settings)
    if name == "tiny_convnext":
        return ConvNeXt([CNBlockConfig(*row) for row in settings["blocks"]])
    if name.startswith("tiny_efficientnet"):
        blocks = [FusedMBConvConfig(*row) for row in settings.get("fused", ())]
        blocks += [MBConvConfig(*row) for row in settings["blocks"]]
        return EfficientNet(blocks, dropout=0.2, last_channel=settings["last_channel"])
    if name == "tiny_densenet":
        return DenseNet(**settings)
    if name == "tiny_swin":
        return SwinTransformer(**{key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()})
    if name == "tiny_vgg":
        return small_vgg(settings["layers"], settings["grid"], settings["hidden"])
    options = {}
    if name == "inception_v3":  # as torchvision builds it when it is given the published weights
        options = {"transform_input": True, "init_weights": False}
    model: nn.Module = get_model(name, weights=None, **options)
    return model


def small_vgg(layers: list[int | str], grid: int, hidden: int) -> nn.Module:
    """torchvision's VGG, whose classifier has one size alone, with a smaller one of the same form."""
    with torch.device("meta"):
        model = VGG(nn.Identity())
    model.features = make_layers(layers, batch_norm=True)
    model.avgpool = nn.AdaptiveAvgPool2d(grid)
    last = next(layer for layer in reversed(layers) if isinstance(layer, int))
    widths = {0: (last * grid * grid, hidden), 3: (hidden, hidden), 6: (hidden, 1000)}
    for place, (wide, narrow) in widths.items():
        model.classifier[place] = nn.Linear(wide, narrow)
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
        "efficientnet_v2_s",
        "densenet121",
        "inception_v3",
        "swin_t",
        "tiny_efficientnet",
        "tiny_efficientnet_v2",
        "tiny_convnext",
        "tiny_vgg",
        "tiny_densenet",
        "tiny_swin",
        "tiny_vit",
        "alexnet",
    ],
)
def test_torchvisions_weights_give_torchvisions_logits(name: str) -> None:
    with seeded(3):
        model = torchvisions(name)
    theirs = lived_in(model)
    ours = build(name, n_classes=1000, seed=1)
    start_from(ours, theirs.state_dict(), with_head=True)
    x = pixels(2, max(32, MEMBERS[name].variant.min_resolution))
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_squeezenet_has_torchvisions_features_and_takes_no_head() -> None:
    with seeded(3):
        theirs = lived_in(get_model("squeezenet1_1", weights=None))
    ours = build("squeezenet1_1", n_classes=1000, seed=1).eval()
    start = start_from(ours, theirs.state_dict())
    assert start.head is None
    x = pixels(2, 64)
    with torch.no_grad():
        expected = theirs.features(x).mean((2, 3))
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours.features(x), expected, rtol=1e-5, atol=1e-5)


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
        activation = twin.get_submodule(stage)(activation.clone())
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


ASIDE = {"downsample", "branch_pool"}  # what shortcuts are called


@pytest.mark.parametrize("name", list(MEMBERS))
def test_conv_taps_are_the_last_convolutions_to_run(name: str) -> None:
    with torch.device("meta"):
        network = build_on_meta(name).eval()
    if "transformer" in facts_of(MEMBERS[name]).provides:
        assert network.conv_taps == {}
        return
    ran: dict[str, list[tuple[str, torch.Size]]] = {stage: [] for stage in network.taps}

    def note(path: str) -> Any:
        stage = path.partition(".")[0]
        return lambda _, __, output: ran[stage].append((path, output.shape))

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and ASIDE.isdisjoint(path.split(".")):
            module.register_forward_hook(note(path))
    side = max(MEMBERS[name].variant.min_resolution, MEMBERS[name].variant.resolutions[-1])
    _, maps = network.forward_with_taps(torch.empty(2, 3, side, side, device="meta"))
    assert network.conv_taps == {stage: seen[-1][0] for stage, seen in ran.items()}
    for stage, seen in ran.items():
        shape = seen[-1][1]
        assert shape[0] == 2
        assert maps[stage].shape[2] <= shape[2] <= side
        side = maps[stage].shape[2]


@pytest.mark.parametrize("name", [n for n in MINIATURES if "conv" in facts_of(MEMBERS[n]).provides])
def test_what_a_conv_tap_gives_is_what_the_norm_reads(name: str) -> None:
    network = build(name, n_classes=3).train()
    read: list[Tensor] = []
    at_once: dict[str, Tensor] = {}
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach().clone()))
    for stage, path in network.conv_taps.items():
        conv = network.get_submodule(path)
        conv.register_forward_hook(lambda _, __, output, stage=stage: at_once.update({stage: output.detach().clone()}))
    convs = network.look(pixels(4, 32), convs=True).convs
    assert tuple(convs) == network.taps
    for stage, tap in convs.items():
        assert torch.equal(tap, at_once[stage])  # nothing has written over it since
        if read:  # a dense network joins it to earlier maps first
            n = tap.shape[1]
            assert any(x.shape[2:] == tap.shape[2:] and torch.equal(x[:, -n:], tap) for x in read)
    sum(tap.square().mean() for tap in convs.values()).backward()  # type: ignore[union-attr]
