"""What is left of a space when the parts that cannot be trained are taken out."""

import pytest

from api.legality import legal_spec, values_with
from api.submit import default_spec
from domain.catalogue import Catalogue, PartFacts, catalogue
from domain.errors import Invalid
from domain.job import JobSpec, ResolvedSource
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
    assert values_with(legal, SCRATCH.ref, {})["regularizer"] == "any"  # the default moves to what is left


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
    assert legal_spec(spec, known, named={"distillation"}).space == spec.space
    with pytest.raises(Invalid, match="cannot stand beside"):
        legal_spec(spec_over(STARTED, regularizer=("any",), distillation=("alone",)), known, named=())


def test_other_dimensions_are_left_alone() -> None:
    spec = spec_over(STARTED)
    rate = Dimension(path="optimizer.lr_head", range=FloatRange(low=1e-3, high=1e-1, log=True, default=1e-2))
    spec = spec.model_copy(update={"space": Space(dimensions=(rate,), fixed=spec.space.fixed)})
    assert legal_spec(spec, facts(), named=()) == spec


def test_the_default_space_is_legal_as_it_is() -> None:
    spec = default_spec(catalogue())
    assert legal_spec(spec, catalogue(), named=()) == spec
