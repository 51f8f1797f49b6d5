"""The model card: what the bundle is, what it was tested on, and what it should not be trusted with."""

from dataclasses import dataclass, field

import numpy as np

from domain.catalogue import Preprocessing
from domain.job import AnchorResult, Interval, JobResult
from domain.lot import FinishCandidate, FinishOrder
from domain.recipe import Recipe
from transfer.bundle import ExportCheck
from transfer.evaluate import Ints

MAX_CLASSES = 60  # rows of the table of classes
MAX_CONFUSIONS = 10
MEASURED = {
    "latency_ms": "one image in {:.3g} ms",
    "latency_batch_ms": "32 images together in {:.3g} ms (medians, without decoding and resizing)",
    "size_bytes": "weights of {:,.0f} bytes",
    "source_accuracy": "{:.1%} of the source dataset's test images right under the source's own head",
}


@dataclass(frozen=True)
class TestDetails:
    """What the card tells beyond the result's numbers, all of it on test."""

    __test__ = False  # no test case, whatever pytest makes of the name

    confusion: Ints  # (C, C), row = true class
    reliability: list[tuple[int, float, float]] = field(default_factory=list)  # (items, confidence, accuracy)


def write_card(
    order: FinishOrder, result: JobResult, check: ExportCheck, preprocessing: Preprocessing, details: TestDetails
) -> str:
    """The whole card as Markdown."""
    sections = [
        _head(order, result),
        _summary(result),
        _data(order),
        _search(order),
        _test(order, result),
        *([_front(result)] if result.front else []),
        _anchors(order, result),
        _calibration(order, result, details),
        _classes(order, details),
        _network(order, preprocessing),
        _export(check),
        _limits(order, result),
    ]
    return "\n\n".join(sections) + "\n"


def _head(order: FinishOrder, result: JobResult) -> str:
    return "\n".join(
        [
            f"# {escape(order.job_name)}",
            "",
            f"Labels images with one of {len(order.classes)} classes. Made by Graft, job `{order.job_id}`.",
            "",
            f"**Accuracy on {result.n_test} test images: {percent(result.test_accuracy)}.** {result.verdict}",
            "",
            "```",
            "pip install -r requirements.txt",
            "python predict.py IMAGE [IMAGE ...] [--top 5] [--json]",
            "```",
        ]
    )


def _summary(result: JobResult) -> str:
    return "\n".join(["## Summary", "", *(f"- {escape(sentence)}" for sentence in result.summary)])


def _data(order: FinishOrder) -> str:
    facts = order.data.statistics
    made = {
        "given": "as uploaded",
        "made": "made by Graft, stratified",
        "partly": "partly as uploaded, completed by Graft",
    }
    lines = [
        "## Data",
        "",
        f"Dataset {escape(order.data.name)} (`{order.data.dataset_id}`), content hash `{order.data.content_hash}`: "
        f"{facts.n_items} images in {facts.n_classes} classes. Splits {made[facts.split_source]}.",
        "",
        "| split | images |",
        "|---|---|",
        *(f"| {split} | {count} |" for split, count in facts.per_split.items()),
        "",
        f"Width {_spread(facts.width_quantiles)} px, height {_spread(facts.height_quantiles)} px "
        "(least, median, most). "
        f"Near-duplicates, kept on one side of every split: {facts.n_near_duplicates}.",
        "",
    ]
    if not order.data.findings:
        return "\n".join([*lines, "The check of the upload found nothing to report."])
    found = ", ".join(f"{code} {count}" for code, count in sorted(order.data.findings.items()))
    return "\n".join([*lines, f"The check of the upload reported (findings: {order.data.n_findings}): {found}."])


def _search(order: FinishOrder) -> str:
    search = order.search
    own = search.n_searched
    alone = "" if own else " No trial of the search's own was carried through: only fixed recipes were compared."
    limits = [f"{search.budget.trials} trials" if search.budget.trials else "", _seconds(search.budget.wall_s)]
    states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(search.by_state.items()) if count)
    ranked = f"over {search.n_folds} folds of train + val" if search.n_folds > 1 else "on val"
    closing = " The winner was then trained again on train + val." if search.n_folds > 1 else ""
    stopped = f" Stopped by: {search.stopped_by}." if search.stopped_by else ""
    return "\n".join(
        [
            "## Search",
            "",
            f"{search.n_trials} trials ({states or 'states not recorded'}); "
            f"budget {' or '.join(filter(None, limits))}; "
            f"{_seconds(search.cost_s)} of training in {_seconds(search.elapsed_s)}.{stopped}{alone}",
            "",
            f"Sampler {search.sampler}, pruner {search.pruner}, seed {search.seed}. Ranked by {order.objective.name} "
            f"{ranked}; test was not seen by the search.{closing}",
        ]
    )


def _test(order: FinishOrder, result: JobResult) -> str:
    names = {"log_loss_calibrated": "log_loss, calibrated", "ece_calibrated": "ece, calibrated"}
    looks = "once" if result.n_test_looks <= 1 else f"{result.n_test_looks} times, so its numbers are no longer fresh"
    lines = [
        "## Test",
        "",
        f"Measured on {result.n_test} images that neither training nor search has seen. "
        f"This test split has been looked at {looks}. "
        f"Intervals: percentile bootstrap, {result.test_accuracy.level:.0%}.",
        "",
        "| metric | test |",
        "|---|---|",
        f"| accuracy | {percent(result.test_accuracy)} |",
        *(f"| {names.get(n, n)} | {value:.4f} |" for n, value in result.metrics.items() if n != "accuracy"),
        "",
        f"{_where(order)} the winner had {order.objective.name} {result.val:.4f}.",
    ]
    if result.selection_bias is not None:
        flattering = "negative" if order.objective.direction == "minimize" else "positive"
        lines[-1] += (
            f" Val minus test is {result.selection_bias:+.4f}; {flattering} means that val flattered it. Val is "
            "likely to flatter whatever is picked as the best of many on it; on few images the difference is luck as "
            "well. Quote the test number."
        )
    return "\n".join(lines)


def _front(result: JobResult) -> str:
    names = list(result.front[0].values)
    rows = [
        f"| {p.number}{', taken' if p.chosen else ''} | {' | '.join(f'{p.values[name]:.4g}' for name in names)} |"
        for p in result.front
    ]
    lines = [
        "## Front",
        "",
        "No other trial is at least as good as one of these in everything, and better in something. On val, or "
        "measured of the network where it was trained.",
        "",
        f"| trial | {' | '.join(names)} |",
        "|" + "---|" * (1 + len(names)),
        *rows,
    ]
    return "\n".join(lines)


def _anchors(order: FinishOrder, result: JobResult) -> str:
    if not result.anchors:
        return "## Anchors\n\nNo anchor (fixed recipe) was trained, so there is nothing to compare the search with."
    return "\n".join(
        [
            "## Anchors",
            "",
            "Fixed recipes, trained before the search with no choice made by it. Lift: the winner's accuracy minus the "
            "anchor's, over the same test images, in points.",
            "",
            f"| anchor | trial | val {order.objective.name} | test accuracy | lift |",
            "|---|---|---|---|---|",
            *(_anchor_row(anchor) for anchor in result.anchors),
            "",
            result.verdict,
        ]
    )


def _anchor_row(anchor: AnchorResult) -> str:
    lift = points(anchor.lift)
    return f"| {anchor.name} | {anchor.number} | {anchor.val:.4f} | {percent(anchor.test_accuracy)} | {lift} |"


def _calibration(order: FinishOrder, result: JobResult, details: TestDetails) -> str:
    return "\n".join(
        [
            "## Calibration",
            "",
            f"Probabilities are softmax(logits / T), T = {result.calibration_temperature:.4f}, fitted on "
            f"{_fitted_on(order)}. "
            "On test, by how sure the network was:",
            "",
            "| images | mean probability | accuracy |",
            "|---|---|---|",
            *(f"| {n} | {confidence:.3f} | {hit:.3f} |" for n, confidence, hit in details.reliability),
        ]
    )


def _classes(order: FinishOrder, details: TestDetails) -> str:
    table, names = details.confusion, [escape(name) for name in order.classes]
    per_class = order.data.statistics.per_class
    lines = ["## Classes", "", "| class | train | val | test | found on test |", "|---|---|---|---|---|"]
    for index, name in enumerate(order.classes[:MAX_CLASSES]):
        counts, n = per_class.get(name, {}), int(table[index].sum())
        found = f"{table[index, index] / n:.1%}" if n else "-"
        row = [names[index], *(str(counts.get(split, 0)) for split in ("train", "val", "test")), found]
        lines.append(f"| {' | '.join(row)} |")
    if len(names) > MAX_CLASSES:
        lines.append(f"\n{len(names) - MAX_CLASSES} more in `labels.json`.")
    mistakes = [(int(count), names[i], names[j]) for (i, j), count in np.ndenumerate(table) if i != j and count]
    worst = sorted(mistakes, key=lambda m: -m[0])[:MAX_CONFUSIONS]
    told = "; ".join(f"{true} taken for {said}: {count}" for count, true, said in worst)
    return "\n".join([*lines, "", f"Most frequent mistakes on test: {told or 'none'}."])


def _network(order: FinishOrder, preprocessing: Preprocessing) -> str:
    winner = order.winner
    sources = sources_of(winner)
    known = dict.fromkeys(order.licences.get(source, "unknown") for source in sources)
    licence = ", ".join(known) if sources else "none, trained from scratch"
    recipes = [member.recipe for member in winner.members] or [winner.recipe]
    taught = any(recipe.distillation is not None for recipe in recipes)
    lines = [
        "## Network",
        "",
        *_made_of(winner),
        "",
        f"Input: upright RGB, short side to {preprocessing.resize} ({preprocessing.interpolation}), centre crop "
        f"{preprocessing.crop}; `preprocess.py` does it, and the ONNX graph normalises.",
        "",
        f"Licence of the source weights: {licence}; see `LICENSE-WEIGHTS.txt`."
        + (" It learned from a teacher as well, whose licence may have a say too." if taught else ""),
    ]
    if facts := [MEASURED[name].format(value) for name, value in winner.measured.items()]:
        lines += ["", f"Measured where it was trained, on the device `{order.device}`: {'; '.join(facts)}."]
    if order.winner.remarks:
        lines += ["", "Where the training departs from the letter of a method:", ""]
        lines += [f"- {escape(remark)}" for remark in order.winner.remarks]
    return "\n".join(lines)


def _made_of(winner: FinishCandidate) -> list[str]:
    """What the network is; of a combination, what each trial in it is."""
    if winner.combined is None:
        told = (
            f"{_form(winner.recipe)}; trial {winner.number}. `recipe.json` holds everything needed to train it again."
        )
        return [told]
    what = (
        "A soup: one network whose weights are the mean of those of these trials."
        if winner.combined == "soup"
        else "An ensemble: the weighted mean of the probabilities of these trials' networks, which all answer."
    )
    members = [f"- trial {m.number}, share {m.share:.2f}: {_form(m.recipe)}" for m in winner.members]
    return [f"{what} `members.json` holds their recipes, `recipe.json` that of the first.", "", *members]


def _form(recipe: Recipe) -> str:
    parts = ", ".join(f"{slot} {part.name}" for slot, part in recipe.parts.items()) or "none"
    return f"{recipe.backbone} with a {recipe.head.kind} head; source `{recipe.source}`; parts: {parts}"


def sources_of(winner: FinishCandidate) -> list[str]:
    """The sources whose weights are in the network, each once."""
    recipes = [member.recipe for member in winner.members] or [winner.recipe]
    return [s for s in dict.fromkeys(recipe.source for recipe in recipes) if not s.startswith("scratch:")]


def _export(check: ExportCheck) -> str:
    return "\n".join(
        [
            "## Export",
            "",
            f"`model.onnx` in ONNX Runtime was compared with the trained network in torch on {check.n_items} images "
            f"({check.n_val} of val, the rest of train): largest difference of a logit "
            f"{check.largest_difference:.2g} (allowed {check.tolerance:g}), of a probability "
            f"{check.largest_probability_difference:.2g}. Near-ties, where the two best logits are within "
            f"{2 * check.tolerance:g}: {check.n_near_ties}; best class different: {check.n_top1_different}, "
            "among near-ties alone.",
        ]
    )


def _limits(order: FinishOrder, result: JobResult) -> str:
    smallest = min((sum(c.values()) for c in order.data.statistics.per_class.values()), default=0)
    lines = [
        "## Limits",
        "",
        "- Knows its classes only: any picture, whatever it shows, is given one of them.",
        "- Tested on images like the uploaded ones. Other cameras, places or seasons can do much worse.",
        f"- The smallest class has {smallest} images. Numbers per class on few images are rough.",
        "- Inherits whatever the source weights learned, their biases included.",
    ]
    if result.n_test < 200:
        lines.append(f"- {result.n_test} test images: the interval above is wide for that reason.")
    return "\n".join(lines)


def _where(order: FinishOrder) -> str:
    return "Over the folds, each predicted by a fit that had not seen it," if order.search.n_folds > 1 else "On val"


def _fitted_on(order: FinishOrder) -> str:
    return "the folds of train + val, as they were predicted unseen" if order.search.n_folds > 1 else "val"


def percent(interval: Interval) -> str:
    """`91.2 % (88.0 to 94.1)`"""
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def points(interval: Interval) -> str:
    """`+1.2 (-0.3 to +2.8)`"""
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def escape(name: str) -> str:
    """A user's name inside Markdown: on one line, no markup, no table cells."""
    plain = "".join(c if c.isprintable() else " " for c in name)
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!~$" else c for c in plain)


def _spread(quantiles: tuple[int, int, int, int, int]) -> str:
    return f"{quantiles[0]}, {quantiles[2]}, {quantiles[4]}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
