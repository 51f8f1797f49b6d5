"""Every part on a narrow, shallow member of every family of backbones: it trains there, or is refused with a reason."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from domain.catalogue import PartFacts, catalogue
from domain.lot import SourceFiles, TeacherFiles
from domain.recipe import refusals
from models.build import members
from models.facts import facts_of
from tests.toys import demanded, make_order, make_recipe, train, write_pack, write_source
from transfer.parts import every_part

PARTS = {f"{p.slot}.{p.name}": p for p in every_part()}
MINIATURES = [name for name, entry in members().items() if not entry.variant.public]
OFFERED = {"start", "source_head", "source_data", "teacher"}


class Place:
    """A miniature with everything a job can offer it."""

    def __init__(self, folder: Path, backbone: str, pack: Path, source_pack: Path) -> None:
        self.backbone, self.pack, self.source_pack = backbone, pack, source_pack
        self.source = write_source(folder / f"{backbone}.safetensors", backbone)
        taught = write_source(folder / f"{backbone}-teacher.safetensors", backbone, n_classes=3, seed=12)
        self.teacher = TeacherFiles(weights=str(taught), recipe=make_recipe(backbone))
        facts = {"parts": tuple(PARTS.values()), "backbones": (facts_of(members()[backbone]),)}
        self.catalogue = catalogue().model_copy(update=facts)


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    folder = tmp_path_factory.mktemp("families")
    pack = write_pack(folder / "pack", n_per_class=10)
    source_pack = write_pack(folder / "source_pack", n_classes=4, n_per_class=10, seed=5)
    return cache(lambda backbone: Place(folder, backbone, pack, source_pack))


@pytest.mark.parametrize("backbone", MINIATURES)
@pytest.mark.parametrize("part", PARTS)
def test_it_trains_or_is_refused(part: str, backbone: str, place_of: Callable[[str], Place], tmp_path: Path) -> None:
    facts: PartFacts = PARTS[part]
    place = place_of(backbone)
    provided = set(place.catalogue.backbones[0].provides)
    recipe = make_recipe(backbone, steps=2, **demanded(facts), **{facts.slot: (facts.name, {})})
    offered = OFFERED if "source_head" in provided else OFFERED - {"source_head"}
    refused = refusals(recipe, offered, place.catalogue)
    lacking = set(facts.needs_of({})) - offered - (provided - OFFERED)
    assert len(refused) == len(lacking)
    for refusal in refused:
        assert refusal.code == "part_needs"
        assert part in refusal.detail
    if refused:
        return
    order = make_order(recipe, place.pack, place.source, tmp_path, teacher=place.teacher, source_pack=place.source_pack)
    fit, _ = train(order)
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    assert outcome.value is not None


@pytest.mark.parametrize("backbone", MINIATURES)
def test_from_scratch_everything_that_needs_no_start_trains(
    backbone: str, place_of: Callable[[str], Place], tmp_path: Path
) -> None:
    place = place_of(backbone)
    order = make_order(make_recipe(backbone, steps=2, regularizer=("l2", {})), place.pack, place.source, tmp_path)
    trial = order.trials[0].model_copy(update={"source": SourceFiles(weights=None)})
    fit, _ = train(order.model_copy(update={"trials": (trial,)}))
    assert fit.outcome("tr_1").state == "COMPLETE"
    assert torch.get_num_threads() == 1
