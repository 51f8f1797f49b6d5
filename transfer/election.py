"""What a job hands back: its best trial, its best anchor, or a combination of its best trials. Decided on val alone.

1. The best of many on val is partly the luckiest. A searched trial takes the place of the best anchor only if its
   paired edge over it holds (`transfer.edges`); otherwise the anchor, which nothing was tuned for, is handed back.
2. A soup (one network, as fast as its members), then an ensemble (M networks, M times as slow) of the best trials each
   replace what stands before them only if their edge over it holds as well. Where there is a choice, it is made by
   cross-fitting: chosen on one half of the items (stratified), judged on the other, and the other way round, so that
   no item that helped to choose a combination speaks for it. The single that they must beat was chosen on all of val,
   which flatters it: the rule is on the careful side. What is handed back is chosen once more, on all items.

A soup's predictions are real ones (`transfer.mixing`). Networks that were closed over train + val have no items left
that could judge the mean of their weights: with folds there are ensembles alone, of the predictions that the folds held
out.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from domain.catalogue import Preprocessing
from domain.job import SMALLER_IS_BETTER, Combined, CombinedKind
from domain.lot import FinishCandidate, FinishOrder, MemberFiles
from intake.packs import open_pack
from models.weights import save_weights
from transfer import evaluate
from transfer.checkpoint import preprocessing_at
from transfer.combining import ensemble, soup
from transfer.edges import calibrated, measure, paired_edge
from transfer.evaluate import Floats, Ints
from transfer.mixing import Mixer, same_shape

TINIEST = 1e-30  # probability, below which a logarithm is cut off
N_ROUNDS = 20  # of the greedy choice of an ensemble; shares are multiples of at least 1/20


class Vote(NamedTuple):
    """A candidate's stored predictions on val, folds pooled."""

    rows: Ints  # (n,) of the pack, rising
    logits: Floats  # (n, C)
    targets: Ints  # (n,)


class Elected(NamedTuple):
    winner: FinishCandidate  # a combination, or the single
    single: FinishCandidate
    combined: tuple[Combined, ...] = ()
    passed_over: FinishCandidate | None = None  # the searched trial that did not beat the anchor by enough
    beat_anchor: bool = False  # whether the single is a searched trial whose edge over the best anchor holds


def elect(order: FinishOrder, alive: Callable[[], None] | None = None) -> Elected:
    """The winner, and which combinations stood for election. `alive` is called as networks look at val."""
    votes = _votes(order)
    best_anchor = _best_anchor(order, votes)
    single = order.winner if best_anchor is None else against(best_anchor, order, votes)
    compared = best_anchor is not None and order.winner.anchor is None
    passed_over = order.winner if compared and single is best_anchor else None
    found = Elected(single, single, (), passed_over, compared and passed_over is None)
    if single.trial_id not in votes or not single.eligible:  # nobody keeps the limits: nothing is joined to that
        return found
    standing, before = single, votes[single.trial_id].logits
    told: list[Combined] = []
    for kind in order.combining:
        stood = (
            _soup(order, single, before, votes, alive) if kind == "soup" else _ensemble(order, single, before, votes)
        )
        if stood is None:
            continue
        told.append(stood[1])
        if stood[0] is not None:
            standing, before = stood[0], _read(stood[0]).logits
    return found._replace(winner=standing, combined=tuple(told))


def _best_anchor(order: FinishOrder, votes: Mapping[str, Vote]) -> FinishCandidate | None:
    """The anchor that a winner has to beat; None where nothing can be compared."""
    anchors = [a for a in order.anchors if a.eligible and a.trial_id in votes]
    if order.winner.trial_id not in votes or not anchors:
        return None
    return (min if order.objective.name in SMALLER_IS_BETTER else max)(anchors, key=lambda a: a.value)


def against(best: FinishCandidate, order: FinishOrder, votes: Mapping[str, Vote]) -> FinishCandidate:
    """The winner by value, or the best anchor if that is not beaten by enough."""
    winner = order.winner
    if winner.anchor is not None:
        return winner
    recipe = [c for c in (winner, *order.others) if _recipe_of(c) == _recipe_of(winner) and c.trial_id in votes]
    ours, theirs = [votes[c.trial_id].logits for c in recipe], [votes[best.trial_id].logits]
    edge = paired_edge(order.objective.name, ours, theirs, votes[best.trial_id].targets, seed=order.search.seed)
    return winner if edge.holds else best


def _recipe_of(candidate: FinishCandidate) -> int:
    return candidate.number if candidate.of is None else candidate.of


def _votes(order: FinishOrder) -> dict[str, Vote]:
    """The predictions of those candidates that were ranked on the very items of the winner."""
    read = {c.trial_id: _read(c) for c in (order.winner, *order.anchors, *order.others) if c.predictions is not None}
    first = next(iter(read.values()), None)
    return {trial: v for trial, v in read.items() if first and len(v.rows) and np.array_equal(v.rows, first.rows)}


def _read(candidate: FinishCandidate) -> Vote:
    assert candidate.predictions is not None
    with np.load(candidate.predictions, allow_pickle=False) as saved:
        place = np.argsort(saved["rows"])  # folds are stored one after the other
        return Vote(saved["rows"][place], saved["logits"][place], saved["targets"][place])


# --- combinations


class Bench(NamedTuple):
    """What a combination may be made of, the single first, and how it is judged."""

    objective: str
    parts: list[FinishCandidate]
    logits: list[Floats]  # (n, C) each
    targets: Ints
    rows: Ints

    def value(self, logits: Floats, rows: NDArray[np.bool_]) -> float:
        """The objective over some of the items; larger is better."""
        found = measure(self.objective, logits[rows], self.targets[rows])
        return -found if self.objective in SMALLER_IS_BETTER else found


def _bench(order: FinishOrder, parts: list[FinishCandidate], votes: Mapping[str, Vote]) -> Bench:
    """The first of `parts`; of those that predict the very same (a closed form with two seeds) one alone."""
    able = [part for part in parts if part.trial_id in votes and part.eligible]
    places = {votes[part.trial_id].logits.tobytes(): place for place, part in reversed(list(enumerate(able)))}
    chosen = [able[place] for place in sorted(places.values())][: order.n_members]
    vote = votes[chosen[0].trial_id]
    logits = [votes[part.trial_id].logits for part in chosen]
    return Bench(order.objective.name, chosen, logits, vote.targets, vote.rows)


def _everybody(order: FinishOrder, single: FinishCandidate) -> list[FinishCandidate]:
    """Every candidate once, the single first, then by value on val."""
    sign = 1 if order.objective.name in SMALLER_IS_BETTER else -1
    others = sorted((order.winner, *order.others, *order.anchors), key=lambda c: (sign * c.value, c.number))
    return list({c.trial_id: c for c in (single, *others)}.values())


def halves(targets: Ints, seed: int = 0) -> NDArray[np.bool_]:
    """(n,) True for one half of the items, the same part of every class to within one item."""
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    first = np.zeros(len(targets), bool)
    first[order[::2]] = True
    return first


def _soup(
    order: FinishOrder,
    single: FinishCandidate,
    before: Floats,
    votes: Mapping[str, Vote],
    alive: Callable[[], None] | None,
) -> tuple[FinishCandidate | None, Combined] | None:
    """The greedy soup of all that can be mixed with the single; None where nothing can."""
    if order.search.n_folds > 1 or single.recipe.source.startswith("scratch:"):
        return None  # trained from scratch twice, networks have no start in common
    bench = _bench(order, [c for c in _everybody(order, single) if same_shape(c, single)], votes)
    mixer = Mixer(bench.parts, bench.logits, bench.rows, n_classes=len(order.classes), device=order.device, alive=alive)
    if len(bench.parts) < 2 or not mixer.fits:
        return None

    def choose(rows: NDArray[np.bool_]) -> tuple[int, ...]:
        def worth(places: tuple[int, ...]) -> float:
            return bench.value(mixer.predict(places), rows)

        return soup.select([worth((place,)) for place in range(len(bench.parts))], worth)[0]

    first = halves(bench.targets, order.search.seed)
    judged = np.where(first[:, None], mixer.predict(choose(~first)), mixer.predict(choose(first)))
    places = choose(np.ones(len(first), bool))
    entry = _entry(order, "soup", bench, places, judged, before)
    if not entry.taken:
        return None, entry
    weights = Path(order.scratch) / "soup.safetensors"
    save_weights(mixer.mix(places), weights, durable=False)
    shares = np.bincount(places, minlength=len(bench.parts)) / len(places)
    made = _candidate(order, single, entry, bench, places, shares, mixer.predict(places), judged)
    return made.model_copy(update={"weights": str(weights), "recipe": bench.parts[places[0]].recipe}), entry


def _ensemble(
    order: FinishOrder, single: FinishCandidate, before: Floats, votes: Mapping[str, Vote]
) -> tuple[FinishCandidate | None, Combined] | None:
    """The ensemble of those that see the same pixels as the single; None where there is no other."""
    name, seen = order.objective.name, _pixels(single)
    bench = _bench(order, [c for c in _everybody(order, single) if _pixels(c) == seen], votes)
    if len(bench.parts) < 2:
        return None
    shares, judged = ballot(name, bench.logits, before, bench.targets, seed=order.search.seed)
    places = tuple(sorted(np.flatnonzero(shares).tolist(), key=lambda place: -shares[place]))
    entry = _entry(order, "ensemble", bench, places, judged, before)
    if not entry.taken:
        return None, entry
    made = _candidate(order, single, entry, bench, places, shares, _mixed(bench.logits, shares), judged)
    return made.model_copy(update={"recipe": bench.parts[places[0]].recipe}), entry


def _pixels(candidate: FinishCandidate) -> Preprocessing:
    return preprocessing_at(candidate.recipe, open_pack(Path(candidate.pack)))


def ballot(
    objective: str, logits: list[Floats], before: Floats, targets: Ints, *, seed: int = 0
) -> tuple[Floats, Floats]:
    """Shares (M,) of an ensemble, and the logits (n, C) that it is judged by.

    The better over `before` of two: all candidates alike, which chooses nothing and is the surer on few items, and
    Caruana's greedy choice, in which no item judges what it helped to choose. Which of the two is better is seen on all
    items, a choice too small to flatter much.
    """
    uniform = np.full(len(logits), 1 / len(logits))
    tried = [
        (uniform, _mixed(logits, uniform)),
        (_shares(objective, logits, targets), cross_fitted(objective, logits, targets, seed=seed)),
    ]
    return max(tried, key=lambda each: paired_edge(objective, [each[1]], [before], targets, seed=seed).value)


def cross_fitted(objective: str, logits: list[Floats], targets: Ints, *, seed: int = 0) -> Floats:
    """Logits (n, C) of greedy ensembles of `logits` (each (n, C)), chosen on that half which an item is not in."""
    first = halves(targets, seed)
    judged = np.zeros_like(logits[0], np.float64)
    for half in (first, ~first):
        shares = _shares(objective, [z[~half] for z in logits], targets[~half])
        judged[half] = _mixed([z[half] for z in logits], shares)
    return judged


def _shares(objective: str, logits: list[Floats], targets: Ints) -> Floats:
    sign = -1 if objective in SMALLER_IS_BETTER else 1

    def worth(probabilities: Floats) -> float:
        return sign * measure(objective, _logs(probabilities), targets)

    return ensemble.combine([evaluate.softmax(z) for z in logits], worth, n_rounds=N_ROUNDS).weights


def _mixed(logits: list[Floats], shares: Floats) -> Floats:
    return _logs(np.tensordot(shares, np.stack([evaluate.softmax(z) for z in logits]), axes=1))


def _logs(probabilities: Floats) -> Floats:
    logs: Floats = np.log(np.maximum(probabilities, TINIEST))
    return logs


def _entry(
    order: FinishOrder, kind: CombinedKind, bench: Bench, places: tuple[int, ...], judged: Floats, before: Floats
) -> Combined:
    """What is told of a combination that was chosen on all items, whether it is taken or not."""
    name = order.objective.name
    edge = paired_edge(name, [judged], [before], bench.targets, seed=order.search.seed)
    if len(places) == 1:
        why = "no other trial improved the best one"
    elif edge.value <= 0:
        why = f"no better in {name} on items that did not choose it"
    else:
        why = f"{edge.value:.4f} better in {name} on items that did not choose it, standard error {edge.error:.4f}"
    return Combined(
        kind=kind, numbers=tuple(bench.parts[place].number for place in places),
        val=measure(name, calibrated(judged, bench.targets), bench.targets),
        best_single=measure(name, calibrated(before, bench.targets), bench.targets),
        taken=edge.holds and len(places) > 1, why=why,
    )  # fmt: skip


def _candidate(
    order: FinishOrder, single: FinishCandidate, entry: Combined, bench: Bench, places: tuple[int, ...],
    shares: Floats, logits: Floats, judged: Floats,
) -> FinishCandidate:  # fmt: skip
    """The combination in the place of its single: what it is made of, and its predictions for the calibration."""
    predictions = Path(order.scratch) / f"{entry.kind}.npz"
    np.savez(predictions, logits=logits, targets=bench.targets, rows=bench.rows)
    members = tuple(
        MemberFiles(number=part.number, recipe=part.recipe, weights=part.weights, share=float(shares[place]))
        for place, part in ((place, bench.parts[place]) for place in places)
    )
    remarks = dict.fromkeys(remark for place in places for remark in bench.parts[place].remarks)
    changes = {
        "combined": entry.kind, "members": members, "predictions": str(predictions),
        "value": measure(bench.objective, judged, bench.targets),
        "remarks": tuple(remarks), "anchor": None,
    }  # fmt: skip
    return single.model_copy(update=changes)
