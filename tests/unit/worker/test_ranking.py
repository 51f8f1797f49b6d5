"""Sources ranked by their features: worked out again from the network itself, on train items alone."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from domain.history import Meta
from domain.lot import LotOrder
from models.build import build
from models.weights import load_start
from tests.toys import go, make_order, make_recipe, write_pack, write_source
from transfer import scores
from transfer.setting import Setting
from transfer.similarity import emd
from worker.ranking import MAX_ITEMS, elsewhere, examined, look, looks, ranking_by, some

N_CLASSES = 7  # of the toy source's head


def order_of(folder: Path, **sources: Path) -> LotOrder:
    """A trial of each source, on one pack."""
    pack = folder / "pack"
    if not pack.exists():
        write_pack(pack, n_per_class=30)
    orders = [make_order(make_recipe(source=ref), pack, path, folder) for ref, path in sources.items()]
    trials = [o.trials[0].model_copy(update={"trial_id": f"probe-{n}"}) for n, o in enumerate(orders)]
    return orders[0].model_copy(update={"trials": tuple(trials)})


def ranked(order: LotOrder) -> dict[str, Any]:
    return ranking_by(*looks(order))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source.safetensors")


@pytest.fixture
def headless(tmp_path: Path, source: Path) -> Path:
    kept = {name: tensor for name, tensor in load_file(source).items() if not name.startswith("head.")}
    save_file(kept, tmp_path / "headless.safetensors")
    return tmp_path / "headless.safetensors"


def test_scores_are_those_of_the_source_on_train_items(tmp_path: Path, source: Path) -> None:
    order = order_of(tmp_path, src_1=source)
    found = ranked(order)
    setting = Setting(order, order.trials[0], go)
    items = setting.items(0)[0]
    net = build("tiny_smallnet", n_classes=N_CLASSES, seed=0)
    load_start(net, source, with_head=True)
    with torch.no_grad():
        seen = net.eval().look(setting.problem.evaluation_inputs(items))
    labels = setting.problem.labels[items]
    features, probabilities = seen.pooled.double().numpy(), seen.logits.double().softmax(1).numpy()
    (entry,) = found["ranking"]
    assert (entry["rank"], entry["source"], entry["n_items"]) == (1, "src_1", 54)
    assert len(items) == 54
    assert set(entry["scores"]) == set(scores.names()) == set(found["ranked_by"])
    for name in scores.names():
        expected = scores.load(name).score(features, labels, probabilities)
        assert entry["scores"][name] == pytest.approx(expected, rel=1e-4), name
    assert entry["seconds"] > 0
    assert json.loads(json.dumps(found)) == found


def test_without_a_head_the_scores_that_need_one_are_left_out(tmp_path: Path, source: Path, headless: Path) -> None:
    found = ranked(order_of(tmp_path, src_head=source, src_none=headless))
    by_source = {entry["source"]: entry["scores"] for entry in found["ranking"]}
    need_head = {name for name in scores.names() if "source_head" in scores.needs(name)}
    assert set(by_source["src_head"]) - set(by_source["src_none"]) == need_head != set()
    assert by_source["src_none"]["logme"] == pytest.approx(by_source["src_head"]["logme"], rel=1e-4)
    assert not need_head & set(found["ranked_by"]), "what one source cannot have decides nothing"


def test_best_first_and_features_that_are_no_numbers_not_at_all(tmp_path: Path, source: Path) -> None:
    weights = load_file(source)
    broken = {n: torch.full_like(t, 1e30) if n.endswith("weight") else t for n, t in weights.items()}
    save_file(broken, tmp_path / "broken.safetensors")
    other = write_source(tmp_path / "other.safetensors", seed=5)
    found = ranked(order_of(tmp_path, src_b=tmp_path / "broken.safetensors", src_o=other, src_s=source))
    assert {entry["source"] for entry in found["ranking"]} == {"src_o", "src_s"}
    assert [entry["rank"] for entry in found["ranking"]] == [1, 2]
    first, second = found["ranking"]
    assert found["ranks_first"] == first["source"]
    assert first["mean_rank"] <= second["mean_rank"]
    won = [first["scores"][name] >= second["scores"][name] for name in found["ranked_by"]]
    assert sum(won) >= len(won) / 2


def test_too_few_items_give_no_ranking_and_no_error(tmp_path: Path, source: Path) -> None:
    write_pack(tmp_path / "pack", n_per_class=1, n_classes=1)
    assert ranked(order_of(tmp_path, src_1=source)) == {}


def test_the_items_are_of_train_alone(tmp_path: Path, source: Path) -> None:
    order = order_of(tmp_path, src_1=source)
    setting = Setting(order, order.trials[0], go)
    assert len(look(order, order.trials[0]).labels) == int((np.asarray(setting.pack.split) == 0).sum())


def test_never_more_than_five_hundred_items_and_the_same_every_time() -> None:
    items = np.arange(1000, 4000)
    chosen = some(items, 3)
    assert len(set(chosen.tolist())) == MAX_ITEMS == 500
    assert set(chosen.tolist()) <= set(items.tolist())
    assert np.array_equal(chosen, some(items, 3))
    assert not np.array_equal(chosen, some(items, 4))
    assert sorted(some(items[:20], 3)) == items[:20].tolist()


def test_the_meta_features_are_those_of_train_seen_through_the_best_source(tmp_path: Path, source: Path) -> None:
    other = write_source(tmp_path / "other.safetensors", seed=5)
    order = order_of(tmp_path, src_1=source, src_2=other)
    found = examined(order, ["probe-0", "probe-1"])
    meta = Meta.model_validate(found["meta"])
    best = found["ranking"][0]
    assert (meta.n_train, meta.n_classes, meta.per_class_mean, meta.per_class_min) == (54, 3, 18.0, 18)
    assert (meta.resolution, meta.chance, meta.source) == (32, pytest.approx(1 / 3), best["source"])
    assert meta.scores == best["scores"]
    assert meta.probe_accuracy == best["scores"]["ridge"]
    assert meta.skill == pytest.approx((best["scores"]["ridge"] - 1 / 3) / (2 / 3))
    assert meta.similarity is None, "no source dataset is named"
    assert json.loads(json.dumps(found)) == found


def test_one_source_is_examined_but_not_ranked_and_no_source_leaves_the_sizes(tmp_path: Path, source: Path) -> None:
    order = order_of(tmp_path, src_1=source)
    alone = examined(order, ["probe-0"])
    assert set(alone) == {"meta"}
    assert alone["meta"]["probe_accuracy"] is not None
    scratch = Meta.model_validate(examined(order, [])["meta"])
    assert (scratch.n_train, scratch.source, scratch.probe_accuracy, scratch.skill) == (54, None, None, None)


def test_the_distance_to_the_source_dataset_is_that_of_the_classes_means(tmp_path: Path, source: Path) -> None:
    order = order_of(tmp_path, src_1=source)
    far = write_pack(tmp_path / "far", n_per_class=30, n_classes=4, seed=9, noise=90.0)

    def to(pack: Path) -> Meta:
        trial = order.trials[0].model_copy(update={"source_pack": str(pack)})
        return Meta.model_validate(examined(order.model_copy(update={"trials": (trial,)}), ["probe-0"])["meta"])

    itself, other = to(tmp_path / "pack"), to(far)
    assert (itself.similarity, itself.distance) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-6))
    setting = Setting(order, order.trials[0], go)
    net = build("tiny_smallnet", n_classes=N_CLASSES, seed=0)
    load_start(net, source, with_head=True)
    far_setting = Setting(order, order.trials[0].model_copy(update={"pack": str(far)}), go)
    means = []
    for view, n_classes in ((far_setting, 4), (setting, 3)):
        items = np.flatnonzero(np.asarray(view.pack.split) == 0)
        with torch.no_grad():
            pooled = net.eval().look(view.problem.evaluation_inputs(items)).pooled.double().numpy()
        labels = view.problem.labels[items]
        means.append(np.array([pooled[labels == c].mean(0) for c in range(n_classes)]))
    moved = emd(means[0], np.ones(4), means[1], np.ones(3))
    apart = np.mean([np.linalg.norm(a - b) for a, b in combinations(means[0], 2)])
    assert other.distance == pytest.approx(moved / apart, rel=1e-4)
    assert other.similarity == pytest.approx(np.exp(-0.01 * moved), rel=1e-4)


def test_what_published_weights_are_worth_on_imagenet_has_a_vote() -> None:
    assert elsewhere("torchvision:resnet50") == {"imagenet": pytest.approx(0.7613)}
    assert elsewhere("src_1") == elsewhere("scratch:resnet50") == {}
