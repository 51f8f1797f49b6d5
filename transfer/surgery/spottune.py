"""Let a policy choose, per picture and block, between the frozen and the tuned block (SpotTune, Guo et al., CVPR 2019).

x_l = I_l F_l(x_{l-1}) + (1 - I_l) F_l^0(x_{l-1})       I_l in {0, 1} per picture, F tuned, F^0 frozen, both from w0
training      I = one_hot(argmax y), y = softmax((z + g) / tau), g Gumbel noise; the gradient is that of y
evaluation    I = argmax z, no noise; a tie is frozen

z (B, L, 2) are the policy's logits, index 1 tuned: a small residual network on the picture itself, trained at its own
rate `agent_lr`. The frozen blocks stay in evaluation mode. What lies outside the blocks (stem, downsampling between
stages, last layers) is one and the same for all pictures; `outside` says whether it is tuned.
Global k, off by default, adds to the loss    k_weight ((sum_l p_l) - k L)^2 + entropy_weight sum_l -p_l log p_l,
p_l the share of the batch for which block l is tuned, k the share of the L blocks to be tuned.
The authors' code draws noise at evaluation too, trains the stem and the batch norms of the frozen blocks.

Cost: twice the forward and the weights of the blocks, and the policy.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock

from domain.space import Choice, FloatRange
from models.network import Network
from transfer.grafting import drawing, still
from transfer.phase import Rebuilt, Site, covers
from transfer.step import Step

SPACE = {
    "tau": FloatRange(low=0.5, high=5.0, log=True, default=5.0),
    "agent_lr": FloatRange(low=1e-4, high=1e-2, log=True, default=1e-2),
    "outside": Choice(options=("frozen", "tuned"), default="frozen"),
    "k": FloatRange(low=0.0, high=1.0, default=0.5),
    "k_weight": FloatRange(low=0.0, high=1.0, default=0.0),
    "entropy_weight": FloatRange(low=0.0, high=1.0, default=0.0),
}
NEEDS = ("start", "blocks")
CLASHES = ("schedule.freeze",)  # a policy over blocks that nobody tunes has no gradient
ADDS_WEIGHTS = True
POLICY, FROZEN = "policy", "frozen"
EPSILON = 1e-20
WIDTHS = (16, 32, 64)


def rebuild(
    net: Network, site: Site, *, tau: float, agent_lr: float, outside: str,
    k: float, k_weight: float, entropy_weight: float,  # noqa: ARG001
) -> Rebuilt:  # fmt: skip
    blocks = outermost(net.block_names)
    routes = Routes()
    with drawing(site.rng):
        policy = Policy(len(blocks), tau, routes)
    copies = nn.ModuleDict()
    for place, path in enumerate(blocks):
        fork = Fork(net.get_submodule(path), place, routes, last=place == len(blocks) - 1)
        net.get_submodule(path).register_forward_hook(fork.choose)
        copies[path.replace(".", "-")] = fork
    net.get_submodule(net.stage_names[0]).register_forward_pre_hook(policy.look)
    common = still(net, new=blocks) if outside == "frozen" else ()
    net.add_module(POLICY, policy)
    net.add_module(FROZEN, copies)
    return Rebuilt(net, new=(POLICY,), frozen=(FROZEN, *common), rates={POLICY: agent_lr}, whole=True)


def loss(
    step: Step, *, tau: float, agent_lr: float, outside: str,  # noqa: ARG001
    k: float, k_weight: float, entropy_weight: float,
) -> Tensor:  # ()  # fmt: skip
    if k_weight == entropy_weight == 0:
        return step.task_loss.new_zeros(())
    _ = step.student.logits  # the pass that the task loss sees
    policy = step.net.get_submodule(POLICY)
    assert isinstance(policy, Policy)
    return global_k(policy.decisions(step.inputs), k=k, k_weight=k_weight, entropy_weight=entropy_weight)


def global_k(decisions: Tensor, *, k: float, k_weight: float, entropy_weight: float) -> Tensor:  # (B, L) -> ()
    share = decisions.mean(0)
    excess = (share.sum() - k * decisions.shape[1]).square()
    return k_weight * excess - entropy_weight * torch.xlogy(share, share.clamp_min(1e-6)).sum()


def outermost(blocks: tuple[str, ...]) -> tuple[str, ...]:
    """The blocks that lie in no other block."""
    return tuple(b for b in blocks if not covers(tuple(other for other in blocks if other != b), b))


def gumbel_one_hot(logits: Tensor, tau: float) -> Tensor:
    """(..., n) -> (..., n): exactly one-hot, with the gradient of the softmax that was drawn."""
    noise = -torch.log(-torch.log(torch.rand_like(logits) + EPSILON) + EPSILON)
    soft = torch.softmax((logits + noise) / tau, -1)
    hard = functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())


class Routes:
    """The decisions of the present forward pass, which policy and blocks share. A copy of a network begins without."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.decisions: Tensor | None = None

    def __deepcopy__(self, _: Any) -> "Routes":
        return Routes()


class Policy(nn.Module):
    """Picture (B, 3, H, W) -> logits (B, L, 2): frozen, tuned."""

    draws_at_random = True

    def __init__(self, n_blocks: int, tau: float, routes: Routes) -> None:
        super().__init__()
        self.tau = tau
        self.routes = routes
        first, *wider = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, first, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(first))
        self.blocks = nn.Sequential()
        for narrow, wide in zip(WIDTHS, wider, strict=False):
            shortcut = nn.Sequential(nn.Conv2d(narrow, wide, 1, stride=2, bias=False), nn.BatchNorm2d(wide))
            self.blocks.append(BasicBlock(narrow, wide, stride=2, downsample=shortcut))
        self.last = nn.Linear(WIDTHS[-1], 2 * n_blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 3, stride=2, padding=1)
        pooled = self.blocks(x).mean((2, 3))
        logits: Tensor = self.last(pooled)
        return logits.float().reshape(-1, self.last.out_features // 2, 2)

    def decide(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L): 1 where the block is tuned."""
        logits: Tensor = self(x)
        if self.training:
            return gumbel_one_hot(logits, self.tau)[..., 1]
        return (logits[..., 1] > logits[..., 0]).to(logits.dtype)

    def decisions(self, x: Tensor) -> Tensor:
        """Those of the last forward pass, if it was one of `x`; otherwise new ones."""
        known = self.routes.decisions
        return known if known is not None and self.routes.inputs is x else self.decide(x)

    def look(self, _: nn.Module, inputs: Any) -> None:
        """Forward pre-hook of the first stage."""
        self.routes.inputs, self.routes.decisions = inputs[0], self.decide(inputs[0])


class Fork(nn.Module):
    """The frozen twin of a block, and the choice between the two."""

    def __init__(self, block: nn.Module, place: int, routes: Routes, *, last: bool) -> None:
        super().__init__()
        self.block = copy.deepcopy(block).requires_grad_(False).eval()
        self.place = place
        self.routes = routes
        self.last = last

    def train(self, mode: bool = True) -> "Fork":  # noqa: ARG002
        """The twin stays in evaluation mode, whatever the network around it does."""
        return super().train(False)

    def choose(self, block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """Forward hook of the tuned block."""
        if self.routes.decisions is None:
            raise RuntimeError("the policy decides on the picture: this network cannot begin behind its first stage")
        chosen = self.routes.decisions[:, self.place].to(output.dtype)
        if self.last and not block.training:  # training goes on to look at the decisions
            self.routes.inputs = self.routes.decisions = None
        return mix(chosen, output, self.block(*inputs))


def mix(chosen: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """(B,) and twice (B, ...) -> (B, ...)."""
    chosen = chosen.view(-1, *[1] * (tuned.dim() - 1))
    return chosen * tuned + (1 - chosen) * frozen
