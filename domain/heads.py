"""Recipes that train a linear head and nothing else, on what frozen stages make of the pictures: many train at once."""

from domain.recipe import Recipe
from domain.space import Choice, IntRange, Space

AT_ONCE = 16  # that are asked for, and trained, together: more would learn still less of each other
# What such recipes may differ in.
FREE: dict[str, bool | set[str]] = {
    "seed": True, "regularizer": True,
    "optimizer": {"lr_head", "inner_ratio", "stage_decay", "momentum", "grad_clip", "warmup_frac"},
    "data": {"label_smoothing"},
}  # fmt: skip


def in_closed_form(recipe: Recipe) -> bool:
    """Whether the head is solved for, on one look of each picture."""
    return recipe.schedule is not None and recipe.schedule.name == "linear_probe"


def n_frozen(recipe: Recipe, n_stages: int) -> int:
    """How many of the first stages no phase of a recipe trains."""
    schedule = recipe.schedule
    if schedule is None or schedule.name not in ("freeze", "linear_probe"):
        return 0
    return n_stages if in_closed_form(recipe) else min(n_stages, int(schedule.params.get("depth", 0)))


def cuts(space: Space) -> tuple[int, ...]:
    """After how many stages `schedule.freeze` may cut a network in this space."""
    path = "schedule.freeze.depth"
    searched = next((d.range for d in space.dimensions if d.path == path), None)
    if isinstance(searched, IntRange):
        return tuple(range(searched.low, searched.high + 1))
    options = searched.options if isinstance(searched, Choice) else [space.fixed[path]] if path in space.fixed else []
    return tuple(sorted(int(depth) for depth in options))


def head_key(recipe: Recipe, n_stages: int) -> str | None:
    """What recipes must share so that their heads can be trained together; None if this one trains more than a head,
    or shows the head a new look of every picture in every epoch. `n_stages` are those of the backbone."""
    schedule, data = recipe.schedule, recipe.data
    head_only = schedule is not None and schedule.name == "freeze" and n_frozen(recipe, n_stages) == n_stages
    few_looks = data.views > 0 or (data.augmentation == 0 and not data.flip)
    plain = recipe.parts.keys() <= {"schedule", "regularizer"} and recipe.head.kind == "linear"
    descent = recipe.optimizer.name == "sgd" and data.mixup_alpha == 0 and data.fraction == 1
    if not (head_only and few_looks and plain and descent) or recipe.source.startswith("scratch:"):
        return None
    return recipe.model_dump_json(exclude=FREE)
