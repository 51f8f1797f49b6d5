"""Batch spectral shrinkage: the weakest directions of a batch's features, which transfer least, are suppressed.

L = eta * sum_{i = 1..k} sigma_{-i}^2, sigma_{-i} the i-th smallest singular value of F (B, D)

F are the pooled features of the batch, the input of the head, as they are: neither centred nor divided by B, so the
term is a sum over the batch. A batch has min(B, D) singular values; with fewer than k all of them count. Squares of
singular values are eigenvalues of the smaller of F F' and F' F, which is formed in double precision: the small ones
would drown in single. Their gradient, 2 F v v', needs no gap between values. (The authors decompose F itself.)
Chen, Wang, Fu, Long, Wang, Catastrophic forgetting meets negative transfer, NeurIPS 2019; they take eta 1e-3, k 1.

Cost: one eigenvalue problem of min(B, D) per step; no second network.
"""

import torch
from torch import Tensor

from domain.space import FloatRange, IntRange
from transfer.step import Step

SPACE = {
    "eta": FloatRange(low=1e-5, high=1e-1, log=True, default=1e-3),
    "k": IntRange(low=1, high=8, default=1),
}
NEEDS = ("start",)


def loss(step: Step, *, eta: float, k: int) -> Tensor:  # ()
    return eta * shrinkage(step.student.pooled, k=k).float()


def shrinkage(features: Tensor, *, k: int) -> Tensor:  # (B, D) -> ()
    """Sum of the k smallest squared singular values, in double precision."""
    with torch.autocast(features.device.type, enabled=False):
        exact = features.double()
        gram = exact @ exact.T if exact.shape[0] <= exact.shape[1] else exact.T @ exact
        squares: Tensor = torch.linalg.eigvalsh(gram)  # ascending
    return squares[:k].clamp(min=0).sum()
