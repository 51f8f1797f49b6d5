"""Facts of a trained network that its predictions on val do not show: how fast it answers, how large it is, and what is
left of what its source knew. Measured once, on the network as it is kept, when the job asks for them.
"""

import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from domain.catalogue import Preprocessing
from domain.errors import Invalid
from intake.packs import Pack, open_pack
from models.ensemble import Ensemble
from models.network import HEAD, Network
from transfer import evaluate
from transfer.checkpoint import open_checkpoint
from transfer.evaluate import PixelNetwork
from transfer.setting import TEST, Setting
from transfer.warm import Shelf

N_BATCH = 32
WARM_UP, REPETITIONS, LIMIT_S = 5, 50, 1.0  # passes before, and passes measured: so many, or as many as fit
AT_LEAST = 5  # whatever they take
MOST_SOURCE_ITEMS = 2000  # tell a share to within two points or so, and a test split may be far larger

LATENCIES: Shelf[float] = Shelf(256)


def of_network(setting: Setting, weights: Path, source_head: Mapping[str, Tensor] | None) -> dict[str, float]:
    """The facts that the order wants of a trained network, by name; `weights` is its checkpoint."""
    asked = setting.trial.measure
    if not asked:
        return {}
    network = open_checkpoint(setting.recipe, weights, setting.n_classes)
    preprocessing, device = setting.preprocessing, setting.order.device
    found = {}
    if "size_bytes" in asked:
        found["size_bytes"] = float(size_bytes(network))
    pixels = PixelNetwork(network, preprocessing).to(device).eval()
    for name, n_items in (("latency_ms", 1), ("latency_batch_ms", N_BATCH)):
        if name in asked:
            found[name] = _latency_once(setting, pixels, network, n_items)
    if "source_accuracy" in asked:
        if source_head is None or setting.trial.source_pack is None:
            detail = "what the source still knows cannot be measured: its weights hold no head, or its dataset is gone"
            raise Invalid("no_source_head", detail)
        head = linear_head(source_head).to(device)
        pack = open_pack(Path(setting.trial.source_pack))
        found["source_accuracy"] = source_accuracy(network, head, pack, preprocessing, device=device)
    return found


def size_bytes(network: nn.Module) -> int:
    """Bytes of all weights and buffers that are kept; of an ensemble, those of every member."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def latency_ms(network: PixelNetwork, *, side: int, n_items: int, device: str) -> float:
    """Milliseconds from pixels (n, R, R, 3) on the device to logits, the median of many passes in full float32.

    The median, because another process may get in the way of some of them.
    """
    drawn = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n_items, side, side, 3), generator=drawn, dtype=torch.uint8).to(device)
    seconds: list[float] = []
    with torch.inference_mode(), evaluate.full_precision():
        for _ in range(WARM_UP):
            _timed(network, pixels)
        for done in count():
            if done == REPETITIONS or (done >= AT_LEAST and sum(seconds) > LIMIT_S):
                break
            seconds.append(_timed(network, pixels))
    return 1000 * median(seconds)


def source_accuracy(
    network: Network | Ensemble, head: nn.Module, pack: Pack, preprocessing: Preprocessing, *, device: str = "cpu"
) -> float:
    """Share of the source dataset's test items that the source's own head gets right on top of the trained body.

    Of very many items the same 2000 are asked in every trial. `network` has the source's head from then on; of an
    ensemble every member.
    """
    give_head(network, head)
    rows = np.flatnonzero(np.asarray(pack.split) == TEST)
    if len(rows) > MOST_SOURCE_ITEMS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_SOURCE_ITEMS, replace=False))
    logits = evaluate.predict(PixelNetwork(network, preprocessing), pack, rows, device=device)
    return evaluate.accuracy(logits, np.asarray(pack.labels[rows]))


def give_head(network: nn.Module, head: nn.Module) -> None:
    """Every head in `network`, one or one per member, becomes `head`."""
    for module in list(network.modules()):
        if HEAD in dict(module.named_children()):
            setattr(module, HEAD, head)


def linear_head(weights: Mapping[str, Tensor]) -> nn.Linear:
    """A source's own head, from its tensors."""
    n_classes, n_features = weights["weight"].shape
    head = nn.Linear(n_features, n_classes)
    head.load_state_dict(dict(weights))
    return head.eval()


def _latency_once(setting: Setting, pixels: PixelNetwork, network: Network | Ensemble, n_items: int) -> float:
    """A fact of the architecture, not of the weights: measured once in a process for all trials that share it."""
    recipe, side = setting.recipe, setting.pack.crop
    n_members = len(network.members) if isinstance(network, Ensemble) else 1
    surgery = recipe.surgery and recipe.surgery.model_dump_json()
    place = (setting.order.device, torch.get_num_threads())
    key = (recipe.backbone, recipe.head.kind, setting.n_classes, surgery, n_members, side, n_items, *place)
    return LATENCIES.get(key, lambda: latency_ms(pixels, side=side, n_items=n_items, device=setting.order.device))


def _timed(network: PixelNetwork, pixels: Tensor) -> float:
    """Seconds of one pass, to its very end."""
    began = time.perf_counter()
    network(pixels)
    if pixels.device.type == "cuda":
        torch.cuda.synchronize(pixels.device)
    return time.perf_counter() - began
