"""Facts of trained networks: sizes and shares worked out on another road, latencies by what must hold of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from domain.lot import LotOrder
from intake.packs import open_pack
from models.build import build, member
from models.facts import preprocessing_of
from tests.toys import make_order, make_recipe, train, write_pack, write_source
from transfer import evaluate, measures
from transfer.measures import LATENCIES, latency_ms, size_bytes


def asking(order: LotOrder, *names: str) -> LotOrder:
    return order.model_copy(update={"trials": tuple(t.model_copy(update={"measure": names}) for t in order.trials)})


def test_nothing_is_measured_unless_asked_for(pack: Path, source: Path, tmp_path: Path) -> None:
    fit, _ = train(make_order(make_recipe(), pack, source, tmp_path))
    assert "size_bytes" not in fit.outcome("tr_1").metrics


@pytest.mark.parametrize("surgery", [None, ("spottune", {}), ("residual_adapter", {})])
def test_size_is_what_the_checkpoint_holds(surgery: tuple | None, pack: Path, source: Path, tmp_path: Path) -> None:
    backbone = "tiny_resnet"
    start = write_source(tmp_path / "start.safetensors", backbone)
    recipe = make_recipe(backbone, steps=2, **({"surgery": surgery} if surgery else {}))
    fit, _ = train(asking(make_order(recipe, pack, start, tmp_path), "size_bytes"))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    kept = sum(t.numel() * t.element_size() for t in load_file(outcome.files["weights"]).values())
    assert outcome.metrics["size_bytes"] == kept
    plain = size_bytes(build(backbone, n_classes=3))
    assert (kept > plain) == (surgery is not None)


def test_an_ensemble_is_as_large_as_its_members_together(pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(
        steps=6, distillation=("born_again", {"generations": 1, "ensemble": True}), schedule=None
    )  # fmt: skip
    fit, _ = train(asking(make_order(recipe, pack, source, tmp_path), "size_bytes"))
    outcome = fit.outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error
    assert outcome.metrics["size_bytes"] == 2 * size_bytes(build("tiny_smallnet", n_classes=3))


def test_what_is_left_of_the_source_is_what_its_head_says_over_the_trained_body(
    pack: Path, source: Path, tmp_path: Path
) -> None:
    related = write_pack(tmp_path / "related", n_classes=7, n_per_class=30, seed=5)
    recipe = make_recipe(steps=8, optimizer={"lr_head": 0.1, "inner_ratio": 1.0})
    order = make_order(recipe, pack, source, tmp_path, source_pack=related)
    outcome = train(asking(order, "source_accuracy"))[0].outcome("tr_1")
    assert outcome.state == "COMPLETE", outcome.error

    before, trained = load_file(source), load_file(outcome.files["weights"])
    net = build("tiny_smallnet", n_classes=7).eval()
    joined = {n: t for n, t in trained.items() if not n.startswith("head.")}
    net.load_state_dict(joined | {n: t for n, t in before.items() if n.startswith("head.")})
    opened = open_pack(related)
    rows = np.flatnonzero(opened.split == 2)
    facts = preprocessing_of(member("tiny_smallnet"))
    pixels = torch.from_numpy(evaluate.evaluation_pixels(opened, rows)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(m).view(1, 3, 1, 1) for m in (facts.mean, facts.std))
    with torch.no_grad():
        said = net((pixels - mean) / std).argmax(1).numpy()
    assert outcome.metrics["source_accuracy"] == pytest.approx((said == opened.labels[rows]).mean())


def test_a_frozen_body_has_forgotten_nothing(pack: Path, source: Path, tmp_path: Path) -> None:
    related = write_pack(tmp_path / "related", n_classes=7, n_per_class=20)
    recipe = make_recipe(schedule=("linear_probe", {}), data={"augmentation": 0.0, "flip": False})
    order = make_order(recipe, pack, source, tmp_path, source_pack=related)
    outcome = train(asking(order, "source_accuracy"))[0].outcome("tr_1")
    net = build("tiny_smallnet", n_classes=7).eval()
    net.load_state_dict(load_file(source))
    opened = open_pack(related)
    rows = np.flatnonzero(opened.split == 2)
    network = evaluate.PixelNetwork(net, preprocessing_of(member("tiny_smallnet")))
    logits = evaluate.predict(network, opened, rows)
    assert outcome.metrics["source_accuracy"] == evaluate.accuracy(logits, opened.labels[rows])


def test_a_source_without_a_head_fails_the_trial_with_a_reason(pack: Path, tmp_path: Path) -> None:
    order = make_order(make_recipe(source="scratch:tiny_smallnet"), pack, None, tmp_path, source_pack=pack)
    outcome = train(asking(order, "source_accuracy"))[0].outcome("tr_1")
    assert (outcome.state, outcome.error_code) == ("FAILED", "no_source_head")


def test_one_network_has_one_latency_whatever_its_weights(pack: Path, source: Path, tmp_path: Path) -> None:
    LATENCIES.clear()
    found = []
    for place, changes in enumerate([{"seed": 0}, {"seed": 1}, {"head": {"kind": "mlp"}}]):
        order = make_order(make_recipe(steps=2, **changes), pack, source, tmp_path / str(place))
        outcome = train(asking(order, "latency_ms", "latency_batch_ms"))[0].outcome("tr_1")
        found.append((outcome.metrics["latency_ms"], outcome.metrics["latency_batch_ms"]))
    assert found[0] == found[1]
    assert found[0] != found[2]
    assert all(0 < one < 10_000 and 0 < many < 10_000 for one, many in found)


def test_latency_is_the_median_of_the_passes_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: ten passes that take 7 ms, and a few that something got in the way of."""
    seen: list[torch.Size] = []
    took = iter([5.0] * measures.WARM_UP + [0.007] * 30 + [0.2] * 20)

    def timed(_: object, pixels: torch.Tensor) -> float:
        seen.append(pixels.shape)
        return next(took)

    monkeypatch.setattr(measures, "_timed", timed)
    network = evaluate.PixelNetwork(build("tiny_smallnet", n_classes=3), preprocessing_of(member("tiny_smallnet")))
    assert latency_ms(network, side=32, n_items=4, device="cpu") == pytest.approx(7.0)
    assert set(seen) == {torch.Size([4, 32, 32, 3])}
    assert len(seen) < measures.WARM_UP + measures.REPETITIONS  # a second of them is enough
