"""The same trials on an accelerator: same start, same items, numbers that differ by rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import make_order, make_recipe, train, write_pack

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "l2_sp": {"regularizer": ("l2_sp", {"scope": "all"})},
    "average": {"averaging": ("ema", {})},
    "attention": {"feature": ("attention", {"beta": 10.0})},
    "cached": {"schedule": ("freeze", {"depth": 2})},
    "probe": {"schedule": ("linear_probe", {})},
}


@pytest.mark.parametrize("name", CASES)
def test_a_device_computes_what_the_cpu_computes(name: str, pack: Path, source: Path, tmp_path: Path) -> None:
    recipe = make_recipe(data={"augmentation": 0.0}, **CASES[name])
    _, here = train(make_order(recipe, pack, source, tmp_path / "cpu"))
    fit, there = train(make_order(recipe, pack, source, tmp_path / "cuda", device="cuda"))
    assert fit.outcome("tr_1").state == "COMPLETE", fit.outcome("tr_1").error
    assert fit.outcome("tr_1").peak_bytes > 0
    for one, two in zip(here, there, strict=True):
        assert one.terms["val/log_loss"] == pytest.approx(two.terms["val/log_loss"], abs=0.02)


@pytest.mark.parametrize("name", CASES)
def test_it_trains_in_bfloat16_with_views_cut_on_the_device(
    name: str, pack: Path, source: Path, tmp_path: Path
) -> None:
    order = make_order(make_recipe(**CASES[name]), pack, source, tmp_path, device="cuda", precision="bfloat16")
    fit, _ = train(order)
    assert fit.outcome("tr_1").state == "COMPLETE", fit.outcome("tr_1").error


def test_the_facts_of_a_network_are_measured_there(pack: Path, source: Path, tmp_path: Path) -> None:
    names = ("latency_ms", "latency_batch_ms", "size_bytes", "source_accuracy")
    related = write_pack(tmp_path / "related", n_classes=7)
    found = []
    for device in ("cpu", "cuda"):
        order = make_order(
            make_recipe(schedule=("linear_probe", {})), pack, source, tmp_path / device, device=device,
            source_pack=related,
        )  # fmt: skip
        asked = order.trials[0].model_copy(update={"measure": names})
        outcome = train(order.model_copy(update={"trials": (asked,)}))[0].outcome("tr_1")
        assert outcome.state == "COMPLETE", outcome.error
        assert all(outcome.metrics[name] > 0 for name in names[:3])
        found.append((outcome.metrics["size_bytes"], outcome.metrics["source_accuracy"]))
    assert found[0] == found[1]
