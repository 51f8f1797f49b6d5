"""What surgeries share: which weights stay, where draws come from, a class exchanged in place."""

import torch
from torch import nn

from models.build import build
from transfer.grafting import become, drawing, is_norm, still, transformer_layers
from transfer.phase import covers


def test_all_but_head_and_new_stays_and_batch_norms_as_a_whole() -> None:
    net = build("tiny_resnet", n_classes=3)
    held = still(net, new=("layer1.0", "stem.conv1"))
    backbone = {n for n in net.state_dict() if not covers(("head", "layer1.0", "stem.conv1"), n)}
    assert {n for n in net.state_dict() if covers(held, n)} == backbone
    assert "stem.bn1" in held  # its running statistics too


def test_what_is_trained_is_not_held() -> None:
    net = build("tiny_vit", n_classes=3)
    held = still(net, new=(), trained=is_norm)
    assert {n for n, _ in net.named_parameters()} - set(held) == {
        n for n, _ in net.named_parameters() if ".ln_" in n or n.startswith(("norm", "head"))
    }


def test_new_weights_of_an_old_module_are_not_held() -> None:
    net = build("tiny_smallnet", n_classes=3)
    net.get_submodule("block1.conv").add_module("extra", nn.Linear(2, 2))
    held = still(net, new=("block1.conv.extra",))
    assert "block1.conv.weight" in held
    assert not any(covers(("block1.conv.extra",), n) for n in held)


def test_the_layers_of_a_transformer_in_their_order() -> None:
    assert [(layer.path, layer.width) for layer in transformer_layers(build("tiny_swin", n_classes=3))] == [
        ("stage1.0", 16), ("stage1.1", 16), ("stage2.0", 32), ("stage2.1", 32)
    ]  # fmt: skip
    assert list(transformer_layers(build("tiny_resnet", n_classes=3))) == []


def test_modules_are_drawn_from_the_generator_one_after_the_other() -> None:
    before = torch.get_rng_state()
    drawn = []
    for _ in range(2):
        rng = torch.Generator().manual_seed(1)
        for _ in range(2):
            with drawing(rng):
                drawn.append(nn.Linear(3, 3).weight)
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_another_class_keeps_weights_hooks_and_mode() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    linear = nn.Linear(3, 3).eval()
    linear.register_forward_hook(lambda _, __, y: y + 1)
    x, weight = torch.randn(2, 3), linear.weight
    once = linear(x) - 1
    become(linear, Doubled)
    assert linear.weight is weight
    assert not linear.training
    torch.testing.assert_close(linear(x), 2 * once + 1)
