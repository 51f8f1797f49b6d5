"""The network as a phase trains it: which weights move and how fast, and which modules only look on."""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from transfer.bench import Bench
from transfer.optimizers import OPTIMIZERS, Group, Optimizer
from transfer.phase import OptimizerSpec, Phase, covers
from transfer.step import Weights

RANDOM_LAYERS = (nn.modules.dropout._DropoutNd, StochasticDepth)


class Trainee:
    """The network of a bench, made ready for a phase.

    weights       those that are trained, by name
    depth         stages before the first that is trained
    draws         whether a forward pass draws random numbers
    """

    def __init__(self, bench: Bench, phase: Phase) -> None:
        self.net, self._bench, self._phase = bench.net, bench, phase

        def trains(name: str) -> bool:
            return covers(phase.trainable, name) and not covers(bench.frozen, name)

        norms = {
            name: module for name, module in self.net.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        }  # fmt: skip
        # Which batch norms only look at the running statistics: those that are not trained, and by the recipe's mode
        # those that came from the source. What has no start has no statistics worth keeping.
        mode = bench.recipe.batch_norm
        frozen = {name for name in norms if not trains(name)}
        held = {name for name in norms if mode != "train" and not covers(bench.new, name)}
        self._still_norms = [norms[name] for name in frozen | held]
        still_affine = held if mode == "frozen" else set()
        trained: dict[str, Tensor] = {}
        for name, weight in self.net.named_parameters():
            wanted = trains(name) and name.rpartition(".")[0] not in still_affine
            weight.requires_grad_(wanted)
            weight.grad = None
            if wanted:
                trained[name] = weight
        self._still_units = [
            module for unit, module in self.net.named_children()
            if not any(covers((unit,), name) for name in trained)
        ]  # fmt: skip
        self.train_mode()
        moving = {
            name: buffer for name, buffer in self.net.named_buffers()
            if buffer.is_floating_point() and name.rpartition(".")[0] in norms.keys() - frozen - held
        }  # fmt: skip
        self.weights = Weights(
            trained, bench.start, buffers=moving, decoupled=OPTIMIZERS[bench.recipe.optimizer.name].decoupled,
            prepared=bench.prepared,
        )  # fmt: skip
        still = [not any(covers((stage,), name) for name in trained) for stage in self.net.stage_names]
        self.depth = still.index(False) if False in still else len(still)
        self.draws = any(
            (isinstance(module, RANDOM_LAYERS) and module.p > 0) or getattr(module, "draws_at_random", False)
            for module in self.net.modules() if module.training
        )  # fmt: skip

    def train_mode(self) -> None:
        """Training mode, as this phase wants it: what is not trained only looks on."""
        self.net.training = True
        for unit in self.net.children():
            if unit not in self._still_units:
                unit.train()
            elif unit.training:  # most of the network may stand still: it is not walked through at every evaluation
                unit.eval()
        for norm in self._still_norms:
            norm.eval()

    def optimizer(self) -> Optimizer:
        """One group per stage, the head's own, and one per part of the net that the phase names. The weights are told
        their momentum."""
        bench, given, stages = self._bench, self._bench.recipe.optimizer, self.net.stage_names
        # What surgery gives a rate of its own keeps it; of prefixes within one another the longest holds.
        specs = {**self._phase.optimizer, **{name: OptimizerSpec(lr=lr) for name, lr in bench.rates.items()}}
        groups: dict[tuple[str, float, float], list[str]] = {}
        for name in self.weights:
            unit = name.partition(".")[0]
            lr, momentum = given.lr_head, given.momentum
            if unit in stages and not covers(bench.new, name):
                lr *= given.inner_ratio * given.stage_decay ** (len(stages) - 1 - stages.index(unit))
            special = max((p for p in specs if covers((p,), name)), key=len, default=None)
            if special is not None:
                spec = specs[special]
                lr = given.lr_head if spec.lr is None else spec.lr
                momentum = given.momentum if spec.momentum is None else spec.momentum
            groups.setdefault((special or unit, lr, momentum), []).append(name)
        optimizer = OPTIMIZERS[given.name](
            self.weights, [Group(tuple(n), lr, momentum) for (_, lr, momentum), n in groups.items()],
            grad_clip=given.grad_clip,
        )  # fmt: skip
        if not optimizer.decoupled:
            self.weights.momentum = {name: g.momentum for g in optimizer.groups for name in g.names}
        return optimizer
