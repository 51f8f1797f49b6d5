"""Source classes chosen by their distance to the target: what is chosen, drawn, and trained when."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.network import Network
from tests.toys import go, make_order, make_recipe, train, write_pack
from transfer.bench import Bench, Pools
from transfer.phase import Outcome
from transfer.sampling import class_subset
from transfer.setting import Setting
from transfer.similarity import nearest_classes

PARAMS = {"k": 2, "share": 0.5}


@pytest.fixture(scope="module")
def source_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("subset") / "pack", n_classes=5, seed=3)


@pytest.fixture
def bench(pack: Path, source: Path, source_pack: Path, tmp_path: Path) -> Bench:
    recipe = make_recipe(sampling=("class_subset", PARAMS))
    order = make_order(recipe, pack, source, tmp_path, source_pack=source_pack)
    return Bench(Setting(order, order.trials[0], go), 0)


def pools(bench: Bench, phase: int) -> Pools:
    return Pools(bench.train, bench.train_labels, bench.prepared, phase, 60, lambda: np.zeros((36, 3), np.float32), {})


def features(bench: Bench, inputs: torch.Tensor) -> np.ndarray:
    net: Network = bench.net
    with torch.no_grad():
        return net.features(inputs).double().numpy()


def test_the_chosen_classes_are_the_nearest_by_mean_distance(bench: Bench) -> None:
    data = bench.source_data
    assert data is not None
    own = features(bench, bench.setting.problem.evaluation_inputs(bench.train))
    its = features(bench, data.inputs(data.items))
    labels = data.labels[data.items]
    means = np.stack([own[bench.train_labels == c].mean(0) for c in range(3)])  # equally many items per class
    gaps = [np.mean([np.linalg.norm(its[labels == c].mean(0) - m) for m in means]) for c in range(5)]
    expected = np.argsort(gaps)[:2]
    assert set(np.flatnonzero(bench.prepared[class_subset.CHOSEN].numpy())) == set(expected)
    rows = bench.prepared[class_subset.ROWS].numpy()
    assert np.array_equal(rows, data.items[np.isin(labels, expected)])
    assert set(rows) <= set(data.items)
    assert any("200 images" in remark for remark in bench.remarks)


def test_the_source_alone_is_drawn_first_and_the_target_alone_then(bench: Bench) -> None:
    rows = bench.prepared[class_subset.ROWS].numpy()
    first = class_subset.draw(pools(bench, 0), None, np.random.default_rng(0), **PARAMS)
    assert sorted(first.items) == sorted(bench.train)
    assert first.source is not None
    assert len(first.source) == len(first.items)
    assert set(first.source) <= set(rows)
    then = class_subset.draw(pools(bench, 1), None, np.random.default_rng(0), **PARAMS)
    assert then.source is None
    assert np.array_equal(then.items, np.random.default_rng(0).permutation(bench.train))


def test_no_row_comes_twice_before_all_have_come() -> None:
    rows = np.array([3, 5, 8, 9])
    found = class_subset.in_turn(rows, 11, np.random.default_rng(0))
    assert len(found) == 11
    for at in (0, 4):
        assert sorted(found[at : at + 4]) == [3, 5, 8, 9]
    assert len(set(found[8:])) == 3
    assert len(class_subset.in_turn(rows, 2, np.random.default_rng(0))) == 2


def test_the_softmax_runs_over_the_chosen_classes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=draw).requires_grad_()
    chosen = torch.tensor([False, True, True, False, True])
    targets = torch.tensor([1, 4, 2, 2, 1, 4])
    ours = class_subset.cross_entropy_among(logits, targets, chosen)
    own = torch.tensor([0, 2, 1, 1, 0, 2])
    torch.testing.assert_close(ours, functional.cross_entropy(logits[:, chosen], own))
    ours.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad[:, ~chosen], torch.zeros(6, 2))
    assert logits.grad[:, chosen].abs().min() > 0


def test_two_phases_each_with_its_own_head(bench: Bench) -> None:
    phases = class_subset.phases(bench.plan, **PARAMS)
    first, second = next(phases), phases.send(Outcome(0, 5))
    assert "head" not in first.trainable
    assert class_subset.HEAD_NAME in first.trainable
    assert class_subset.HEAD_NAME not in second.trainable
    assert "head" in second.trainable
    assert first.weight("task", 0.0) == 0
    assert first.weight("class_subset", 0.0, "sampling") == 1
    assert second.weight("class_subset", 0.0, "sampling") == 0
    for slot in ("regularizer", "feature", "distillation"):
        assert second.weight("anything", 0.0, slot) == 1
    assert (first.share, second.share) == (0.5, None)


def test_it_trains_in_two_phases_and_leaves_no_second_head(
    pack: Path, source: Path, source_pack: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(sampling=("class_subset", PARAMS), regularizer=("l2_sp", {}), steps=20)
    fit, reports = train(make_order(recipe, pack, source, tmp_path, source_pack=source_pack))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    for report in reports:
        trained = {name for name in report.terms if not name.startswith("val/")}
        assert trained == ({"class_subset", "l2_sp"} if report.phase == 0 else {"task", "l2_sp"})
    assert [p["steps"] for p in outcome.facts["phases"]] == [10, 10]


def test_large_classes_push_small_ones_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_subset, "MIN_IMAGES", 12)
    monkeypatch.setattr(class_subset, "nearest_classes", lambda s, t, k: nearest_classes(s, t, k, min_images=12))
    bench.remarks.clear()
    class_subset.prepare(bench, **PARAMS)
    (similar,) = bench.remarks
    assert "similar" in similar
    class_subset.prepare(bench, k=9, share=0.5)
    assert bench.remarks == [similar, "class_subset: 5 source classes were taken, there were no 9 to take"]
