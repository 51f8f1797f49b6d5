"""What a finished job is told in: a few plain sentences, made of numbers that the result holds as well."""

from domain.job import FOLDS_BELOW, JobResult
from domain.lot import FinishOrder
from transfer.election import Elected

N_TOLD = 3  # dimensions that mattered most
MATTERS = 0.05  # share below which a dimension is not worth a word


def sentences(order: FinishOrder, elected: Elected, result: JobResult) -> tuple[str, ...]:
    """What was tried, what was chosen and why, what mattered, and what to be careful about."""
    told = [
        _tried(order),
        _chosen(order, elected),
        order.search.limits,
        _front(order),
        _confirmed(result),
        _combination(order, result),
        _mattered(result),
        _sources(order),
        _flattered(order, result),
        _few(order, result),
    ]
    return tuple(sentence for sentence in told if sentence)


def _tried(order: FinishOrder) -> str:
    search = order.search
    n_items = _n_ranked(order)
    over = f", over {search.n_folds} folds" if search.n_folds > 1 else ""
    return (
        f"{search.n_trials} trials were started; {search.n_searched} of the search's own came far enough to be "
        f"ranked, by {order.objective.name} on {n_items} images{over}."
    )


def _chosen(order: FinishOrder, elected: Elected) -> str:
    name = order.objective.name
    if elected.passed_over is not None:
        return (
            f"Trial {elected.passed_over.number} ranked first, but its lead over the anchor {elected.single.anchor} "
            "was within the standard error of the difference, as luck alone often makes it: the anchor was kept."
        )
    if elected.single.anchor is not None:
        return f"The best by {name} was the anchor {elected.single.anchor}, a fixed recipe: no trial ranked above it."
    recipe = elected.single.recipe
    parts = ", ".join(part.name for part in recipe.parts.values()) or "plain fine-tuning"
    what = f"Trial {elected.single.number} ({recipe.source}, {parts})"
    if not order.anchors:
        return f"{what} was best by {name}; no anchor was trained to compare it with."
    if not elected.beat_anchor:
        return f"{what} was best by {name} among those that could be handed back."
    return f"{what} was best by {name}, ahead of the best anchor by more than the standard error of the difference."


def _front(order: FinishOrder) -> str:
    if len(order.front) < 2:
        return ""
    asked = " and ".join(order.front[0].values)
    return f"{len(order.front)} trials are on the front of {asked}: each is better in something than any other."


def _confirmed(result: JobResult) -> str:
    if not result.confirmed:
        return ""
    means = ", ".join(f"{each.mean:.4f} for trial {each.number}'s" for each in result.confirmed)
    seeds = max(len(each.values) for each in result.confirmed)
    return f"The best recipes were trained with up to {seeds} seeds each and ranked by the mean: {means}."


def _combination(order: FinishOrder, result: JobResult) -> str:
    taken = next((c for c in reversed(result.combined) if c.taken), None)
    if taken is not None:
        n, numbers = len(taken.numbers), ", ".join(map(str, taken.numbers))
        cost = (
            "it is one network, as fast as any of them"
            if taken.kind == "soup"
            else f"it answers about {n} times as slowly as one of them, and is {n} times as large"
        )
        return f"The {taken.kind} of trials {numbers} was handed back: {taken.why}; {cost}."
    if not result.combined:
        return ""
    tried = " or ".join(f"a {c.kind}".replace("a e", "an e") for c in result.combined)
    return f"Combining the best trials to {tried} was tried and not worth it on {_n_ranked(order)} images."


def _mattered(result: JobResult) -> str:
    shares = [(path, share) for path, share in result.importance.items() if share >= MATTERS][:N_TOLD]
    if not shares:
        return ""
    told = ", ".join(f"{path} ({share:.0%})" for path, share in shares)
    return f"What mattered most for coming out on top: {told}."


def _sources(order: FinishOrder) -> str:
    first, used = order.search.ranks_first, order.winner.recipe.source
    if first is None or len(order.search.sources) < 2:
        return ""
    if first == used:
        return f"Features alone had ranked {first} first, and the winner starts from it."
    if first not in order.search.trained:
        return f"Features alone had ranked {first} first; the budget was spent before a trial of it was complete."
    return f"Features alone had ranked {first} first; after training, {used} was better."


def _flattered(order: FinishOrder, result: JobResult) -> str:
    bias = result.selection_bias
    if not bias or (bias > 0) == (order.objective.direction == "minimize"):
        return ""
    return (
        f"Val flattered the winner by {abs(bias):.4f} in {order.objective.name}, as it does with the best of many: "
        "quote the test number."
    )


def _few(order: FinishOrder, result: JobResult) -> str:
    n_ranked = _n_ranked(order)
    few = [f"{n_ranked} images ranked the trials"] if n_ranked < FOLDS_BELOW else []
    few += [f"{result.n_test} images tested the winner"] if result.n_test < FOLDS_BELOW else []
    return f"Only {' and '.join(few)}: more labelled images would make these numbers surer." if few else ""


def _n_ranked(order: FinishOrder) -> int:
    per_split = order.data.statistics.per_split
    return per_split.get("val", 0) + (per_split.get("train", 0) if order.search.n_folds > 1 else 0)
