"""What holds for all surgeries: names stay, a copy is a network, a checkpoint and ONNX give the same predictions."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from models.build import build
from models.network import Network
from models.weights import save_weights
from tests.toys import make_order, make_recipe, train, write_source
from transfer.checkpoint import open_checkpoint
from transfer.parts import load, names
from transfer.phase import Site, covers

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "adapter": ("adapter", "tiny_vit", {"m": 4}),
    "adapter, swin": ("adapter", "tiny_swin", {"m": 4}),
    "adaptformer": ("adaptformer", "tiny_vit", {"m": 4}),
    "lora": ("lora", "tiny_vit", {"rank": 2}),
    "lora, swin": ("lora", "tiny_swin", {"rank": 2}),
    "lora, convolutions": ("lora", "tiny_resnet", {"rank": 2}),
    "reinit_above": ("reinit_above", "tiny_resnet", {"depth": 3}),
    "residual_adapter, parallel": ("residual_adapter", "tiny_resnet", {"mode": "parallel"}),
    "residual_adapter, series": ("residual_adapter", "tiny_mobilenet_v3", {"mode": "series"}),
    "spottune": ("spottune", "tiny_resnet", {}),
    "stochnorm": ("stochnorm", "tiny_resnet", {}),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), name="case")
def _case(request: pytest.FixtureRequest) -> tuple[str, str, dict[str, Any]]:
    return request.param


def test_every_surgery_is_here() -> None:
    assert {name for name, _, _ in CASES.values()} == set(names("surgery"))


def test_existing_names_stay_and_every_prefix_names_something(operate: Callable[..., Any], case: Any) -> None:
    name, backbone, params = case
    before, net, rebuilt = operate(name, backbone, **params)
    state = net.state_dict()
    assert {n: t.shape for n, t in before.state_dict().items()}.items() <= {
        n: t.shape for n, t in state.items()
    }.items()
    for prefix in (*rebuilt.new, *rebuilt.frozen, *rebuilt.rates):
        assert any(covers((prefix,), n) for n in state), prefix
    assert not any(covers(("head", *rebuilt.new), n) for n in rebuilt.frozen)
    assert rebuilt.train_only == ()
    assert (net.block_names, net.stage_names, net.taps) == (before.block_names, before.stage_names, before.taps)


def test_the_generator_decides_and_the_global_state_is_left_alone(case: Any) -> None:
    name, backbone, params = case
    part = load("surgery", name)
    params = {key: range_.default for key, range_ in part.SPACE.items()} | params
    states = []
    for _ in range(2):
        net = build(backbone, n_classes=3)
        before = torch.get_rng_state()
        part.rebuild(net, Site(torch.Generator().manual_seed(7), 3), **params)
        assert torch.equal(torch.get_rng_state(), before)
        states.append(net.state_dict())
        torch.rand(1)  # the global state is another one the next time
    assert all(torch.equal(tensor, states[1][n]) for n, tensor in states[0].items())


def test_a_copy_predicts_the_same_and_goes_its_own_way(
    operate: Callable[..., Any], case: Any, pictures: Tensor, shake: Callable[..., None]
) -> None:
    name, backbone, params = case
    net: Network = operate(name, backbone, **params).net
    shake(net.parameters())
    twin = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(pictures)
        assert torch.equal(twin(pictures), expected)
        shake(twin.parameters(), seed=9)
        assert not torch.equal(twin(pictures), expected)
        assert torch.equal(net(pictures), expected)


def test_a_copy_made_in_the_middle_of_training_is_a_network(
    operate: Callable[..., Any], case: Any, pictures: Tensor
) -> None:
    name, backbone, params = case
    net: Network = operate(name, backbone, **params).net.train()
    functional.cross_entropy(net(pictures), torch.tensor([0, 1, 2, 0])).backward()
    twin = copy.deepcopy(net).eval()
    with torch.no_grad():
        assert torch.equal(twin(pictures), net.eval()(pictures))


def test_a_checkpoint_gives_the_network_back(
    operate: Callable[..., Any], case: Any, pictures: Tensor, shake: Callable[..., None], tmp_path: Path
) -> None:
    name, backbone, params = case
    net = operate(name, backbone, **params).net
    shake(net.parameters())
    save_weights(net.state_dict(), tmp_path / "weights.safetensors")
    again = open_checkpoint(make_recipe(backbone, surgery=(name, params)), tmp_path / "weights.safetensors", 3)
    with torch.no_grad():
        assert torch.equal(again(pictures), net(pictures))


def test_what_is_frozen_keeps_every_bit_and_the_rest_moves(
    operate: Callable[..., Any], case: Any, pack: Path, tmp_path: Path
) -> None:
    name, backbone, params = case
    operated = operate(name, backbone, **params)
    source = write_source(tmp_path / "source.safetensors", backbone)
    recipe = make_recipe(backbone, surgery=(name, params), steps=4, batch_norm="train")
    fit, _ = train(make_order(recipe, pack, source, tmp_path))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    start, end = load_file(source), load_file(outcome.files["weights"])
    assert set(end) == set(operated.net.state_dict())
    for key, tensor in start.items():
        if covers(("head", *operated.rebuilt.new), key):
            continue
        if covers(operated.rebuilt.frozen, key):
            assert torch.equal(tensor, end[key]), key
        elif key in operated.trained and not key.endswith("num_batches_tracked"):
            assert not torch.equal(tensor, end[key]), key
