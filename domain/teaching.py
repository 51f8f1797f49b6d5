"""Teachers that a job trains itself, and the fixed recipes that it runs before it searches."""

from domain.catalogue import Catalogue
from domain.default_space import MIN_STEPS, anchors
from domain.job import JobSpec, Values
from domain.recipe import SLOTS, Recipe

TEACHER = "teacher"  # name of the fixed recipe that fine-tunes a source which then teaches
N_ENSEMBLE = 3
TEACHER_SHARE = 0.25  # of a budget of time that making a teacher may cost


def needs(recipe: Recipe, catalogue: Catalogue) -> frozenset[str]:
    """All that the parts of a recipe need, those needs that one value of a param brings included."""
    parts = recipe.parts.items()
    return frozenset(need for slot, part in parts for need in catalogue.part(slot, part.name).needs_of(part.params))


def fixed_trials(spec: JobSpec, catalogue: Catalogue) -> list[tuple[str, Values]]:
    """The named recipes that a job runs first, in their order: its anchors, and the trial that makes its teacher.

    None of them is taught: a part that the job has fixed for all trials is left out of those that train the teacher.
    """
    found = anchors(spec) if spec.anchors else []
    if spec.teacher is not None and spec.teacher.kind == "source":
        found = [*found, (TEACHER, dict(spec.teacher.values))]
    return [(name, untaught(spec, values, catalogue)) for name, values in found]


def untaught(spec: JobSpec, values: Values, catalogue: Catalogue) -> Values:
    """`values` without the parts that learn from a teacher."""
    recipe = spec.recipe(values, seed=0)
    taught = {slot for slot in SLOTS if "teacher" in needs(_alone(recipe, slot), catalogue)}
    return {path: value for path, value in values.items() if path.partition(".")[0] not in taught}


def without_teacher(recipe: Recipe, catalogue: Catalogue) -> Recipe:
    """The recipe without the parts that learn from a teacher."""
    taught = [slot for slot in SLOTS if "teacher" in needs(_alone(recipe, slot), catalogue)]
    return recipe.model_copy(update=dict.fromkeys(taught))


def teacher_values(spec: JobSpec) -> Values:
    """Plain fine-tuning at the defaults of a job that has the teacher's source alone."""
    named = dict(anchors(spec))
    return named.get("fine_tuning") or next(iter(named.values()))


def teacher_in_time(spec: JobSpec, s_per_trial: float) -> JobSpec:
    """The job with fewer steps for its teacher, if training that (`s_per_trial`, as probed) would eat up its time."""
    teacher, wall_s = spec.teacher, spec.budget.wall_s
    if teacher is None or teacher.kind != "source" or wall_s is None or "steps" in spec.chosen:
        return spec
    share = TEACHER_SHARE * wall_s / max(s_per_trial, 1e-9)
    if share >= 1:
        return spec
    values = {**teacher.values, "steps": max(MIN_STEPS, round(float(teacher.values["steps"]) * share))}
    return spec.model_copy(update={"teacher": teacher.model_copy(update={"values": values})})


def _alone(recipe: Recipe, slot: str) -> Recipe:
    """The recipe with the part of one slot alone."""
    return recipe.model_copy(update=dict.fromkeys(s for s in SLOTS if s != slot))
