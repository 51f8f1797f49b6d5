"""The end of a job: a winner is elected on val, meets test once beside the anchors, and becomes a bundle."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from domain.errors import Invalid
from domain.job import AnchorResult, FrontPoint, Interval, JobResult
from domain.lot import FinishCandidate, FinishOrder, FinishOutcome
from intake.packs import open_pack
from models.ensemble import Ensemble
from models.network import Network
from transfer import bundle, card, evaluate, summary
from transfer.checkpoint import open_checkpoint, preprocessing_at
from transfer.election import Elected, elect
from transfer.evaluate import Floats, Ints, PixelNetwork

TEST = 2  # as packs number the splits


@dataclass(frozen=True)
class Examined:
    """One candidate after its only look at test."""

    candidate: FinishCandidate
    logits: Floats  # (N, C) on test
    targets: Ints  # (N,)
    items: tuple[bytes, ...]

    @property
    def correct(self) -> Floats:
        return evaluate.correct(self.logits, self.targets)


def finish(order: FinishOrder, alive: Callable[[], None] | None = None) -> FinishOutcome:
    """Elect the winner, evaluate on test, calibrate on val, compare with the anchors, export and check the bundle.
    `alive` is called as it goes on.

    Conflict("export_mismatch") if the exported network predicts something else; Invalid("test_empty") without test
    items. The same order gives the same numbers and the same zip.
    """
    torch.set_num_threads(order.n_threads)
    Path(order.scratch).mkdir(parents=True, exist_ok=True)
    elected = elect(order, alive)
    order = order.model_copy(update={"winner": elected.winner})
    winner = examine(order.winner, order, alive)
    anchors = [winner if _same(a, order.winner) else examine(a, order, alive) for a in order.anchors]
    temperature = calibrate(order.winner)
    singles = [e for e in (*anchors, winner) if e.candidate.combined is None]
    tests = {e.candidate.trial_id: evaluate.metrics(e.logits, e.targets) for e in singles}

    folder = Path(order.scratch) / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    pack = open_pack(Path(order.winner.pack))
    recipe = order.winner.recipe
    preprocessing = preprocessing_at(recipe, pack)
    check = bundle.export(
        _network_of(order.winner, order),
        recipe=recipe, members=[m.model_dump(mode="json", exclude={"weights"}) for m in order.winner.members],
        classes=order.classes, preprocessing=preprocessing, temperature=temperature,
        licence=licence_note(order), pack=pack, folder=folder, device=order.device, n_threads=order.n_threads,
    )  # fmt: skip
    export = check.facts() | {"n_near_ties_test": int(bundle.near_ties(winner.logits).sum())}
    result = account(order, elected, winner, anchors, temperature, export)
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
    n_classes = len(order.classes)
    if candidate.combined != "ensemble":
        return open_checkpoint(candidate.recipe, Path(candidate.weights), n_classes)
    members = [open_checkpoint(m.recipe, Path(m.weights), n_classes) for m in candidate.members]
    return Ensemble(members, [m.share for m in candidate.members]).eval()


def _same(one: FinishCandidate, other: FinishCandidate) -> bool:
    """Whether two candidates are one network; a combination is none of its trials."""
    return one.trial_id == other.trial_id and one.combined is None and other.combined is None


def _is(point: FrontPoint, winner: FinishCandidate) -> bool:
    """Whether this trial is handed back as it is."""
    return winner.combined is None and point.trial_id == winner.trial_id


def examine(candidate: FinishCandidate, order: FinishOrder, alive: Callable[[], None] | None = None) -> Examined:
    """The candidate's logits on test."""
    pack = open_pack(Path(candidate.pack))
    rows = np.flatnonzero(np.asarray(pack.split) == TEST)
    if len(rows) == 0:
        raise Invalid("test_empty", "the test split has no items, so nothing can be said about the result")
    network = PixelNetwork(_network_of(candidate, order), preprocessing_at(candidate.recipe, pack))
    logits = evaluate.predict(network, pack, rows, device=order.device, alive=alive)
    return Examined(candidate, logits, np.asarray(pack.labels[rows]), tuple(pack.ids[rows].tolist()))


def calibrate(candidate: FinishCandidate) -> float:
    """The temperature fitted on the candidate's predictions on val; 1 without any."""
    if candidate.predictions is None:
        return 1.0
    with np.load(candidate.predictions, allow_pickle=False) as saved:
        return evaluate.calibration_temperature(saved["logits"], saved["targets"])


def account(
    order: FinishOrder, elected: Elected, winner: Examined, anchors: list[Examined], temperature: float,
    export: dict[str, object],
) -> JobResult:  # fmt: skip
    """The numbers of the job, all of them from predictions already made."""
    seed = order.search.seed
    measured = evaluate.metrics(winner.logits, winner.targets)
    measured["log_loss_calibrated"] = evaluate.log_loss(winner.logits / temperature, winner.targets)
    measured["ece_calibrated"] = evaluate.ece(winner.logits, winner.targets, temperature)
    compared = tuple(compare(winner, anchor, seed) for anchor in anchors)
    result = JobResult(
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
        verdict=verdict(order.winner, compared, n_searched=order.search.n_searched, passed_over=elected.passed_over),
        importance=order.search.importance,
        combined=elected.combined,
        confirmed=order.confirmed,
        front=tuple(p.model_copy(update={"chosen": _is(p, order.winner)}) for p in order.front),
        export=export,
    )
    return result.model_copy(update={"summary": summary.sentences(order, elected, result)})


def compare(winner: Examined, anchor: Examined, seed: int) -> AnchorResult:
    """One anchor beside the winner, paired item by item."""
    if winner.items != anchor.items:
        raise Invalid("pack_mismatch", "the winner's and the anchor's packs do not hold the same test items")
    same = _same(winner.candidate, anchor.candidate)
    return AnchorResult(
        name=anchor.candidate.anchor or f"trial {anchor.candidate.number}",
        trial_id=anchor.candidate.trial_id,
        number=anchor.candidate.number,
        val=anchor.candidate.value,
        test_accuracy=evaluate.interval(anchor.correct, seed=seed),
        lift=Interval(value=0, low=0, high=0) if same else evaluate.lift(winner.correct, anchor.correct, seed=seed),
    )


def verdict(
    winner: FinishCandidate, anchors: tuple[AnchorResult, ...], *, n_searched: int,
    passed_over: FinishCandidate | None = None,
) -> str:  # fmt: skip
    """One plain sentence on whether the search helped, against the anchor that is strongest on test."""
    if not anchors:
        return "No anchor was trained, so whether the search helped is not known."
    own = next((a for a in anchors if a.trial_id == winner.trial_id and winner.combined is None), None)
    if own is not None and passed_over is not None:
        return (
            f"The search did not help: trial {passed_over.number} ranked above the anchor {own.name} on val by no more "
            "than chance would, so the anchor is the result."
        )
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
    """LICENSE-WEIGHTS.txt: what is known of every source in the bundle, or that nothing is."""
    sources = card.sources_of(order.winner)
    if not sources:
        return "Trained from scratch: there are no source weights, and no licence comes with them.\n"
    known = {source: order.licences.get(source, "unknown") for source in sources}
    unknown = "not known to the installation that made this bundle"
    note = "\n".join(
        f"Source of the weights: {source}\nLicence: {unknown if licence == 'unknown' else licence}\n"
        for source, licence in known.items()
    )
    return note + (f"\n{order.licence_text.strip()}\n" if order.licence_text else "")
