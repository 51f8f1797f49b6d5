"""Which sampler for which search, and which searches a sampler cannot do."""

from domain.errors import Invalid
from domain.space import Choice, Space

ONE_OBJECTIVE = ("cmaes", "hazero", "pshe2", "pshe2_paddlehub")
NUMBERS_ALONE = ("cmaes", "hazero")  # move the numbers that every recipe has, and draw all else at random
FEW = 8  # trials before a model of the objective says anything
GP_AT_MOST = 100  # trials: beyond, a proposal costs seconds and is no better
MANY = 500  # trials from which a population has the generations it needs


def choose(space: Space, *, n_trials: int | None, n_objectives: int = 1) -> tuple[str, str]:
    """The sampler for a search, and why, in one sentence. `n_trials` is None where only time limits the search."""
    free = [d for d in space.dimensions if not (isinstance(d.range, Choice) and len(d.range.options) == 1)]
    conditional = [d for d in free if not d.active(space.fixed)]
    options = [d for d in free if isinstance(d.range, Choice)]
    many = n_trials is not None and n_trials >= MANY
    if n_trials is not None and n_trials <= FEW:
        return "qmc", f"{n_trials} trials are too few to learn from; spread evenly, they see most of the space"
    if n_objectives > 1:
        if many:
            return "nsga2", f"{n_objectives} objectives and {n_trials} trials: enough for a population to breed"
        return "tpe", f"{n_objectives} objectives: densities learn a front from fewer trials than a population"
    if conditional:
        what = f"{len(conditional)} of {len(free)} dimensions are searched only with some choices"
        return "tpe", f"{what}, and it has a density for each branch"
    if options:
        return "tpe", f"{len(options)} of {len(free)} dimensions are choices, whose densities need no order"
    if n_trials is not None and n_trials <= GP_AT_MOST:
        return "gp", f"{len(free)} numbers and {n_trials} trials: a Gaussian process makes the most of few trials"
    if many and len(free) > 1:
        return "cmaes", f"{len(free)} numbers and {n_trials} trials: enough to learn how they depend on each other"
    return "tpe", "the number of trials favours no special method"


def check_sampler(name: str, space: Space, *, n_objectives: int) -> None:
    """Refuse a search that the sampler cannot do."""
    if n_objectives > 1 and name in ONE_OBJECTIVE:
        detail = f"{name} follows one objective; take tpe or nsga2 for {n_objectives}, or name one objective"
        raise Invalid("sampler_one_objective", detail, sampler=name)
    moved = [d for d in space.dimensions if not isinstance(d.range, Choice) and d.active(space.fixed)]
    if name in NUMBERS_ALONE and not moved:
        detail = f"{name} moves numbers, and this search has none that every recipe has; take tpe"
        raise Invalid("sampler_without_numbers", detail, sampler=name)
