"""The same trials on an accelerator: same start, same items, numbers that differ by rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.toys import make_order, make_recipe, train

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
