"""Co-tuning: the source's own head is tuned along, on what the target's classes are in terms of the source's.

L = weight * mean_b sum_s p(y_s = s | y_t) (-log q(y_s = s | x)), beside the task loss

y_t        target class of the item, C of them; after mixup p(y_s | y_t) is mixed in the same shares
y_s        source class, S of them
p(y_s|y_t) (C, S), the category relationship
q          softmax of the source head (S, D) on the student's pooled features (B, D)

The head starts as the source's, learns at the rate of a head and counts among the new weights (a regularizer's beta
pulls it to zero, not to where it started), and is left out of the checkpoint. The relationship is the paper's direct
one: the mean of the source's probabilities p(y_s | x) over the train items of a class, on evaluation pixels; a class
without train items takes the mean over all. The paper's reverse one first calibrates the source by a temperature fitted
on held-out source data, fits p(y_t | y_s) by logistic regression from calibrated probabilities to labels and inverts it
by Bayes' rule; source data is what a target box lacks, so that is not here.
You, Kou, Long, Wang, Co-tuning for transfer learning, NeurIPS 2020; they take weight 2.3.

Cost: one forward pass of the source over train, once; one more linear layer per step.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from domain.errors import Invalid
from domain.space import FloatRange
from models.network import Network
from transfer.bench import Bench
from transfer.phase import Rebuilt, Site
from transfer.step import Step

SPACE = {"weight": FloatRange(low=0.1, high=10.0, log=True, default=2.3)}
NEEDS = ("start", "source_head")
HEAD_NAME = "source_head"
RELATION = "co_tuning/relation"


def rebuild(net: Network, site: Site, *, weight: float) -> Rebuilt:  # noqa: ARG001 - the same at any weight
    """The source's head beside the new one."""
    given = site.source_head
    if given is None or set(given) != {"weight", "bias"} or given["weight"].shape[1] != net.feature_dim:
        raise Invalid(
            "no_linear_source_head", "feature.co_tuning needs a source whose head is one linear layer on its features"
        )
    n_source, width = given["weight"].shape
    head = nn.utils.skip_init(nn.Linear, width, n_source)  # draws nothing from the global random state
    head.load_state_dict({name: tensor.detach() for name, tensor in given.items()})
    net.add_module(HEAD_NAME, head)
    return Rebuilt(net, new=(HEAD_NAME,), train_only=(HEAD_NAME,))


def prepare(bench: Bench, *, weight: float) -> dict[str, Tensor]:  # noqa: ARG001 - the same at any weight
    def make() -> dict[str, Tensor]:
        with torch.no_grad():
            return {RELATION: relation(_said(bench), bench.setting.n_classes)}

    bench.remark("co-tuning takes the direct category relationship, from uncalibrated probabilities of the source")
    return bench.once((HEAD_NAME,), make)


def _said(bench: Bench) -> Iterator[tuple[Tensor, Tensor]]:
    """What the source says of the train items, and their classes, batch by batch."""
    for inputs, targets in bench.batches(bench.train):
        bench.ask()
        yield bench.look_source(inputs).logits.softmax(1), targets


def loss(step: Step, *, weight: float) -> Tensor:  # ()
    head = step.net.get_submodule(HEAD_NAME)
    wanted = targets_of(step.prepared[RELATION], step.targets)
    return weight * functional.cross_entropy(head(step.student.pooled.float()), wanted)


def relation(said: Iterable[tuple[Tensor, Tensor]], n_classes: int) -> Tensor:  # batches (B, S), (B,) -> (C, S)
    """p(y_s | y_t): the mean probabilities of the source over the items of a class, summed in double precision."""
    sums, counts = torch.zeros(()), torch.zeros(())
    for probabilities, targets in said:  # of the source's classes there may be very many: no table of all items
        of_class = functional.one_hot(targets, n_classes).double()
        sums = sums.to(of_class) + of_class.T @ probabilities.double()
        counts = counts.to(of_class) + of_class.sum(0)[:, None]
    means = sums / counts.clamp(min=1)
    return torch.where(counts > 0, means, sums.sum(0) / counts.sum()).float()


def targets_of(table: Tensor, targets: Tensor) -> Tensor:  # (C, S), (B,) or (B, C) -> (B, S)
    return table[targets] if targets.ndim == 1 else targets.float() @ table
