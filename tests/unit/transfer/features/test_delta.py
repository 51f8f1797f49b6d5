"""DELTA: the penalty by hand, and the attention against one zeroed filter at a time."""

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import zscore
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional

from models.build import build
from models.network import Network, new_head
from tests.toys import go, make_order, make_recipe
from transfer import warm
from transfer.bench import Bench
from transfer.features import delta
from transfer.features.delta import ablated_increases, attention, estimated_increases, layers_of, omega, plain
from transfer.setting import Setting


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(seed: int, c: int) -> Tensor:
    return draw(seed, c).softmax(0)


# --- the penalty


def test_omega_written_out() -> None:
    own, given, a = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5), weights(2, 3)
    expected = 0.0
    for b in range(2):
        for ch in range(3):
            expected += 0.5 * 3 * a[ch].item() * (own[b, ch] - given[b, ch]).norm().item() ** 2 / 20
    assert omega(own, given, a).item() == pytest.approx(expected, rel=1e-6)


def test_uniform_attention_is_the_squared_distance_per_pixel() -> None:
    own, given = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5)
    expected = 0.5 * (own - given).square().sum() / 20
    torch.testing.assert_close(omega(own, given, None), expected)
    torch.testing.assert_close(omega(own, given, torch.full((3,), 1 / 3)), expected)
    torch.testing.assert_close(plain(own, given), 20 * expected)


def test_it_sums_over_the_batch() -> None:
    own, given, a = draw(0, 2, 3, 4, 5), draw(1, 2, 3, 4, 5), weights(2, 3)
    doubled = omega(torch.cat([own, own]), torch.cat([given, given]), a)
    torch.testing.assert_close(doubled, 2 * omega(own, given, a))


def test_the_order_of_channels_does_not_count() -> None:
    own, given, a = draw(0, 2, 6, 4, 5), draw(1, 2, 6, 4, 5), weights(2, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(omega(own[:, order], given[:, order], a[order]), omega(own, given, a))
    assert not torch.allclose(omega(own[:, order], given[:, order], a), omega(own, given, a))


def test_the_gradient_of_one_linear_layer() -> None:
    """F = W * x, a 1x1 convolution: dOmega/dW_o = c a_o / (h w) sum_{b, pixels} (F - F0)_o x."""
    x, w, w0, a = draw(0, 2, 4, 3, 3), draw(1, 5, 4), draw(2, 5, 4), weights(3, 5)
    w.requires_grad_()
    own, given = (torch.einsum("oi,bihw->bohw", m, x) for m in (w, w0))
    (gradient,) = torch.autograd.grad(omega(own, given, a), w)
    second = torch.einsum("bihw,bjhw->ij", x, x)
    torch.testing.assert_close(gradient, 5 * a[:, None] / 9 * (w.detach() - w0) @ second)


@pytest.mark.parametrize("at", ["conv", "stage"])
@pytest.mark.parametrize("weighting", ["uniform", "plain", "ablation"])
@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_vit", "tiny_smallnet"])
def test_at_the_source_it_is_exactly_nothing(backbone: str, weighting: str, at: str) -> None:
    net = build(backbone, n_classes=3, seed=1).eval()
    source = copy.deepcopy(net)
    x, params = draw(0, 2, 3, 32, 32), {"alpha": 1.0, "weighting": weighting, "at": at}
    seen = source.look(x, convs=True)
    own = {**seen.features, **seen.convs} if at == "conv" else seen.features
    prepared = {f"delta/{stage}": weights(0, own[stage].shape[1]) for stage in layers_of(net, at)}

    def loss() -> float:
        step: Any = SimpleNamespace(
            inputs=x, net=net, prepared=prepared, student=net.look(x, convs=True), source=source.look(x, convs=True)
        )
        return delta.loss(step, **params).item()

    assert loss() == 0
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.01)
    assert loss() > 0


# --- attention


def test_attention_is_a_softmax_of_z_scores() -> None:
    d = draw(0, 40).double()
    d[7] = 0  # a dead channel: nothing rises without it
    expected = softmax(zscore(d.numpy()) / 5)
    found = attention(d)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert found[7].item() == pytest.approx(expected[7], rel=1e-5)
    torch.testing.assert_close(attention(3 * d + 2), found)
    torch.testing.assert_close(attention(torch.zeros(4)), torch.full((4,), 0.25))


def batch(net: Network) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.no_grad():  # statistics that are not those of a fresh network
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * draw(3, module.num_features))
                module.bias.copy_(0.1 * draw(4, module.num_features))
    return new_head(net.feature_dim, 3, seed=8), draw(5, 6, 3, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])


@torch.no_grad()
def entropy(net: Network, classifier: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(classifier(net.features(x)), targets)


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_smallnet", "tiny_efficientnet", "tiny_convnext"])
@pytest.mark.parametrize("room", [1, 1 << 24])
def test_increases_are_those_of_zeroed_filters(backbone: str, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the authors do it: weights of one filter set to zero, everything computed again."""
    monkeypatch.setattr(delta, "ROOM", room)
    net = build(backbone, n_classes=3, seed=1).eval()
    classifier, x, targets = batch(net)
    layers = layers_of(net, "conv")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = ablated_increases(net, classifier, layers, x, targets)
    assert list(found) == list(layers)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    full = entropy(net, classifier, x, targets)
    for stage, path in layers.items():
        conv = copy.deepcopy(net).get_submodule(str(path))
        assert len(found[stage]) == conv.out_channels
        for channel in (0, conv.out_channels - 1):
            other = copy.deepcopy(net)
            with torch.no_grad():
                edited = other.get_submodule(str(path))
                edited.weight[channel] = 0
                if edited.bias is not None:
                    edited.bias[channel] = 0
            torch.testing.assert_close(
                found[stage][channel], entropy(other, classifier, x, targets) - full, rtol=1e-3, atol=2e-6
            )


def through(net: Network, x: Tensor, stages: Sequence[str]) -> Tensor:
    for name in stages:
        x = net.get_submodule(name)(x)
    return x


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_vit"])
def test_a_stage_is_edited_at_its_output(backbone: str) -> None:
    net = build(backbone, n_classes=3, seed=1).eval()
    classifier, x, targets = batch(net)
    layers = layers_of(net, "stage")
    found = ablated_increases(net, classifier, layers, x, targets)
    full = entropy(net, classifier, x, targets)
    for stage in layers:
        place = net.stage_names.index(stage) + 1
        with torch.no_grad():
            at = through(net, x, net.stage_names[:place])
            at[:, 1] = 0 if at.ndim == 4 else at[:, 1]
            if at.ndim == 3:
                at[..., 1] = 0
            rest = through(net, at, net.stage_names[place:])
            pooled = rest.mean((2, 3)) if rest.ndim == 4 else rest[:, 0]
            expected = functional.cross_entropy(classifier(pooled), targets) - full
        torch.testing.assert_close(found[stage][1], expected, rtol=1e-3, atol=2e-6)


def test_a_dead_channel_is_missed_by_nobody() -> None:
    net = build("tiny_resnet", n_classes=3, seed=1).eval()
    classifier, x, targets = batch(net)
    layers = layers_of(net, "conv")
    with torch.no_grad():
        net.get_submodule(str(layers["layer3"])).weight[5] = 0
    for increases in (ablated_increases, estimated_increases):
        assert increases(net, classifier, layers, x, targets)["layer3"][5].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("backbone", "at"), [("tiny_resnet", "conv"), ("tiny_resnet", "stage"), ("tiny_vit", "conv")])
def test_the_estimate_is_the_increase_to_first_order(backbone: str, at: str) -> None:
    """Against the difference that damping a channel a little makes, by a factor 1 - h."""
    net = build(backbone, n_classes=3, seed=1).eval().double()
    classifier, x, targets = batch(net)
    classifier, x, h = classifier.double(), x.double(), 1e-5
    layers = layers_of(net, at)
    found = estimated_increases(net, classifier, layers, x, targets)
    assert list(found) == list(layers)
    full = entropy(net, classifier, x, targets)
    for stage, path in layers.items():
        module = net.get_submodule(path or stage)

        def damp(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            factor = torch.ones(output.shape[1 if output.ndim == 4 else 2], dtype=output.dtype)
            factor[2] -= h
            return output * (factor[:, None, None] if output.ndim == 4 else factor)

        hook = module.register_forward_hook(damp)
        slope = (entropy(net, classifier, x, targets) - full) / h
        hook.remove()
        torch.testing.assert_close(found[stage][2], slope, rtol=1e-3, atol=1e-6)


def test_layers_are_the_authors() -> None:
    resnet = build("tiny_resnet", n_classes=3)
    assert layers_of(resnet, "conv") == {f"layer{n}": f"layer{n}.0.conv2" for n in (1, 2, 3, 4)}
    assert list(layers_of(resnet, "stage")) == ["layer1", "layer2", "layer3", "layer4"]
    vit = build("tiny_vit", n_classes=3)
    assert layers_of(vit, "conv") == layers_of(vit, "stage") == dict.fromkeys(f"blocks{n}" for n in (1, 2, 3, 4))
    assert list(layers_of(build("tiny_smallnet", n_classes=3), "conv")) == ["block1", "block2", "block3"]


# --- on the bench


def bench_with(pack: Path, source: Path, scratch: Path, asked: list[str], **params: Any) -> Bench:
    recipe = make_recipe("tiny_smallnet", feature=("delta", params), seed=len(asked))
    order = make_order(recipe, pack, source, scratch)
    return Bench(Setting(order, order.trials[0], lambda name: asked.append(name) or go(name)), 0)


def test_prepared_attention_is_the_papers(pack: Path, source: Path, tmp_path: Path) -> None:
    """Classifier by scikit-learn, filters zeroed one at a time; the source is left as it was found."""
    warm.forget()
    bench = bench_with(pack, source, tmp_path, [])
    net = bench.setting.source
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    warm.forget()
    prepared = bench_with(pack, source, tmp_path, []).prepared
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert list(prepared) == ["delta/block1", "delta/block2", "delta/block3"]
    inputs, targets = next(bench.batches(bench.train, 99))
    features = net.features(inputs).detach().double().numpy()
    fitted = LogisticRegression(C=1 / (len(targets) * 1e-4), tol=1e-8, max_iter=10_000).fit(features, targets)
    classifier = nn.Linear(net.feature_dim, 3)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(fitted.coef_))
        classifier.bias.copy_(torch.from_numpy(fitted.intercept_))
    full, rises = entropy(net, classifier, inputs, targets), []
    for channel in range(8):
        other = copy.deepcopy(net)
        with torch.no_grad():
            other.get_submodule("block2.conv").weight[channel] = 0
        rises.append((entropy(other, classifier, inputs, targets) - full).item())
    expected = softmax(zscore(np.array(rises)) / 5)
    np.testing.assert_allclose(prepared["delta/block2"].numpy(), expected, rtol=0.02)


@pytest.mark.parametrize("weighting", ["ablation", "gradient"])
def test_later_trials_share_it_and_a_pause_is_possible_within(
    weighting: str, pack: Path, source: Path, tmp_path: Path
) -> None:
    warm.forget()
    asked: list[str] = []
    first = bench_with(pack, source, tmp_path, asked, weighting=weighting)
    n_asked = len(asked)
    assert n_asked > 1
    second = bench_with(pack, source, tmp_path, asked, weighting=weighting)  # of another seed
    assert len(asked) == n_asked
    assert all(second.prepared[key] is tensor for key, tensor in first.prepared.items())
    assert all(tensor.sum().item() == pytest.approx(1) for tensor in first.prepared.values())
    assert any("optimum" in remark for remark in first.remarks)
    assert bench_with(pack, source, tmp_path, asked, weighting="uniform").prepared == {}
