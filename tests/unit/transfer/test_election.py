"""Who is handed back: the trial, the anchor, or a combination that earns it; and the bundle predicts as elected."""

import copy
import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load

from domain.job import Objective
from domain.lot import FinishCandidate, FinishOrder, FinishOutcome
from domain.recipe import Recipe
from intake.packs import open_pack
from tests.unit.transfer.scans import order_of, train, trained, write_down, write_pack
from transfer import evaluate
from transfer.election import cross_fitted, elect, halves
from transfer.evaluate import evaluation_pixels, softmax
from transfer.finish import examine, finish

LOG_LOSS = Objective(name="log_loss")


def voter(folder: Path, number: int, logits: np.ndarray, targets: np.ndarray, **facts: object) -> FinishCandidate:
    """A candidate of whom val alone is known."""
    path = folder / f"{number}.npz"
    np.savez(path, logits=logits, targets=targets, rows=np.arange(len(targets)))
    seen = evaluate.log_loss(logits, targets)
    return FinishCandidate(
        trial_id=f"tr_{number}", number=number, weights="", pack="", predictions=str(path), value=seen,
        recipe=Recipe(task="classification", source="src_1", backbone="tiny_smallnet"),
    ).model_copy(update=facts)  # fmt: skip


def sure(targets: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Logits that are right, and sure of it, in `share` of the cases."""
    rng = np.random.default_rng(seed)
    said = np.where(rng.random(len(targets)) < share, targets, (targets + 1) % 3)
    return 2.0 * np.eye(3)[said]


def test_halves_divide_every_class_evenly() -> None:
    targets = np.repeat([0, 1, 2], [11, 6, 2])
    first = halves(targets, seed=3)
    assert abs(int(first.sum()) - 9.5) <= 1
    for label, n in enumerate((11, 6, 2)):
        assert abs(int(first[targets == label].sum()) - n / 2) <= 0.5
    assert (halves(targets, seed=4) != first).any()


def test_a_lead_that_luck_explains_leaves_the_anchor_in_place(tmp_path: Path) -> None:
    targets = np.arange(40) % 3
    anchor = voter(tmp_path, 0, sure(targets, 0.80, 0), targets, anchor="linear_probe")
    lucky = sure(targets, 0.80, 0)
    lucky[:2] += np.array([[1.0], [-0.5]]) * np.eye(3)[targets[:2]]  # one item for it, one less against it
    trial = voter(tmp_path, 5, lucky, targets)
    found = elect(order_of(tmp_path, trial, anchor, objective=LOG_LOSS))
    assert (found.winner.number, found.passed_over and found.passed_over.number) == (0, 5)
    better = voter(tmp_path, 6, sure(targets, 1.0, 0), targets)
    assert elect(order_of(tmp_path, better, anchor, objective=LOG_LOSS)).winner.number == 6


def test_a_lucky_seed_does_not_speak_for_its_recipe(tmp_path: Path) -> None:
    targets = np.arange(60) % 3
    anchor = voter(tmp_path, 0, sure(targets, 0.8, 0), targets, anchor="linear_probe")
    trial = voter(tmp_path, 5, sure(targets, 0.97, 1), targets)
    again = voter(tmp_path, 9, sure(targets, 0.45, 2), targets, of=5)
    assert elect(order_of(tmp_path, trial, anchor, objective=LOG_LOSS)).winner.number == 5
    assert elect(order_of(tmp_path, trial, anchor, objective=LOG_LOSS, others=(again,))).winner.number == 0


def test_an_anchor_beyond_the_limits_is_never_handed_back(tmp_path: Path) -> None:
    targets = np.arange(40) % 3
    anchor = voter(tmp_path, 0, sure(targets, 0.9, 0), targets, anchor="linear_probe", eligible=False)
    trial = voter(tmp_path, 5, sure(targets, 0.8, 1), targets)
    assert elect(order_of(tmp_path, trial, anchor, objective=LOG_LOSS)).winner.number == 5


def test_no_item_helps_to_choose_what_it_judges() -> None:
    rng, targets = np.random.default_rng(0), np.arange(30) % 3
    logits = [rng.normal(size=(30, 3)) for _ in range(4)]
    before = cross_fitted("log_loss", logits, targets)
    first = halves(targets)
    other = [np.where(first[:, None], rng.normal(size=(30, 3)), z) for z in logits]  # the first half changes
    after = cross_fitted("log_loss", other, targets)
    mixed = [softmax(z[first]) for z in other]
    low, high = np.min(mixed, axis=0), np.max(mixed, axis=0)
    inside = softmax(after[first])
    assert ((inside >= low - 1e-9) & (inside <= high + 1e-9)).all()
    # Shares that judge the first half were chosen on the second, which is as it was.
    back = [np.where(first[:, None], z, o) for z, o in zip(logits, other, strict=True)]
    assert np.allclose(before[first], cross_fitted("log_loss", back, targets)[first])


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> FinishOrder:
    """Two networks that know two classes each, of three: together they know all."""
    folder = tmp_path_factory.mktemp("experts")
    pack = write_pack(folder / "pack", 16)
    one = train(folder, "one", pack, 25, 4, None, classes=(0, 1))
    two = train(folder, "two", pack, 25, 7, None, classes=(1, 2))
    anchor = train(folder, "anchor", pack, 25, 0, "fine_tuning", classes=(0,))
    return order_of(
        folder, one, anchor, objective=LOG_LOSS, others=(two,), combining=("soup", "ensemble"), n_members=3
    )  # fmt: skip


@pytest.fixture(scope="module")
def joined(experts: FinishOrder) -> FinishOutcome:
    return finish(experts)


def test_an_ensemble_that_truly_helps_is_handed_back(experts: FinishOrder, joined: FinishOutcome) -> None:
    (told,) = joined.result.combined  # from scratch there are no soups
    assert told.kind == "ensemble"
    assert told.taken
    assert set(told.numbers) >= {4, 7}
    assert told.val < told.best_single
    assert joined.result.best_number == 4
    assert set(joined.tests) == {"tr_0"}, "the ensemble's look at test is none of its trials'"
    (anchor,) = joined.result.anchors
    assert anchor.lift.value == pytest.approx(joined.result.metrics["accuracy"] - anchor.test_accuracy.value)
    assert any("as slowly" in sentence for sentence in joined.result.summary)


def test_the_bundle_of_an_ensemble_predicts_the_weighted_mean(experts: FinishOrder, joined: FinishOutcome) -> None:
    pack = open_pack(Path(experts.winner.pack))
    rows = np.flatnonzero(pack.split == 2)
    with zipfile.ZipFile(joined.bundle) as archive:
        members = json.loads(archive.read("members.json"))
        card = archive.read("model_card.md").decode()
        session = onnxruntime.InferenceSession(archive.read("model.onnx"), providers=["CPUExecutionProvider"])
    logits, _ = session.run(None, {"pixels": evaluation_pixels(pack, rows)})
    candidates = (experts.winner, *experts.others, *experts.anchors)
    singles = {c.number: softmax(examine(c, experts).logits) for c in candidates}
    expected = sum(m["share"] * singles[m["number"]] for m in members)
    assert sum(m["share"] for m in members) == pytest.approx(1)
    assert np.allclose(softmax(logits), expected, atol=1e-4)
    measured = evaluate.log_loss(np.log(expected), np.asarray(pack.labels[rows]))
    assert joined.result.metrics["log_loss"] == pytest.approx(measured, abs=1e-3)
    assert "trial 7, share" in card


def test_without_leave_to_combine_the_single_stays(experts: FinishOrder) -> None:
    assert elect(experts.model_copy(update={"combining": ()})).winner.combined is None


def test_networks_that_err_alike_are_not_joined(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", 16)
    network = trained(pack, 25, 4)
    one = write_down(tmp_path, "one", pack, network, 4)
    with torch.no_grad():
        network.head.bias += 0.01  # type: ignore[operator]
    two = write_down(tmp_path, "two", pack, network, 5)
    found = elect(order_of(tmp_path, one, objective=LOG_LOSS, others=(two,), combining=("ensemble",)))
    assert not found.combined[0].taken
    assert found.winner == one


def test_a_soup_whose_mean_is_better_than_its_parts_becomes_one_network(tmp_path: Path) -> None:
    """Two networks on either side of a good one: their mean is the good one."""
    pack = write_pack(tmp_path / "pack", 16)
    middle = trained(pack, 25, 4)
    generator = torch.Generator().manual_seed(0)
    sides = [copy.deepcopy(middle), copy.deepcopy(middle)]
    for name, weight in middle.named_parameters():
        step = 1.5 * weight.detach().std().nan_to_num(0) * torch.randn(weight.shape, generator=generator)
        for sign, side in zip((1, -1), sides, strict=True):
            side.get_parameter(name).data += sign * step
    one, two = (write_down(tmp_path, f"n{n}", pack, net, n, source="src_1") for n, net in enumerate(sides, 4))
    first, second = sorted((one, two), key=lambda c: c.value, reverse=True)
    outcome = finish(order_of(tmp_path, first, others=(second,), objective=LOG_LOSS, combining=("soup",)))
    (told,) = outcome.result.combined
    assert (told.kind, told.taken, set(told.numbers)) == ("soup", True, {4, 5})
    with zipfile.ZipFile(outcome.bundle) as archive:
        members = json.loads(archive.read("members.json"))
        weights = load(archive.read("model.safetensors"))
    assert [m["share"] for m in members] == [0.5, 0.5]
    for name, parameter in middle.named_parameters():
        assert torch.allclose(weights[name], parameter, atol=1e-5)
    assert outcome.result.metrics["accuracy"] > 0.8


def test_with_folds_there_are_no_soups(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "pack", 16)
    one, two = (write_down(tmp_path, f"n{n}", pack, trained(pack, 5, n), n, source="src_1") for n in (4, 5))
    order = order_of(tmp_path, one, objective=LOG_LOSS, others=(two,), combining=("soup",))
    assert elect(order).combined
    folded = order.search.model_copy(update={"n_folds": 3})
    assert not elect(order.model_copy(update={"search": folded})).combined
