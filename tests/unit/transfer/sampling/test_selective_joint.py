"""Selective joint fine-tuning: neighbours, how many an item gets, the joint loss, and none of it at weight 0."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from tests.toys import go, make_order, make_recipe, train, write_pack
from transfer.bench import Bench, Pools
from transfer.descriptors import divergences, grey, histograms, responses, target_edges
from transfer.sampling import selective_joint
from transfer.setting import Setting
from transfer.step import Step, View, Weights

PARAMS = {"k0": 10, "source_weight": 0.5}


@pytest.fixture(scope="module")
def source_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pack(tmp_path_factory.mktemp("joint") / "pack", n_classes=4, n_per_class=30, seed=3)


@pytest.fixture
def bench(pack: Path, source: Path, source_pack: Path, tmp_path: Path) -> Bench:
    recipe = make_recipe(sampling=("selective_joint", PARAMS))
    order = make_order(recipe, pack, source, tmp_path, source_pack=source_pack)
    return Bench(Setting(order, order.trials[0], go), 0)


def certain(labels: np.ndarray, *, wrong: list[int]) -> np.ndarray:
    logits = 20 * np.eye(3, dtype=np.float32)[labels]
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    return logits


def test_neighbours_are_those_of_all_pairs(bench: Bench) -> None:
    data, look = bench.source_data, bench.setting.preprocessing
    assert data is not None
    own = grey(bench.setting.problem.evaluation_inputs(bench.train), look.mean, look.std)
    its = grey(data.inputs(data.items), look.mean, look.std)
    edges = target_edges([own], len(own))
    gaps = divergences(histograms(responses(own), edges), histograms(responses(its), edges))
    found = bench.prepared[selective_joint.NEAREST].long()
    assert found.shape == (36, 72)
    ordered = gaps.gather(1, torch.from_numpy(np.searchsorted(data.items, found.numpy())))
    torch.testing.assert_close(ordered, gaps.sort(1).values, atol=1e-5, rtol=0)


def test_hard_items_get_more() -> None:
    logits = np.array([[9, 0, 0], [0, 9, 0], [1, 0, 0], [9, 0, 0]], np.float32)
    assert selective_joint.extra(logits, np.array([0, 0, 0, 0])).tolist() == [0, 4, 2, 0]
    even = np.zeros((2, 5), np.float32)
    assert selective_joint.extra(even, np.array([0, 3])).tolist() == [2, 4]


def test_the_threshold_is_a_tenth_of_the_largest_entropy() -> None:
    """Of two classes: the entropy over log 2 is .0997 at p = .9871 and .1003 at p = .9870."""
    for p, expected in ((0.9871, 0), (0.9870, 2)):
        share = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        assert (share >= 0.1) == (expected == 2)
        assert selective_joint.extra(np.log([[p, 1 - p]]).astype(np.float32), np.array([0])).tolist() == [expected]


def test_an_epoch_pairs_each_item_with_one_of_its_own_neighbours(bench: Bench) -> None:
    labels, nearest = bench.train_labels, bench.prepared[selective_joint.NEAREST].numpy()
    said = certain(labels, wrong=[0, 7])
    state: dict[str, torch.Tensor] = {}
    pools = Pools(bench.train, labels, bench.prepared, 0, 72, lambda: said, state)
    expected = np.full(36, 10)
    place_of = {item: n for n, item in enumerate(bench.train)}
    for epoch in range(4):
        drawn = selective_joint.draw(pools, None, np.random.default_rng(epoch), **PARAMS)
        assert sorted(drawn.items) == sorted(bench.train)
        assert np.array_equal(drawn.items, np.random.default_rng(epoch).permutation(bench.train))
        assert drawn.source is not None
        for item, row in zip(drawn.items, drawn.source, strict=True):
            n = place_of[item]
            assert row in nearest[n, : expected[n]]
        assert state[selective_joint.GRANTED].tolist() == expected.tolist()
        expected[[0, 7]] = np.minimum(expected[[0, 7]] + 40, 72)


def test_the_loss_is_the_weighed_cross_entropy_of_the_source_pictures(bench: Bench) -> None:
    net, data = bench.net, bench.source_data
    assert data is not None
    rows = data.items[:6]
    inputs, targets = data.inputs(rows), torch.from_numpy(data.labels[rows])

    def look(x: torch.Tensor) -> View:
        return View(lambda y: net.look(y), x, attached=True)

    step = Step(
        inputs=inputs[:1], targets=targets[:1], weights=Weights({}, {}), progress=0.0, seed=(0,), prepared={}, net=net,
        look=look, source=lambda: look(inputs), teacher=lambda: look(inputs), task_loss=functional.cross_entropy,
        source_batch=lambda: (inputs, targets),
    )  # fmt: skip
    head = net.get_submodule(selective_joint.HEAD_NAME)
    scores = net.features(inputs) @ head.weight.T + head.bias
    expected = 0.25 * (torch.logsumexp(scores, 1) - scores[torch.arange(6), targets]).mean()
    torch.testing.assert_close(selective_joint.loss(step, k0=10, source_weight=0.25), expected)
    assert selective_joint.loss(step, k0=10, source_weight=0.0).item() == 0.0


def test_weight_0_is_plain_fine_tuning(pack: Path, source: Path, source_pack: Path, tmp_path: Path) -> None:
    """Batch norm in mode "train": its running statistics must not see the source either."""
    found = []
    for name, given in (
        ("plain", {}),
        ("joint", {"sampling": ("selective_joint", {"k0": 10, "source_weight": 0.0})}),
        ("real", {"sampling": ("selective_joint", PARAMS)}),
    ):
        recipe = make_recipe(steps=6, batch_norm="train", **given)
        used = source_pack if given else None
        fit, _ = train(make_order(recipe, pack, source, tmp_path / name, source_pack=used))
        assert fit.outcome("tr_1").state == "COMPLETE", fit.outcome("tr_1").error
        found.append(load_file(fit.outcome("tr_1").files["weights"]))
    plain, joint, real = found
    assert plain.keys() == joint.keys()
    assert all(torch.equal(plain[n], joint[n]) for n in plain)
    assert not all(torch.equal(plain[n], real[n]) for n in plain)
