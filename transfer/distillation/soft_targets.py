"""Knowledge distillation: the student follows the softened answers of a teacher with the same classes.

L = (1 - a) CE(y, q) + a T^2 KL(p_T || q_T), mean over the batch; p_T = softmax(teacher / T), q_T likewise

`weight` is a, the share of the teacher; the labels keep 1 - a. (Conventions conflict: some codes put alpha on the
labels, some leave out T^2, without which soft gradients fall as 1 / T^2.) The cross-entropy form, a T^2 CE(p_T, q_T),
differs by a T^2 H(p_T), a constant of the student, and has the same gradient, over the batch of B items,
dL/dz = [(1 - a) (q - y) + a T (q_T - p_T)] / B. As T grows, T^2 KL becomes 1/(2C) sum_c ((z - mean z) - (v - mean v))^2
of the logits z, v (B, C). Under mixup both networks see the mixed images. Hinton, Vinyals, Dean, arXiv:1503.02531.
Cost: one forward pass of the teacher per step, the teacher's weights.
"""

from torch import Tensor
from torch.nn import functional

from domain.space import Choice, FloatRange
from transfer.step import Step

SPACE = {
    "weight": FloatRange(low=0.1, high=1.0, default=0.5),
    "temperature": Choice(options=(1.0, 2.0, 4.0, 8.0), default=4.0),
}
NEEDS = ("teacher",)
SEARCHED = True


def loss(step: Step, *, weight: float, temperature: float) -> Tensor:  # ()
    soft = soft_loss(step.student.logits, step.teacher.logits, temperature=temperature)
    if weight == 1:
        return soft
    return (1 - weight) * step.task_loss + weight * soft


def soft_loss(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:  # (B, C), (B, C) -> ()
    """T^2 KL(p_T || q_T), mean over the batch; nothing learns through the teacher."""
    q = functional.log_softmax(student / temperature, dim=1)
    p = functional.log_softmax(teacher.detach() / temperature, dim=1)
    return temperature**2 * functional.kl_div(q, p, reduction="batchmean", log_target=True)
