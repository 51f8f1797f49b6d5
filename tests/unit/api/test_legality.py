"""What is left of a space when the parts that cannot be trained are taken out."""

from typing import Any

import pytest

from api.legality import legal_spec
from api.submit import default_spec
from domain.catalogue import Catalogue, PartFacts, catalogue
from domain.default_space import at_defaults
from domain.errors import Invalid
from domain.job import JobSpec, ResolvedSource
from domain.recipe import SLOTS
from domain.space import Choice, Dimension, FloatRange, Space

SCRATCH = ResolvedSource(ref="scratch:smallnet", backbone="smallnet", kind="scratch")
STARTED = ResolvedSource(ref="torchvision:resnet18", backbone="resnet18", kind="torchvision")


def facts(*parts: PartFacts) -> Catalogue:
    return catalogue().model_copy(update={"parts": parts})


def spec_over(*sources: ResolvedSource, **slots: tuple[str, ...]) -> JobSpec:
    """A job that searches nothing but how to fill these slots."""
    dimensions = [Dimension(path="source", range=Choice(options=tuple(s.ref for s in sources), default=sources[0].ref))]
    dimensions += [Dimension(path=s, range=Choice(options=names, default=names[0])) for s, names in slots.items()]
    resolution = {"scratch:smallnet": 32, "torchvision:resnet18": 224}[sources[0].ref]
    space = Space(dimensions=tuple(dimensions), fixed={"data.resolution": resolution})
    return default_spec(catalogue()).model_copy(update={"sources": sources, "space": space})


ANY = PartFacts(slot="regularizer", name="any", summary="")
START = PartFacts(slot="regularizer", name="start", summary="", needs=("start",))
TEACHER = PartFacts(slot="distillation", name="taught", summary="", needs=("teacher",))
HEAD = PartFacts(slot="feature", name="own_classes", summary="", needs=("source_head",))
CLASHES = PartFacts(slot="distillation", name="alone", summary="", clashes=("regularizer",))


def options(spec: JobSpec, path: str) -> tuple[object, ...]:
    found = next(d.range for d in spec.space.dimensions if d.path == path)
    assert isinstance(found, Choice)
    return found.options


def test_what_no_source_can_take_is_left_out() -> None:
    spec = spec_over(SCRATCH, regularizer=("start", "any", "none"))
    legal = legal_spec(spec, facts(ANY, START), named=())
    assert options(legal, "regularizer") == ("any", "none")
    assert at_defaults(legal, SCRATCH.ref)["regularizer"] == "any"  # the default moves to what is left


def test_what_one_source_can_take_stays() -> None:
    spec = spec_over(STARTED, regularizer=("start", "none"))
    assert options(legal_spec(spec, facts(START), named=()), "regularizer") == ("start", "none")


def test_what_was_named_is_refused_instead() -> None:
    spec = spec_over(SCRATCH, regularizer=("start", "any"))
    with pytest.raises(Invalid) as caught:
        legal_spec(spec, facts(ANY, START), named={"regularizer"})
    assert caught.value.code == "recipe_refused"
    (refusal,) = caught.value.facts["refusals"]
    assert refusal["detail"].startswith("regularizer.start needs start")


def test_nothing_left_is_a_refusal() -> None:
    with pytest.raises(Invalid, match="needs teacher"):
        legal_spec(spec_over(STARTED, distillation=("taught",)), facts(TEACHER), named=())


def test_a_head_is_the_sources_to_offer_not_the_backbones() -> None:
    """Published weights have their head; the same network from scratch, or registered without one, has none."""
    resnet18 = catalogue().backbone("resnet18")
    able = resnet18.model_copy(update={"provides": (*resnet18.provides, "source_head")})
    known = facts(HEAD).model_copy(update={"backbones": (able,)})
    headless = STARTED.model_copy(update={"ref": "src_1", "kind": "registered"})
    with pytest.raises(Invalid, match="needs source_head"):
        legal_spec(spec_over(STARTED.model_copy(update={"n_classes": 0}), feature=("own_classes",)), known, named=())
    both = spec_over(STARTED.model_copy(update={"n_classes": 1000}), headless, feature=("own_classes", "none"))
    legal = legal_spec(both, known, named=())
    assert options(legal, "feature") == ("own_classes", "none")
    assert "source_head" not in legal.provided_by("src_1")


def test_a_clash_is_no_refusal_while_there_is_a_way_round_it() -> None:
    known = facts(ANY, CLASHES)
    spec = spec_over(STARTED, regularizer=("any", "none"), distillation=("alone",))
    legal = legal_spec(spec, known, named={"distillation"})
    assert (options(legal, "regularizer"), options(legal, "distillation")) == (("none",), ("alone",))
    with pytest.raises(Invalid, match="cannot stand beside"):
        legal_spec(spec_over(STARTED, regularizer=("any",), distillation=("alone",)), known, named=())


def many(slot: str, n: int, **said: Any) -> tuple[PartFacts, ...]:
    return tuple(PartFacts(slot=slot, name=f"{slot}{i}", summary="", **said) for i in range(n))


def test_one_legal_recipe_is_found_among_many_more_that_are_not() -> None:
    """9^6 ways to fill the slots, of which one is legal, and the search says so without trying them all."""
    slots = [slot for slot in SLOTS if slot != "averaging"]
    parts = [part for slot in slots for part in many(slot, 8, clashes=("averaging",))]
    last = PartFacts(slot="averaging", name="last", summary="")
    wanted = {slot: (*(p.name for p in parts if p.slot == slot), "none") for slot in slots}
    legal = legal_spec(spec_over(STARTED, **wanted, averaging=("last",)), facts(*parts, last), named={"averaging"})
    assert {options(legal, slot) for slot in slots} == {("none",)}
    del wanted["sampling"]
    without_none = wanted | {"sampling": tuple(p.name for p in parts if p.slot == "sampling")}
    with pytest.raises(Invalid, match=r"sampling\.sampling0 cannot stand beside averaging"):
        legal_spec(spec_over(STARTED, **without_none, averaging=("last",)), facts(*parts, last), named={"averaging"})


def test_three_that_only_clash_together_are_refused() -> None:
    """Each pair of slots has a legal pair of parts, and no recipe fills all three."""

    def part(slot: str, name: str, *clashes: str) -> PartFacts:
        return PartFacts(slot=slot, name=name, summary="", clashes=clashes)

    known = facts(
        part("surgery", "a", "regularizer.x"), part("surgery", "b", "regularizer.y"),
        part("regularizer", "x", "feature.v"), part("regularizer", "y", "feature.u"),
        part("feature", "u", "surgery.b"), part("feature", "v", "surgery.a"),
    )  # fmt: skip
    slots = {"surgery": ("a", "b"), "regularizer": ("x", "y"), "feature": ("u", "v")}
    # a needs y, y needs v, and v refuses a; b needs x, x needs u, and u refuses b.
    with pytest.raises(Invalid, match="cannot stand beside"):
        legal_spec(spec_over(STARTED, **slots), known, named=())
    found = legal_spec(spec_over(STARTED, **{**slots, "feature": ("u", "v", "none")}), known, named=())
    assert options(found, "feature") == ("none",)


def test_a_setting_that_a_certain_part_does_not_work_with_is_left_out_or_refused() -> None:
    picky = PartFacts(slot="schedule", name="picky", summary="", demands={"head.kind": ("linear",)})
    kinds = Dimension(path="head.kind", range=Choice(options=("mlp", "linear"), default="mlp"))
    spec = spec_over(STARTED, schedule=("picky",))
    space = spec.space.model_copy(update={"dimensions": (*spec.space.dimensions, kinds)})
    spec = spec.model_copy(update={"space": space})
    assert options(legal_spec(spec, facts(picky), named=()), "head.kind") == ("linear",)
    with pytest.raises(Invalid, match=r"picky works with head\.kind = linear, and this is 'mlp'"):
        legal_spec(spec, facts(picky), named={"head.kind"})


def test_other_dimensions_are_left_alone() -> None:
    spec = spec_over(STARTED)
    rate = Dimension(path="optimizer.lr_head", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2))
    spec = spec.model_copy(update={"space": Space(dimensions=(rate,), fixed=spec.space.fixed)})
    assert legal_spec(spec, facts(), named=()) == spec


def test_the_default_space_is_legal_as_it_is() -> None:
    spec = default_spec(catalogue())
    assert legal_spec(spec, catalogue(), named=()) == spec
