"""What to try first on a dataset when no past job can say: recipes derived from how well the source already knows it.

    similar      the source tells the classes apart as it is: small effective learning rate, no momentum, strong L2-SP
    dissimilar   it does not: large effective learning rate, momentum, weak pull towards the start
    few          items per class: a small inner ratio, deep freezing, adapters
    many         full fine-tuning, more steps

The effective learning rate lr / (1 - momentum) of the source's weights decides: at batch 256 the best was 0.001 to 0.01
on datasets like ImageNet, 0.01 to 0.1 on birds and 0.1 to 1 on cars, aircraft and flowers, and L2-SP gained on the
first alone (Li et al., ICLR 2020, table 4; Cui et al., CVPR 2018, for the distance). Middles of these ranges, scaled
linearly to the default batch of 32 to 64 and set against a head that learns at an effective 0.1, give `INNER`. Few or
many items per class after Dube et al. 2018. Where similar and few begin is ours, and not fitted to anything: `SKILL`
is a linear probe's accuracy where 0 is guessing, `APART` the earth mover's distance in units of the distance between
the source's own classes. A small sample lowers the probe's accuracy too, so that few items look less similar.
"""

from collections.abc import Iterable

from domain.catalogue import catalogue
from domain.default_space import at_defaults
from domain.fitting import fitted
from domain.history import Meta
from domain.job import JobSpec, Values, WarmStart
from domain.space import IntRange
from domain.teaching import fixed_trials

SKILL = (0.6, 0.85)  # below the first dissimilar, from the second on similar
APART = (0.6, 1.0)  # up to the first similar, beyond the second dissimilar
FEW, MANY = 20, 200  # training items per class
INNER = {"similar": 0.01, "middling": 0.1, "dissimilar": 0.75}
ALPHA = {"similar": 0.1, "middling": 0.01, "dissimilar": 0.001}  # of L2-SP


def likeness(meta: Meta) -> str | None:
    """similar, middling or dissimilar, by the mean of what is known; None if nothing is."""
    votes = []
    if meta.skill is not None:
        votes.append((meta.skill >= SKILL[1]) - (meta.skill < SKILL[0]))
    if meta.distance is not None:
        votes.append((meta.distance <= APART[0]) - (meta.distance > APART[1]))
    if not votes:
        return None
    mean = sum(votes) / len(votes)
    return "similar" if mean > 0 else "dissimilar" if mean < 0 else "middling"


def priors(spec: JobSpec, meta: Meta) -> list[WarmStart]:
    """Up to four recipes inside the job's space, the most promising first; none where nothing is known."""
    like = likeness(meta)
    if like is None:
        return []
    base = _base(spec, like)
    known = f"a linear probe is {meta.skill or 0.0:.0%} of the way from guessing to no mistake"
    if meta.distance is not None:
        known += f", the source dataset {meta.distance:.2g} class distances away"
    wanted: list[tuple[Values, str]] = [(base, f"{like} to what the source knows: {known}")]
    count = f"{meta.per_class_mean:.0f} training items per class"
    if meta.per_class_mean < FEW:
        held = {**base, "schedule": "freeze", "schedule.freeze.depth": _deep(spec)}
        held["optimizer.inner_ratio"] = INNER["similar"]
        wanted.append((held, f"few items: {count}; only the last stages learn, and slowly"))
        wanted += [
            ({**base, "surgery": surgery}, f"few items: {count}; small adapters learn instead of the network")
            for surgery in ("residual_adapter", "adapter", "lora")
        ]
        wanted.append(({**base, "feature": "delta"}, f"few items: {count}; features are held to the source's"))
    elif meta.per_class_mean >= MANY:
        full = {**base, "regularizer": "l2", "schedule": "freeze", "schedule.freeze.depth": 0}
        inner = max(INNER["middling"], INNER[like])
        full |= {"optimizer.inner_ratio": inner, "steps": 2 * int(base["steps"])}
        wanted.append((full, f"many items: {count}; everything learns, and for longer"))
    step = {"similar": "middling", "middling": "dissimilar", "dissimilar": "middling"}[like]
    wanted.append((_base(spec, step), f"one step from {like}, should the probe mislead"))
    return _inside(spec, wanted)[:4]


def _base(spec: JobSpec, like: str) -> Values:
    """The defaults of the job's first source, with the rates and the penalty of this likeness."""
    values = at_defaults(spec, spec.sources[0].ref)
    values["optimizer.inner_ratio"] = INNER[like]
    if values.get("optimizer.name") == "sgd":  # the head's effective rate stays what it is
        values["optimizer.momentum"] = 0.0 if like == "similar" else 0.9
        rate = float(values["optimizer.lr_head"])
        values["optimizer.lr_head"] = 10 * rate if like == "similar" else rate
    if any(d.path == "regularizer.l2_sp.alpha" for d in spec.space.dimensions):
        values |= {"regularizer": "l2_sp", "regularizer.l2_sp.alpha": ALPHA[like]}
    return values


def _deep(spec: JobSpec) -> int:
    """A depth that leaves the last two stages to learn."""
    ranges = (d.range for d in spec.space.dimensions if d.path == "schedule.freeze.depth")
    return next((max(0, r.high - 2) for r in ranges if isinstance(r, IntRange)), 0)


def _inside(spec: JobSpec, wanted: Iterable[tuple[Values, str]]) -> list[WarmStart]:
    """Those that the job can train, each once, and none that it tries anyway."""
    found: list[WarmStart] = []
    known = [spec.recipe(values, seed=0) for _, values in fixed_trials(spec, catalogue())]
    for asked, why in wanted:
        values = fitted(spec.space, asked, source=spec.sources[0].ref)
        if values is None or (recipe := spec.recipe(values, seed=0)) in known or spec.refusals(recipe, catalogue()):
            continue
        known.append(recipe)
        found.append(WarmStart(values=values, why=why))
    return found
