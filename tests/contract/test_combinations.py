"""Parts together: any regularizer, feature loss, distillation, schedule, surgery, sampling and averaging train in one
fit, or the recipe is refused with the reason. Every legal pair of parts appears in some recipe (all pairs)."""

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from domain.catalogue import Catalogue, PartFacts, catalogue
from domain.lot import TeacherFiles
from domain.recipe import Recipe, refusals
from models.build import members
from models.facts import facts_of
from tests.toys import demanded, make_order, make_recipe, train, write_pack, write_source
from transfer.parts import every_part

BACKBONES = ("tiny_resnet", "tiny_vit")
OFFERED = {"start", "source_head", "source_data", "teacher"}
PARTS = {f"{p.slot}.{p.name}": p for p in every_part()}
MODELS = {
    name: catalogue().model_copy(update={"parts": tuple(PARTS.values()), "backbones": (facts_of(members()[name]),)})
    for name in BACKBONES
}


def recipe_of(backbone: str, parts: tuple[PartFacts, ...]) -> Recipe:
    return make_recipe(backbone, steps=3, **demanded(*parts), **{p.slot: (p.name, {}) for p in parts})


def legal(backbone: str, parts: tuple[PartFacts, ...], known: Catalogue) -> bool:
    return not refusals(recipe_of(backbone, parts), OFFERED, known)


def covering(backbone: str) -> Iterator[tuple[PartFacts, ...]]:
    """Legal recipes that together hold every legal pair; each is filled up greedily with pairs not seen yet."""
    known = MODELS[backbone]
    pairs = {
        frozenset((a, b)) for (a, one), (b, other) in combinations(PARTS.items(), 2)
        if one.slot != other.slot and legal(backbone, (one, other), known)
    }  # fmt: skip
    rng = np.random.default_rng(0)
    while pairs:
        chosen: list[str] = sorted(sorted(map(sorted, pairs))[0])
        for name in rng.permutation(sorted(PARTS)):
            slots = {PARTS[c].slot for c in chosen}
            is_new = PARTS[name].slot not in slots and any(frozenset((name, c)) in pairs for c in chosen)
            if is_new and legal(backbone, tuple(PARTS[c] for c in (*chosen, name)), known):
                chosen.append(str(name))
        pairs -= {frozenset(pair) for pair in combinations(chosen, 2)}
        yield tuple(PARTS[c] for c in chosen)


RECIPES = [(backbone, parts) for backbone in BACKBONES for parts in covering(backbone)]


@pytest.fixture(scope="module")
def order_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    folder = tmp_path_factory.mktemp("combinations")
    pack = write_pack(folder / "pack", n_per_class=10)
    source_pack = write_pack(folder / "source_pack", n_classes=4, n_per_class=10, seed=5)
    sources, teachers = {}, {}
    for backbone in BACKBONES:
        sources[backbone] = write_source(folder / f"{backbone}.safetensors", backbone)
        taught = write_source(folder / f"{backbone}-teacher.safetensors", backbone, n_classes=3, seed=12)
        teachers[backbone] = TeacherFiles(weights=str(taught), recipe=make_recipe(backbone))

    def make(recipe: Recipe, scratch: Path) -> object:
        return make_order(
            recipe, pack, sources[recipe.backbone], scratch, teacher=teachers[recipe.backbone], source_pack=source_pack
        )

    return make


@pytest.mark.parametrize(
    ("backbone", "parts"), RECIPES, ids=["+".join(p.name for p in parts) + f"@{b}" for b, parts in RECIPES]
)
def test_it_trains(
    backbone: str, parts: tuple[PartFacts, ...], order_of: Callable[..., object], tmp_path: Path
) -> None:
    fit, reports = train(order_of(recipe_of(backbone, parts), tmp_path))  # type: ignore[arg-type]
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    assert outcome.value is not None
    assert all(np.isfinite(v) for report in reports for v in report.terms.values())


def test_what_makes_no_sense_is_refused_with_the_reason() -> None:
    known = MODELS["tiny_resnet"]
    for one, other in combinations(PARTS.values(), 2):
        if one.slot == other.slot or legal("tiny_resnet", (one, other), known):
            continue
        reasons = refusals(recipe_of("tiny_resnet", (one, other)), OFFERED, known)
        assert all(reason.detail.count(".") >= 1 for reason in reasons)
        assert {reason.code for reason in reasons} <= {"part_needs", "parts_clash"}
