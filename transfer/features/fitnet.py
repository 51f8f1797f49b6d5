"""FitNets: the lower half is first trained to predict the guide's middle layer, then the whole network on the task.

L = mean_b 1/2 ||u_hint - r(v_guided)||^2, summed over channels and pixels of a sample

u_hint     (B, c', h', w') output of the guide's middle stage, of the job's teacher or the source as loaded
v_guided   (B, c, h, w) output of the student's middle stage
r          the regressor: a 1x1 convolution c -> c', drawn anew, with the hint's nonlinearity: ReLU where the hint is
           never negative, none where it is. The larger of the two maps is interpolated to the smaller.

Phase 1, `share` of the steps: L alone, at rate `lr`, on the stages up to the guided one and r. Phase 2: the task from
those weights, without r, which no checkpoint holds. The recipe's regularizer counts in both phases, every other part in
phase 2. A distillation counts there as its own weight says; the paper's fading of its share, lambda from 4 to 1 on the
soft targets, is not repeated: a distillation stands in place of the task loss here, so that a factor on it would be one
on the learning rate. The middle is that of the list of stages of either network; one hint beats three.
Romero et al., FitNets: hints for thin deep nets, ICLR 2015. (Where sizes differ the paper's r is a wider convolution
without padding; others train on both losses at once, without r.)

Cost: one forward pass of the guide per step of phase 1.
"""

from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.errors import Invalid
from domain.recipe import SLOTS
from domain.space import Choice, FloatRange
from models.network import Network
from transfer.maps import guide_of, same_size, tried
from transfer.phase import OptimizerSpec, Outcome, Phase, Plan, Rebuilt, Site
from transfer.step import Step

SPACE = {
    "share": FloatRange(low=0.1, high=0.5, default=0.3),
    "lr": FloatRange(low=1e-4, high=1e-2, log=True, default=1e-3),
    "guide": Choice(options=("teacher", "source"), default="teacher"),
}
NEEDS = ("taps",)
NEEDS_BY = {"guide": {"source": "start", "teacher": "teacher"}}
COMPARES = "middle"
REGRESSOR = "regressor"


class Regressor(nn.Module):
    """What the hint would be, as the guided stage has it; and the names of both, which depend on the networks."""

    def __init__(
        self, guided: str, hint: str, channels: int, wanted: int, *, rectified: bool, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.guided, self.hint = guided, hint
        self.conv = nn.utils.skip_init(nn.Conv2d, channels, wanted, 1)  # draws nothing from the global random state
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu" if rectified else "linear", generator=rng)
        nn.init.zeros_(self.conv.bias)
        self.rectified = rectified

    def forward(self, maps: Tensor) -> Tensor:  # (B, c, h, w) -> (B, c', h, w)
        found: Tensor = self.conv(maps)
        return functional.relu(found) if self.rectified else found


def middle(stages: Sequence[str]) -> str:
    return stages[(len(stages) - 1) // 2]


def rebuild(net: Network, site: Site, *, share: float, lr: float, guide: str) -> Rebuilt:  # noqa: ARG001
    """The regressor beside the stages."""
    guiding = site.teacher if guide == "teacher" and site.teacher is not None else net
    guided, own = _middle_map(net)
    hint, its = _middle_map(guiding)
    rectified = bool((its >= 0).all())
    regressor = Regressor(guided, hint, own.shape[1], its.shape[1], rectified=rectified, rng=site.rng)
    net.add_module(REGRESSOR, regressor)
    return Rebuilt(net, new=(REGRESSOR,), train_only=(REGRESSOR,))


def _middle_map(net: Network) -> tuple[str, Tensor]:
    name, maps = middle(net.stage_names), tried(net)
    if name not in maps:
        raise Invalid("no_middle_map", f"feature.fitnet guides middle stages, and {name} of {net.backbone} has no map")
    return name, maps[name]


def phases(plan: Plan, *, share: float, lr: float, guide: str) -> Generator[Phase, Outcome, None]:  # noqa: ARG001
    guided = plan.stages.index(middle(plan.stages)) + 1
    lower = (*plan.stages[:guided], REGRESSOR)
    rates = {unit: OptimizerSpec(lr=lr) for unit in lower}
    yield Phase(trainable=lower, terms={"fitnet": 1.0, "regularizer": 1.0}, optimizer=rates, share=share, keep="last")
    whole = tuple(unit for unit in plan.everything if unit != REGRESSOR)
    yield Phase(trainable=whole, terms={"task": 1.0, **{slot: 1.0 for slot in SLOTS if slot != "feature"}})


def loss(step: Step, *, share: float, lr: float, guide: str) -> Tensor:  # noqa: ARG001 - ()
    regressor = step.net.get_submodule(REGRESSOR)
    assert isinstance(regressor, Regressor)
    hint = guide_of(step, guide).features[regressor.hint].detach()
    return hint_loss(step.student.features[regressor.guided].float(), hint.float(), regressor)


def hint_loss(guided: Tensor, hint: Tensor, regressor: nn.Module) -> Tensor:  # (B, c, h, w), (B, c', h', w') -> ()
    """Half the squared distance of hint and prediction, summed over channels and pixels, mean over the batch."""
    own, wanted = same_size(guided, hint)
    gap: Tensor = wanted - regressor(own)
    return gap.square().sum((1, 2, 3)).mean() / 2
