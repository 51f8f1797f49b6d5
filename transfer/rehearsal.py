"""The end of a job in small: what evaluating and exporting cost on this machine, before anything is trained."""

import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

from domain.lot import LotOrder, TrialOrder
from models.build import build, member
from models.facts import preprocessing_of
from models.network import Network
from transfer import bundle
from transfer.evaluate import PixelNetwork, predict
from transfer.setting import Setting

N_ITEMS = 16
SMALLEST = "tiny_smallnet"


def look_s(order: LotOrder, trial: TrialOrder) -> tuple[float, int]:
    """Seconds of evaluating one item with the network of a trial, and the bytes of its weights."""
    setting = Setting(order, trial, lambda _: "go")
    net, _ = setting.borrow(setting.seed(0))
    pixel_network = PixelNetwork(net, setting.preprocessing)
    rows = np.flatnonzero(np.asarray(setting.pack.split) == 0)[:N_ITEMS]
    predict(pixel_network, setting.pack, rows[:1], device=order.device)  # allocation and autotuning
    began = time.perf_counter()
    predict(pixel_network, setting.pack, rows, device=order.device)
    seconds = (time.perf_counter() - began) / max(1, len(rows))
    weights_bytes = sum(t.numel() * t.element_size() for t in net.state_dict().values())
    setting.give_back(net)
    return seconds, weights_bytes


def export_s(order: LotOrder, trials: tuple[TrialOrder, ...]) -> tuple[float, float]:
    """Seconds of exporting the largest network of these trials, and of evaluating one item with what is exported.

    Exporting walks through a network module by module, whatever their size: the smallest one is exported, and the
    largest takes as much longer as it has more modules. ONNX Runtime is timed on the smallest one's pixels alike.
    """
    sizes = {t.recipe.backbone: (n_modules(t.recipe.backbone), t) for t in trials}
    (fewest, smallest), most = min(sizes.values(), key=lambda s: s[0]), max(n for n, _ in sizes.values())
    setting = Setting(order, smallest, lambda _: "go")
    seconds, s_per_item = _exported(smallest.recipe.backbone, setting.pack.crop, order.n_threads)
    return seconds * most / fewest, s_per_item


@cache
def n_modules(backbone: str) -> int:
    return sum(1 for _ in _fresh(backbone).modules())


def _fresh(backbone: str) -> Network:
    return build(backbone, n_classes=2, seed=0).eval()


@cache  # a fact of the machine: the next job need not wait for it
def _exported(backbone: str, size: int, n_threads: int) -> tuple[float, float]:
    network, smallest = (PixelNetwork(_fresh(b), preprocessing_of(member(b))) for b in (backbone, SMALLEST))
    pixels = np.zeros((N_ITEMS, size, size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rehearsal.onnx"
        bundle.write_onnx(smallest, path, temperature=1.0, size=32, metadata={})  # loads what exporters need
        began = time.perf_counter()
        bundle.write_onnx(network, path, temperature=1.0, size=size, metadata={})
        session = bundle.open_onnx(path, n_threads=n_threads)
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        session.run(["logits"], {"pixels": pixels})
        return seconds, (time.perf_counter() - began) / N_ITEMS
