"""Jacobian matching: what a change of the picture does to the network stays what it does to its guide.

J_S, J_T   (B, 3, H, W) gradients of one number per sample with respect to the inputs, of student and guide
d(u, v)    mean_b sum_pixels (u / ||u|| - v / ||v||)^2, norms per sample, so that it lies in [0, 4]

mode "attention"   beta (d(A_S, A_T) + d(J_S, J_T)), the guide is the source; equation 10 of the paper, for transfer:
                   A = sum_channels F^2 (B, h, w) of the last stage with a map, J the gradient of its largest value,
                   the larger of two maps interpolated to the smaller
mode "logit"       beta d(J_S, J_T), the guide is the job's teacher; J the gradient of the logit of the true class
                   (after mixup: of the larger share), for which both must have the same classes

The guide's gradient is cut off from the graph, the student's is differentiated a second time: through a ReLU its own
slope says nothing, the weights around it do. Adding noise of variance s^2 to the inputs and matching outputs comes to
the same to first order: E||T(x + e) - S(x + e)||^2 = ||T - S||^2 + s^2 ||J_T - J_S||_F^2 + O(s^4).
Srinivas & Fleuret, Knowledge transfer with Jacobian matching, ICML 2018, who add it to learning without forgetting; the
task loss stands here in its place. (Others average over pixels, 1 / (3 H W) of this, or forget to keep the student's
graph, which leaves the weights without a gradient.)

Cost: about three times a step, and a forward and a backward pass of the guide.
"""

from torch import Tensor
from torch.nn import functional

from domain.space import Choice, FloatRange
from transfer.maps import energy, same_size
from transfer.step import Step

SPACE = {
    "beta": FloatRange(low=1e-2, high=1e2, log=True, default=0.1),
    "mode": Choice(options=("attention", "logit"), default="attention"),
}
NEEDS = ("taps", "double_backward")
NEEDS_BY = {"mode": {"attention": "start", "logit": "teacher"}}
INPUT_GRADIENT = True


def loss(step: Step, *, beta: float, mode: str) -> Tensor:  # ()
    if mode == "logit":
        own, given = (view.logits.gather(1, step.hard_targets[:, None]) for view in (step.student, step.teacher))
        found = step.student.input_gradient(own), step.teacher.input_gradient(given)
        return beta * gap_of(*found)
    last = list(step.source.features)[-1]
    mine, its = energy(step.student.features[last]), energy(step.source.features[last])
    found = step.student.input_gradient(mine.amax((1, 2, 3))), step.source.input_gradient(its.amax((1, 2, 3)))
    return beta * (gap_of(*same_size(mine, its)) + gap_of(*found))


def gap_of(own: Tensor, given: Tensor, *, normalised: bool = True) -> Tensor:  # (B, ...), (B, ...) -> ()
    """Squared distance per sample, mean over the batch; nothing learns through `given`."""
    u, v = own.float().flatten(1), given.detach().float().flatten(1)
    if normalised:
        u, v = functional.normalize(u, dim=1), functional.normalize(v, dim=1)
    return (u - v).square().sum(1).mean()
