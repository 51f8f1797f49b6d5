"""Whole trials: what they report, rank by, keep and leave behind."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domain.errors import Invalid
from intake.packs import open_pack
from models.build import build, member
from models.facts import preprocessing_of
from models.weights import load_start
from tests.toys import go, make_order, make_recipe, train, write_pack, write_source
from transfer import evaluate
from transfer.closed_form import STRENGTHS, logits_of, solve_path
from transfer.fit import Fit
from transfer.parts import load
from transfer.setting import TRAIN, VAL


def logits_from(
    weights: str, pack: Path, rows: np.ndarray, backbone: str = "tiny_smallnet", head: str = "linear"
) -> np.ndarray:
    """What the checkpoint says, by the road that the report takes."""
    net = build(backbone, n_classes=3, head=head)
    load_start(net, Path(weights), with_head=True)
    facts = preprocessing_of(member(backbone))
    return evaluate.predict(evaluate.PixelNetwork(net, facts), open_pack(pack), rows)


@pytest.mark.parametrize(
    ("given", "folds"),
    [({"steps": 30}, 1), ({"steps": 20, "averaging": ("ema", {"decay": 0.9})}, 1),
     ({"schedule": ("linear_probe", {})}, 1), ({"steps": 20, "head": {"kind": "mlp"}}, 1),
     ({"steps": 60, "schedule": ("chain_thaw", {})}, 1), ({"steps": 40, "schedule": ("freeze", {"depth": 2})}, 1)],
)  # fmt: skip
def test_the_checkpoint_says_what_the_predictions_say(
    given: dict, folds: int, pack: Path, source: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(**given)
    fit, reports = train(make_order(recipe, pack, source, tmp_path, n_folds=folds))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE"
    with np.load(outcome.files["predictions"]) as saved:
        logits, targets, rows = saved["logits"], saved["targets"], saved["rows"]
    opened = open_pack(pack)
    np.testing.assert_array_equal(rows, np.flatnonzero(opened.split == VAL))
    np.testing.assert_array_equal(targets, opened.labels[rows])
    again = logits_from(outcome.files["weights"], pack, rows, head=recipe.head.kind)
    np.testing.assert_allclose(again, logits, atol=2e-4)
    assert outcome.value == pytest.approx(evaluate.accuracy(logits, targets))
    assert outcome.metrics == evaluate.metrics(logits, targets)
    assert outcome.value == max(report.value for report in reports if report.value is not None)


def test_reports_go_up_to_the_whole_budget(pack: Path, source: Path, tmp_path: Path) -> None:
    _, reports = train(make_order(make_recipe(steps=60), pack, source, tmp_path))
    shares = [report.share for report in reports]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1.0
    assert 5 <= len(reports) <= 20
    assert reports[-1].step == 60
    assert {"task", "val/accuracy", "val/log_loss"} <= reports[0].terms.keys()
    assert reports[-1].terms["task"] < reports[0].terms["task"]
    costs = [report.cost_s for report in reports]
    assert costs == sorted(costs) and costs[0] > 0  # noqa: PT018


@pytest.mark.parametrize("folds", [1, 3])
def test_every_trial_is_evaluated_where_trials_are_compared(
    folds: int, pack: Path, source: Path, tmp_path: Path
) -> None:
    _, reports = train(make_order(make_recipe(steps=60), pack, source, tmp_path, n_folds=folds))
    shares = [report.share for report in reports]
    assert shares == sorted(shares)
    valued = [report.share for report in reports if report.value is not None]
    for rung in (7 / 60, 1 / 3):
        assert min(abs(share - rung) for share in valued) < 1e-9


def test_time_spent_by_whoever_reads_the_reports_is_not_the_trials(
    pack: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(time, "perf_counter", clock)
    fit = Fit(make_order(make_recipe(steps=4), pack, source, tmp_path), stopped=go)
    for _ in fit:
        now += 1e6
    assert 0 < fit.outcome("tr_1").cost_s < 1e6


def test_log_loss_is_ranked_downwards(pack: Path, source: Path, tmp_path: Path) -> None:
    fit, reports = train(make_order(make_recipe(steps=40), pack, source, tmp_path, objective="log_loss"))
    assert fit.outcome("tr_1").value == pytest.approx(min(r.value for r in reports if r.value is not None))


def test_every_fold_is_ranked_once_and_the_closing_fit_sees_all(pack: Path, source: Path, tmp_path: Path) -> None:
    fit, reports = train(make_order(make_recipe(steps=10), pack, source, tmp_path, n_folds=3))
    outcome = fit.outcome("tr_1")
    opened = open_pack(pack)
    with np.load(outcome.files["predictions"]) as saved:
        assert sorted(saved["rows"]) == list(np.flatnonzero(opened.split != 2))
        assert outcome.value == pytest.approx((saved["logits"].argmax(1) == saved["targets"]).mean())
        first = np.flatnonzero((opened.split != 2) & (opened.fold % 3 == 0))
        np.testing.assert_array_equal(saved["rows"][: len(first)], first)
    assert [r.fold for r in reports] == sorted(r.fold for r in reports)
    assert {r.fold for r in reports} == {0, 1, 2, 3}
    assert all((r.value is None) == (r.fold == 3) for r in reports)
    ends = [max(r.share for r in reports if r.fold == fold) for fold in range(4)]
    assert ends == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_a_probe_across_folds_takes_the_strength_that_is_best_on_all_of_them(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    order = make_order(
        make_recipe(schedule=("linear_probe", {})), pack, source, tmp_path, n_folds=3, objective="log_loss"
    )
    fit, _ = train(order)
    outcome = fit.outcome("tr_1")
    choice = outcome.facts["phases"][-1]["choice"]
    # The same by hand: features, a path per fold, the pooled log-loss of every strength.
    opened = open_pack(pack)
    net = build("tiny_smallnet", n_classes=3)
    load_start(net, source)
    rows = np.flatnonzero(opened.split != 2)
    pixels = torch.from_numpy(evaluate.evaluation_pixels(opened, rows)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        features = net.eval().features((pixels / 255 - 0.5) / 0.5).double().numpy()
    folds, labels = opened.fold[rows] % 3, opened.labels[rows]
    pooled = np.zeros((len(STRENGTHS), len(rows), 3))
    for fold in range(3):
        train_, val = folds != fold, folds == fold
        pooled[:, val] = logits_of(solve_path(features[train_], labels[train_], 3), features[val])
    losses = [evaluate.log_loss(logits, labels) for logits in pooled]
    assert choice == int(np.argmin(losses))
    assert outcome.value == pytest.approx(min(losses), abs=1e-4)
    closing = solve_path(features, labels, 3)[choice]
    np.testing.assert_allclose(load_file(outcome.files["weights"])["head.weight"], closing.weight, atol=1e-4)


@pytest.mark.parametrize(("answer", "state"), [("stop", "PRUNED"), ("pause", "PAUSED")])
def test_stop_and_pause_take_effect_before_the_next_step(
    pack: Path, source: Path, tmp_path: Path, answer: str, state: str
) -> None:
    seen: list[int] = []

    def stopped(_: str) -> str:
        seen.append(fit.n_steps or 0)
        return answer if seen[-1] >= 4 else "go"

    fit = Fit(make_order(make_recipe(steps=50), pack, source, tmp_path), stopped=stopped)
    reports = list(fit)
    assert fit.outcome("tr_1").state == state
    assert max(seen) == 4, "no step after the answer"
    assert fit.outcome("tr_1").value == (reports[-1].value if reports else None)
    assert not fit.outcome("tr_1").files


def test_a_loss_that_is_not_finite_ends_the_trial(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(steps=30, optimizer={"lr_head": 1e6, "inner_ratio": 10.0, "grad_clip": 0.0}, batch_norm="eval")
    fit, _ = train(make_order(recipe, pack, source, tmp_path))
    outcome = fit.outcome("tr_1")
    assert (outcome.state, outcome.error_code, outcome.value) == ("FAILED", "diverged", None)
    assert outcome.error is not None and "epoch" in outcome.error  # noqa: PT018


def test_a_refusal_fails_one_trial_and_not_the_lot(pack: Path, source: Path, tmp_path: Path) -> None:
    bad = make_order(make_recipe(schedule=("linear_probe", {}), head={"kind": "mlp"}), pack, source, tmp_path)
    good = make_order(make_recipe(), pack, source, tmp_path).trials[0].model_copy(update={"trial_id": "tr_2"})
    fit, reports = train(bad.model_copy(update={"trials": (*bad.trials, good)}))
    assert fit.outcome("tr_1").error_code == "closed_form_needs_linear_head"
    assert fit.outcome("tr_2").state == "COMPLETE"
    assert {r.trial_id for r in reports} == {"tr_2"}


def test_more_folds_than_items_fail_with_a_reason(source: Path, tmp_path: Path) -> None:
    few = write_pack(tmp_path / "few", n_per_class=2, n_classes=2)  # four items
    outcome = train(make_order(make_recipe(), few, source, tmp_path, n_folds=5, n_classes=2))[0].outcome("tr_1")
    assert (outcome.state, outcome.error_code) == ("FAILED", "too_few_items_for_folds")


def test_weights_of_another_network_are_refused(pack: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(), pack, write_source(tmp_path / "r.safetensors", "tiny_resnet"), tmp_path)
    fit, _ = train(order)
    assert fit.outcome("tr_1").error_code == "model_incompatible"


def test_an_unknown_part_is_refused_with_the_legal_ones(pack: Path, source: Path, tmp_path: Path) -> None:
    fit, _ = train(make_order(make_recipe(regularizer=("l7", {})), pack, source, tmp_path))
    outcome = fit.outcome("tr_1")
    assert outcome.error_code == "unknown_regularizer"
    assert "l2_sp" in str(outcome.error)
    with pytest.raises(Invalid):
        load("schedule", "l2")


def test_from_scratch_every_seed_has_its_own_weights(pack: Path, tmp_path: Path) -> None:
    states = []
    for seed in (0, 0, 1):
        recipe = make_recipe(source="scratch:tiny_smallnet", seed=seed, steps=1, optimizer={"lr_head": 1e-9})
        fit, _ = train(make_order(recipe, pack, None, tmp_path))
        states.append(load_file(fit.outcome("tr_1").files["weights"]))
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
    assert not torch.equal(states[0]["block1.conv.weight"], states[2]["block1.conv.weight"])


def test_the_next_trial_starts_from_the_source_not_from_the_last_one(pack: Path, source: Path, tmp_path: Path) -> None:
    """Networks are used again within a process; nothing of the trial before may be left in them."""
    frozen = make_recipe(steps=3, schedule=("freeze", {"depth": 3}), regularizer=("l2", {}))
    tuned = make_recipe(steps=3, optimizer={"lr_head": 0.5, "inner_ratio": 1.0}, batch_norm="train")
    first, _ = train(make_order(frozen, pack, source, tmp_path / "1"))
    train(make_order(tuned, pack, source, tmp_path / "2"))
    second, _ = train(make_order(frozen, pack, source, tmp_path / "3"))
    third, _ = train(make_order(tuned, pack, source, tmp_path / "4"))
    one, two = (load_file(f.outcome("tr_1").files["weights"]) for f in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)
    given = load_file(source)
    moved = load_file(third.outcome("tr_1").files["weights"])
    for name, tensor in given.items():
        if name.startswith("head"):
            continue
        assert torch.equal(one[name], tensor) or name.endswith("num_batches_tracked"), name
        assert not torch.equal(moved[name], tensor), name


def test_train_and_val_are_told_apart(pack: Path, source: Path, tmp_path: Path) -> None:
    """Wrong labels on val must not change the weights of a fixed number of steps."""
    other = tmp_path / "pack"
    shutil.copytree(pack, other)
    split, labels = np.load(other / "split.npy"), np.load(other / "labels.npy")
    labels[split != TRAIN] = (labels[split != TRAIN] + 1) % 3
    np.save(other / "labels.npy", labels)
    recipe = make_recipe(steps=2)  # one evaluation, so the best weights are the last ones
    one, two = (
        load_file(
            train(make_order(recipe, folder, source, tmp_path / f"out {place}"))[0].outcome("tr_1").files["weights"]
        )
        for place, folder in enumerate((pack, other))
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
