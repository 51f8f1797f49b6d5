"""What a step of each method should cost by counting: forward 1, backward 2 (gradients of inputs 1, of weights 1)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

# Words that l2_sp moves per weight: w - w0 reads 2 and writes 1, its norm reads 1, its scaling reads and writes 1 each,
# adding it to the gradient reads 2 and writes 1.
WORDS_MOVED = 9
WORDS_NEEDED = 4  # by one fused pass: w, w0 and the gradient are read, the gradient is written


class Prediction(NamedTuple):
    ratio: float  # of a step of plain fine-tuning, by operations
    because: str
    words: int = 0  # moved per weight of the backbone, on top, at the speed of memory

    def at(self, word_share: float) -> float:
        """With what a word per weight takes, as a share of a step."""
        return self.ratio + self.words * word_share


LOOK = Prediction(4 / 3, "a second network looks on")
HALF_LOOK = Prediction(7 / 6, "in half of the steps a second network looks on")
PLAIN = Prediction(1.0, "as plain fine-tuning")
WEIGHTS = Prediction(1.0, "and a few passes over the weights, which are not counted here")

PREDICTED = {
    "surgery.reinit_above": PLAIN,
    "surgery.lora": PLAIN,
    "surgery.residual_adapter": Prediction(7 / 9, "1/9 more of everything, no gradients of kernels"),
    "surgery.spottune": Prediction(5 / 3, "forward, and backward to the inputs, of a second path; and the policy"),
    "surgery.stochnorm": Prediction(1.0, "batch norms twice"),
    "regularizer.l2": Prediction(1.0, "6 words moved per weight", 6),
    "regularizer.l2_sp": Prediction(1.0, f"{WORDS_MOVED} words moved per weight", WORDS_MOVED),
    "regularizer.l1_sp": WEIGHTS,
    "regularizer.gl_sp": WEIGHTS,
    "regularizer.l2_sp_fisher": WEIGHTS,
    "regularizer.gl_sp_fisher": Prediction(1.0, "some forty passes over the weights", 40),
    "regularizer.filter_patterns": Prediction(1.02, "densities of 4096 slices per layer"),
    "feature.attention": LOOK,
    "feature.delta": LOOK,
    "feature.fitnet": Prediction(1.1, "at most: in 3 of 10 steps a guide looks on, and less is trained"),
    "feature.fsp": Prediction(1.1, "in 3 of 10 steps a guide looks on"),
    "feature.jacobian": Prediction(11 / 3, "3 for a backward pass through the backward pass, 2/3 for the guide's own"),
    "feature.bss": PLAIN,
    "feature.co_tuning": PLAIN,
    "distillation.soft_targets": LOOK,
    "distillation.mimic": LOOK,
    "distillation.born_again": HALF_LOOK,
    "distillation.cwtm": HALF_LOOK,
    "distillation.dkpp": HALF_LOOK,
    "distillation.label_refinery": HALF_LOOK,
    "schedule.freeze": Prediction(1.0, "depth 0 freezes nothing"),
    "schedule.chain_thaw": Prediction(2 / 3, "at most 1: gradients of few weights"),
    "schedule.gradual": Prediction(2 / 3, "at most 1: no backward pass below what is thawed"),
    "schedule.lp_ft": PLAIN,
    "schedule.bit_hyperrule": PLAIN,
    "sampling.class_balanced": PLAIN,
    "sampling.class_subset": PLAIN,
    "sampling.selective_joint": Prediction(2.0, "a source batch beside each target batch"),
    "averaging.ema": Prediction(1.0, "3 words moved per weight", 3),
    "averaging.swa": Prediction(1.0, "3 words moved per weight", 3),
}


@dataclass(frozen=True)
class Sums:
    """Of a network and one batch."""

    macs: int  # multiply-adds of convolutions and fully connected layers in a forward pass of one picture
    batch: int
    kernels: tuple[torch.Size, ...]  # shapes of what l2_sp covers in the backbone

    @classmethod
    def of(cls, net: nn.Module, resolution: int, batch: int) -> "Sums":
        macs = 0

        def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
            nonlocal macs
            if isinstance(module, nn.Conv2d | nn.Linear):  # every output is a sum over one filter
                macs += output[0].numel() * module.weight[0].numel()

        hooks = [module.register_forward_hook(count) for module in net.modules()]
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, resolution, resolution))
        for hook in hooks:
            hook.remove()
        kernels = [w.shape for name, w in net.named_parameters() if w.ndim >= 2 and not name.startswith("head.")]
        return cls(macs, batch, tuple(kernels))

    @property
    def n_kernel_weights(self) -> int:
        return sum(shape.numel() for shape in self.kernels)

    @property
    def penalty_share(self) -> float:
        """3 operations a weight (subtract, scale, add) beside 2 a multiply-add, three times over, for each picture."""
        return 3 * self.n_kernel_weights / (6 * self.macs * self.batch)
