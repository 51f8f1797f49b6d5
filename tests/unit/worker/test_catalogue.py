"""The committed catalogue says what the code says."""

from domain.catalogue import Catalogue
from worker.catalogue import FILE, build_catalogue, render


def test_the_committed_catalogue_is_fresh() -> None:
    assert FILE.read_text("utf-8") == render(build_catalogue()), "run `make catalogue`"


def test_it_reads_back_as_it_was_written() -> None:
    built = build_catalogue()
    assert Catalogue.model_validate_json(render(built)) == built


def test_objectives_are_metrics_and_no_miniature_is_offered() -> None:
    built = build_catalogue()
    assert built.task("classification").objectives == ("accuracy", "log_loss", "macro_f1", "balanced_accuracy", "auc")
    assert not [b.name for b in built.backbones if b.name.startswith("tiny_")]
