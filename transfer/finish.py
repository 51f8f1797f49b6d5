"""The end of a job: the winner and the anchors meet the test split once, and the winner becomes a bundle."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from domain.catalogue import Preprocessing
from domain.errors import Invalid
from domain.job import AnchorResult, Interval, JobResult
from domain.lot import FinishCandidate, FinishOrder, FinishOutcome
from domain.recipe import Recipe
from intake.packs import Pack, open_pack
from models.build import member
from models.ensemble import Ensemble
from models.facts import preprocessing_of
from models.network import Network
from transfer import bundle, card, evaluate
from transfer.checkpoint import open_checkpoint
from transfer.evaluate import Floats, Ints, PixelNetwork

TEST = 2  # as packs number the splits


@dataclass(frozen=True)
class Examined:
    """One candidate after its only look at test."""

    candidate: FinishCandidate
    logits: Floats  # (N, C) on test
    targets: Ints  # (N,)
    items: tuple[str, ...]

    @property
    def correct(self) -> Floats:
        return evaluate.correct(self.logits, self.targets)


def finish(order: FinishOrder) -> FinishOutcome:
    """Evaluate on test, calibrate on val, compare with the anchors, export and check the bundle.

    Conflict("export_mismatch") if the exported network predicts something else; Invalid("test_empty") without test
    items. The same order gives the same numbers and the same zip.
    """
    torch.set_num_threads(order.n_threads)
    winner = examine(order.winner, order)
    anchors = [winner if a.trial_id == order.winner.trial_id else examine(a, order) for a in order.anchors]
    temperature = calibrate(order.winner)
    tests = {e.candidate.trial_id: evaluate.metrics(e.logits, e.targets) for e in [*anchors, winner]}

    folder = Path(order.scratch) / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    pack = open_pack(Path(order.winner.pack))
    recipe = order.winner.recipe
    preprocessing = preprocessing_at(recipe, pack)
    check = bundle.export(
        _network_of(order.winner, order),
        recipe=recipe, classes=order.classes, preprocessing=preprocessing, temperature=temperature,
        licence=licence_note(order), pack=pack, folder=folder, device=order.device, n_threads=order.n_threads,
    )  # fmt: skip
    export = check.facts() | {"n_near_ties_test": int(bundle.near_ties(winner.logits).sum())}
    result = account(order, winner, anchors, temperature, export)
    details = card.TestDetails(
        confusion=evaluate.confusion(winner.logits, winner.targets),
        reliability=evaluate.reliability(winner.logits, winner.targets, temperature, n_bins=10),
    )
    written = card.write_card(order, result, check, preprocessing, details)
    (folder / "model_card.md").write_text(written, "utf-8")
    bundle.write_manifest(
        folder, {"schema_version": 1, "job_id": order.job_id, "trial_id": order.winner.trial_id, "task": order.task}
    )
    path = bundle.write_zip(folder, Path(order.scratch) / "bundle.zip")
    return FinishOutcome(result=result, bundle=str(path), tests=tests)


def _network_of(candidate: FinishCandidate, order: FinishOrder) -> Network | Ensemble:
    return open_checkpoint(candidate.recipe, Path(candidate.weights), len(order.classes))


def preprocessing_at(recipe: Recipe, pack: Pack) -> Preprocessing:
    """The backbone's evaluation preprocessing, as the pack was made with."""
    native = preprocessing_of(member(recipe.backbone))
    made = {"resize": pack.resize, "crop": pack.crop, "interpolation": pack.interpolation}
    return native.model_copy(update=made)


def examine(candidate: FinishCandidate, order: FinishOrder) -> Examined:
    """The candidate's logits on test."""
    pack = open_pack(Path(candidate.pack))
    rows = np.flatnonzero(np.asarray(pack.split) == TEST)
    if len(rows) == 0:
        raise Invalid("test_empty", "the test split has no items, so nothing can be said about the result")
    network = PixelNetwork(_network_of(candidate, order), preprocessing_at(candidate.recipe, pack))
    logits = evaluate.predict(network, pack, rows, device=order.device)
    return Examined(candidate, logits, np.asarray(pack.labels[rows]), tuple(pack.ids[row] for row in rows))


def calibrate(candidate: FinishCandidate) -> float:
    """The temperature fitted on the candidate's predictions on val; 1 without any."""
    if candidate.predictions is None:
        return 1.0
    with np.load(candidate.predictions, allow_pickle=False) as saved:
        return evaluate.calibration_temperature(saved["logits"], saved["targets"])


def account(
    order: FinishOrder, winner: Examined, anchors: list[Examined], temperature: float, export: dict[str, object]
) -> JobResult:
    """The numbers of the job, all of them from predictions already made."""
    seed = order.search.seed
    measured = evaluate.metrics(winner.logits, winner.targets)
    measured["log_loss_calibrated"] = evaluate.log_loss(winner.logits / temperature, winner.targets)
    measured["ece_calibrated"] = evaluate.ece(winner.logits, winner.targets, temperature)
    compared = tuple(compare(winner, anchor, seed) for anchor in anchors)
    return JobResult(
        best_trial_id=order.winner.trial_id,
        best_number=order.winner.number,
        val=order.winner.value,
        metrics=measured,
        test_accuracy=evaluate.interval(winner.correct, seed=seed),
        n_test=len(winner.targets),
        n_test_looks=order.n_test_looks,
        selection_bias=order.winner.value - measured[order.objective.name],
        calibration_temperature=temperature,
        anchors=compared,
        verdict=verdict(order.winner.trial_id, compared, n_searched=order.search.n_searched(len(order.anchors))),
        export=export,
    )


def compare(winner: Examined, anchor: Examined, seed: int) -> AnchorResult:
    """One anchor beside the winner, paired item by item."""
    if winner.items != anchor.items:
        raise Invalid("pack_mismatch", "the winner's and the anchor's packs do not hold the same test items")
    same = winner.candidate.trial_id == anchor.candidate.trial_id
    return AnchorResult(
        name=anchor.candidate.anchor or f"trial {anchor.candidate.number}",
        trial_id=anchor.candidate.trial_id,
        number=anchor.candidate.number,
        val=anchor.candidate.value,
        test_accuracy=evaluate.interval(anchor.correct, seed=seed),
        lift=Interval(value=0, low=0, high=0) if same else evaluate.lift(winner.correct, anchor.correct, seed=seed),
    )


def verdict(winner_id: str, anchors: tuple[AnchorResult, ...], *, n_searched: int) -> str:
    """One plain sentence on whether the search helped, against the anchor that is strongest on test."""
    if not anchors:
        return "No anchor was trained, so whether the search helped is not known."
    own = next((a for a in anchors if a.trial_id == winner_id), None)
    if own is not None and n_searched == 0:
        return f"Nothing was searched: only anchors were trained within the budget, and {own.name} is the best of them."
    if own is not None:
        return f"The search did not help: no trial ranked above the anchor {own.name}, which is the result."
    best = min(anchors, key=lambda a: a.lift.value)
    points, span = f"{abs(100 * best.lift.value):.1f} points", card.points(best.lift).partition("(")[2].rstrip(")")
    against = f"the strongest anchor on test, {best.name} ({best.lift.level:.0%} interval {span})"
    if best.lift.low > 0:
        return f"The search helped: the winner is {points} above {against}."
    if best.lift.high < 0:
        return f"The search did not help: the winner is {points} below {against}."
    side = "above" if best.lift.value > 0 else "below"
    where = f"{points} {side}" if best.lift.value else "level with"
    return f"The search did not measurably help: the winner is {where} {against}, which includes zero."


def licence_note(order: FinishOrder) -> str:
    """LICENSE-WEIGHTS.txt: what is known, or that nothing is."""
    source = order.winner.recipe.source
    if source.startswith("scratch:"):
        return "Trained from scratch: there are no source weights, and no licence comes with them.\n"
    known = order.licence if order.licence != "unknown" else "not known to the installation that made this bundle"
    note = f"Source of the weights: {source}\nLicence: {known}\n"
    return note + (f"\n{order.licence_text.strip()}\n" if order.licence_text else "")
