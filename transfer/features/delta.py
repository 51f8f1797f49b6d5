"""DELTA: feature maps stay near the source's, channels that matter for the target the nearest (Li et al., ICLR 2019).

L = alpha Omega,  Omega = 1/2 sum_layers sum_b sum_ch  c a_ch ||F_ch - F0_ch||^2 / (h w)

F, F0      (B, c, h, w) a layer of the student and of the source as loaded, which is in eval mode throughout
a          (c,) attention over the channels of a layer, sums to one
sum_b      over the batch, as published: alpha 0.01 at B = 64 is 0.64 on a mean over samples

at "conv"      outputs of the last convolution of each stage before its batch norm: the authors' layers. Where no stage
               has one (vision transformers) as at "stage"
at "stage"     outputs of the stages; of tokens the patches
               Either way stages with residual blocks only, where a backbone has those: the stem stays out.

weighting      how a comes about. d_ch is by how much zeroing the channel raises the cross entropy of 128 train items
               under a new classifier on the source's features; per layer z = (d - mean d) / std d, a = softmax(z / 5)
  "ablation"   d worked out, channel by channel: the paper's attention
  "gradient"   d to first order, -sum F_ch dCE/dF_ch, in one backward pass: an estimate of ours
  "uniform"    a = 1/c
  "plain"      none, and no division by h w: 1/2 ||F - F0||_F^2, the authors' variant without attention

The classifier is the optimum of its training (cross entropy + 1e-4/2 ||W||^2), solved on frozen features; it and d are
taken on evaluation pixels. The authors train it by ten epochs of SGD, in training mode, so that batch norm drifts
meanwhile, and take d on augmented pixels; another code means to freeze the backbone and does not. The penalty on the
head, beta, is a regularizer's (`regularizer.l2_sp`).

Cost: one forward pass of the source per step. Before it, once per source, data and fold: "ablation" 4 batches of 32 per
channel from the layer's own block on, 247 forward passes of the 128 items for a ResNet-18 (960 if each began at the
pixels), a quarter of an hour on one core at 96 pixels; "gradient" a single pass forth and back.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.space import Choice, FloatRange
from models.network import Network, pool
from transfer.bench import Bench
from transfer.closed_form import solve_path
from transfer.step import Step

SPACE = {
    "alpha": FloatRange(low=1e-4, high=1.0, log=True, default=1e-2),
    "weighting": Choice(options=("ablation", "gradient", "uniform", "plain"), default="ablation"),
    "at": Choice(options=("conv", "stage"), default="conv"),
}
NEEDS = ("start", "taps")
CONV_TAPS = True

N_ITEMS, N_AT_ONCE = 128, 32  # the authors' four batches
DECAY = 1e-4  # of the classifier
TEMPERATURE = 5.0
ROOM = 1 << 24  # elements of one activation: as many zeroed channels at once as fit into it

Layers = Mapping[str, str | None]  # stage -> path of its last convolution, None for the output of the stage itself


def prepare(bench: Bench, *, alpha: float, weighting: str, at: str) -> dict[str, Tensor]:  # noqa: ARG001
    """The attention of each layer."""
    if weighting in ("uniform", "plain"):
        return {}

    def make() -> dict[str, Tensor]:
        increases = _increases(bench, weighting, at)
        return {f"delta/{stage}": attention(increase) for stage, increase in increases.items()}

    bench.remark("DELTA's channel attention: the classifier is solved to its optimum instead of trained for ten epochs")
    if weighting == "gradient":
        bench.remark("DELTA's channel attention is a first-order estimate of what zeroing a channel does")
    return bench.once(("delta", weighting, at), make)


def loss(step: Step, *, alpha: float, weighting: str, at: str) -> Tensor:  # ()
    total = torch.zeros((), device=step.inputs.device)
    for stage, path in layers_of(step.net, at).items():
        own, given = (v.features[stage] if path is None else v.convs[stage] for v in (step.student, step.source))
        if weighting == "plain":
            total = total + plain(own, given)
        else:
            total = total + omega(own, given, step.prepared.get(f"delta/{stage}"))
    return alpha * total


def layers_of(net: Network, at: str) -> Layers:
    """What is held near the source's."""
    with_blocks = {name.partition(".")[0] for name in net.block_names}
    stages = [name for name in net.taps if name in with_blocks or not with_blocks]
    convs = {name: net.conv_taps[name] for name in stages if name in net.conv_taps}
    return convs if at == "conv" and convs else dict.fromkeys(stages)


# --- the penalty of one layer


def omega(own: Tensor, given: Tensor, attention: Tensor | None) -> Tensor:  # (B, c, h, w) twice, (c,) -> ()
    """1/2 sum_b sum_ch c a_ch ||F - F0||^2 / (h w); without attention all channels weigh the same, a = 1/c."""
    _, c, h, w = own.shape
    squares = (own.float() - given.detach().float()).square().sum((0, 2, 3))  # (c,)
    return (squares if attention is None else c * attention * squares).sum() / (2 * h * w)


def plain(own: Tensor, given: Tensor) -> Tensor:  # (B, c, h, w) twice -> ()
    """1/2 ||F - F0||_F^2."""
    return (own.float() - given.detach().float()).square().sum() / 2


# --- attention


def attention(increase: Tensor) -> Tensor:  # (c,) -> (c,)
    """softmax(z / 5), z the increases in standard deviations from their mean; all the same where none stands out."""
    exact = increase.double()
    spread = exact.std(correction=0)
    z = (exact - exact.mean()) / spread if spread > 0 else torch.zeros_like(exact)
    return (z / TEMPERATURE).softmax(0).float()


def _increases(bench: Bench, weighting: str, at: str) -> dict[str, Tensor]:
    """How much the cross entropy of a few train items rises without each channel, by layer."""
    source = bench.setting.source
    layers = layers_of(source, at)
    classifier = _classifier(bench, source)
    rng = np.random.default_rng(bench.seed(0))
    items = np.sort(rng.choice(bench.train, min(N_ITEMS, len(bench.train)), replace=False))
    total: dict[str, Tensor] = {}
    for place, (inputs, targets) in enumerate(bench.batches(items, N_AT_ONCE)):
        bench.ask()

        def make(inputs: Tensor = inputs, targets: Tensor = targets) -> dict[str, Tensor]:
            if weighting == "gradient":
                return estimated_increases(source, classifier, layers, inputs, targets)
            return ablated_increases(source, classifier, layers, inputs, targets, between=bench.ask)

        # Kept batch by batch: a pause in between loses a quarter of the work at most.
        found = bench.once(("delta", weighting, at, place), make)
        for stage, increase in found.items():
            total[stage] = total.get(stage, 0) + increase * (len(inputs) / len(items))
    return total


def _classifier(bench: Bench, source: Network) -> nn.Linear:
    """The best linear classifier of train on the source's features."""
    found = []
    with torch.no_grad():
        for inputs, _ in bench.batches(bench.train):
            bench.ask()
            found.append(source.features(inputs).double().cpu())
    features = torch.cat(found).numpy()
    [answer] = solve_path(features, bench.train_labels, bench.setting.n_classes, np.array([DECAY]))
    n_classes, width = answer.weight.shape
    classifier: nn.Linear = nn.utils.skip_init(nn.Linear, width, n_classes)
    with torch.no_grad():
        classifier.weight.copy_(torch.from_numpy(answer.weight))
        classifier.bias.copy_(torch.from_numpy(answer.bias))
    return classifier.to(bench.setting.device)


@torch.no_grad()
def ablated_increases(
    net: Network, classifier: nn.Module, layers: Layers, inputs: Tensor, targets: Tensor,
    *, between: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:  # fmt: skip
    """CE(channel zeroed) - CE(full), mean over the items, for every channel of every layer.

    What lies before a layer is worked out once; copies of the batch, each without another channel, go on together.
    """
    found = {}
    for stage, path in layers.items():
        before, after = _cut(net, stage, path)
        at = inputs
        for module in before:
            at = module(at)
        n_channels = _n_channels(net, path, at)
        full = _cross_entropies(after, path, net, classifier, at, targets, torch.ones(1, n_channels).to(at))
        rises = []
        for channels in torch.arange(n_channels, device=at.device).split(max(1, ROOM // at.numel())):
            between()
            masks = 1 - functional.one_hot(channels, n_channels).to(at)  # (k, c)
            rises.append(_cross_entropies(after, path, net, classifier, at, targets, masks) - full)
        found[stage] = torch.cat(rises)
    return found


def estimated_increases(
    net: Network, classifier: nn.Module, layers: Layers, inputs: Tensor, targets: Tensor
) -> dict[str, Tensor]:
    """The same to first order: the change from F_ch to zero along the gradient."""
    heard: dict[str, Tensor] = {}

    def listen(output: Tensor) -> Tensor:
        heard[stage] = output
        return output

    with torch.enable_grad():
        at = inputs.detach().clone().requires_grad_()
        for stage in net.stage_names:
            with _edited(net, layers.get(stage), listen):
                at = net.get_submodule(stage)(at)
            if stage in layers and layers[stage] is None:
                listen(at)
        loss = functional.cross_entropy(classifier(pool(at)), targets)
        slopes = torch.autograd.grad(loss, list(heard.values()))
    rises = {}
    for (stage, output), slope in zip(heard.items(), slopes, strict=True):
        others = [axis for axis in range(output.ndim) if axis != _channel_axis(output)]
        rises[stage] = -(output * slope).sum(others).detach()
    return rises


def _cut(net: Network, stage: str, path: str | None) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules before the block that holds a layer, and those from there on."""
    place = net.stage_names.index(stage)
    modules = [net.get_submodule(name) for name in net.stage_names]
    if path is None:
        return modules[: place + 1], modules[place + 1 :]
    before, own, after = modules[:place], modules[place], modules[place + 1 :]
    if not isinstance(own, nn.Sequential):
        return before, [own, *after]
    children = dict(own.named_children())
    first = list(children).index(path.split(".")[1])
    parts = list(children.values())
    return [*before, *parts[:first]], [*parts[first:], *after]


def _cross_entropies(
    after: Sequence[nn.Module], path: str | None, net: Network, classifier: nn.Module, at: Tensor, targets: Tensor,
    masks: Tensor,
) -> Tensor:  # fmt: skip
    """(k,) mean cross entropies, the layer's channels multiplied by each of the masks (k, c)."""
    k, n = len(masks), len(at)
    rows = masks.repeat_interleave(n, 0)
    copies = at.repeat(k, *[1] * (at.ndim - 1))
    if path is None:
        copies = _masked(copies, rows)
    with _edited(net, path, lambda output: _masked(output, rows)):
        for module in after:
            copies = module(copies)
    losses = functional.cross_entropy(classifier(pool(copies)).float(), targets.repeat(k), reduction="none")
    return losses.view(k, n).mean(1)


def _masked(output: Tensor, rows: Tensor) -> Tensor:  # (B, c, h, w) or (B, 1 + n, c), (B, c)
    return output * (rows[:, :, None, None] if output.ndim == 4 else rows[:, None])


def _channel_axis(output: Tensor) -> int:
    return 1 if output.ndim == 4 else output.ndim - 1


def _n_channels(net: Network, path: str | None, at: Tensor) -> int:
    if path is None:
        return at.shape[_channel_axis(at)]
    conv = net.get_submodule(path)
    assert isinstance(conv, nn.Conv2d)
    return conv.out_channels


@contextmanager
def _edited(net: Network, path: str | None, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the module at `path` yields what `edit` makes of its output."""
    if path is None:
        yield
        return
    hook = net.get_submodule(path).register_forward_hook(lambda _, __, output: edit(output))
    try:
        yield
    finally:
        hook.remove()
