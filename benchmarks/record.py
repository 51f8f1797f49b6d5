"""A table of real fine-tuning results, on which search methods are replayed in milliseconds.

    python -m benchmarks record                    goes on where it stopped, in hours on one core; safe to interrupt
    python -m benchmarks record --limit-s 3600     stops after an hour with what there is

Sobol recipes of a space like a job's, the same seed for all, on three datasets in turn: digits 5-9 from a network that
knows 0-4, surface defects from ImageNet, unseen CIFAR-10 pictures from CIFAR-10. Every run leaves its curve on val, its
final metrics on val and test, and its seconds, as one line in `benchmarks/out/record/`; the lines together are
`benchmarks/tables/finetuning.json.gz`.
"""

import argparse
import gzip
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import qmc

from benchmarks.method_cases import DATA, Case, digit_packs, digits_source, digits_target, few, packed, photo_cases
from benchmarks.method_run import TEST, TRAIN, VAL, Job, Record, load_progress, order_of, remember, train
from benchmarks.table import OUT
from domain.recipe import compose
from domain.space import Choice, Condition, Dimension, FloatRange, IntRange, Range, Space, Value
from models.build import build
from transfer import evaluate
from transfer.checkpoint import open_checkpoint, preprocessing_at
from transfer.evaluate import PixelNetwork
from transfer.fit import Fit

TABLE = Path(__file__).parent / "tables" / "finetuning.json.gz"
N_RECIPES = 256  # a power of two keeps Sobol's points balanced, and so does every smaller power on the way there
SOBOL_SEED, TRAIN_SEED = 0, 0
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


@dataclass(frozen=True)
class Dataset:
    """A case, the network that is fine-tuned on it, and the steps of a run."""

    case: Case
    net: str
    steps: int

    @property
    def name(self) -> str:
        return self.case.name

    @property
    def space(self) -> Space:
        backbone = build(self.case.nets[self.net].backbone, n_classes=1)
        resolution = self.case.settings["data"]["resolution"]
        return recipe_space(backbone.n_stages, self.steps, resolution)


def recipe_space(n_stages: int, steps: int, resolution: int) -> Space:
    """What a job searches by default, less what would change the time of a run much, plus the average of weights."""
    found: list[Dimension] = []

    def put(path: str, range_: Range, **when: str) -> None:
        conditions = tuple(Condition(path=slot, values=(name,)) for slot, name in when.items())
        found.append(Dimension(path=path, range=range_, when=conditions))

    def real(low: float, high: float, default: float) -> FloatRange:
        return FloatRange(low=low, high=high, log=True, default=default)

    put("optimizer.lr_head", real(1e-3, 0.3, 1e-2))
    put("optimizer.inner_ratio", real(0.01, 1.0, 0.1))
    put("optimizer.momentum", Choice(options=(0.0, 0.9), default=0.9))
    put("batch_norm", Choice(options=("train", "eval"), default="eval"))
    put("data.batch_size", Choice(options=(16, 32), default=32))
    put("data.augmentation", FloatRange(low=0.0, high=1.0, default=0.5))
    put("data.mixup_alpha", Choice(options=(0.0, 0.1, 0.2), default=0.0))
    put("data.label_smoothing", Choice(options=(0.0, 0.1), default=0.0))
    put("schedule.freeze.depth", IntRange(low=0, high=n_stages, default=0))
    put("regularizer", Choice(options=("l2", "l2_sp", "l1_sp"), default="l2_sp"))
    put("regularizer.l2.alpha", real(1e-6, 1e-2, 1e-4), regularizer="l2")
    put("regularizer.l2_sp.alpha", real(1e-4, 1.0, 1e-2), regularizer="l2_sp")
    put("regularizer.l1_sp.alpha", real(1e-6, 1e-2, 1e-4), regularizer="l1_sp")
    put("averaging", Choice(options=("none", "ema"), default="none"))
    put("averaging.ema.decay", FloatRange(low=0.9, high=0.999, default=0.99), averaging="ema")
    fixed: dict[str, Value] = {"schedule": "freeze", "data.resolution": resolution, "steps": steps}
    return Space(dimensions=tuple(found), fixed=fixed)


def sobol_values(space: Space, n: int, seed: int = SOBOL_SEED) -> list[dict[str, Value]]:
    """The first `n` scrambled Sobol points of a space: every dimension has a coordinate, inactive ones are dropped."""
    points = qmc.Sobol(len(space.dimensions), scramble=True, rng=seed).random(n)
    found = []
    for point in points:
        values = dict(space.fixed)
        for dimension, u in zip(space.dimensions, point, strict=True):
            if dimension.active(values):
                values[dimension.path] = value_at(dimension.range, float(u))
        found.append(values)
    return found


def value_at(range_: Range, u: float) -> Value:
    """The value at share u in [0, 1) of a range; of a choice, equal parts."""
    if isinstance(range_, Choice):
        return range_.options[int(u * len(range_.options))]
    if isinstance(range_, IntRange):
        return range_.low + int(u * (range_.high - range_.low + 1))
    if range_.log:
        return float(range_.low * (range_.high / range_.low) ** u)
    return float(range_.low + u * (range_.high - range_.low))


# --- the runs


@dataclass(frozen=True)
class Run:
    dataset: Dataset
    number: int
    values: dict[str, Value]

    @property
    def key(self) -> str:
        """The same for the same training, whatever else recipes may come to hold."""
        case = self.dataset.case
        backbone = case.nets[self.dataset.net].backbone
        text = json.dumps([case.content.content_hash, backbone, TRAIN_SEED, self.values], sort_keys=True)
        return f"{case.name}/{self.number}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def main(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    progress, until = folder / "progress.jsonl", time.monotonic() + given.limit_s
    datasets = list(open_datasets(given.data, folder))
    known, began, n_done = load_progress(progress), time.monotonic(), 0
    todo = [run for run in runs_of(datasets, given.recipes) if run.key not in known]
    for run in todo:
        if time.monotonic() >= until:
            break
        record = {"key": run.key, "values": run.values} | trained(run)
        remember(progress, record)
        known[run.key], n_done = record, n_done + 1
        told = f"{run.dataset.name}, recipe {run.number}: {record['state']} in {record['seconds']} s"
        print(f"[{n_done}/{len(todo)}, {time.monotonic() - began:.0f} s] {told}", flush=True)
        if n_done % 30 == 0:
            save(datasets, known, given.recipes)
    save(datasets, known, given.recipes)
    return 0


def open_datasets(data: Path, folder: Path) -> Iterator[Dataset]:
    """Digits always; the others where their pictures and weights lie in `data`."""
    pack_a, pack_b = digit_packs(folder)
    source, weights = digits_source(pack_a), folder / "source.safetensors"
    if not weights.exists():
        train(Job(source, "source", "main", source.recipe("main", {}, seed=0), keep=str(weights)))
    yield Dataset(digits_target(pack_a, pack_b, dict.fromkeys(source.nets, str(weights))), "main", 150)
    photos = {case.name: case for case in photo_cases(data, folder)}
    if case := photos.get("neu_surface"):
        yield Dataset(case, "student", 100)
    if case := photos.get("cifar10_unseen"):  # with half the pictures: the more on val, the rarer a curve is measured
        made = packed(folder / "cifar10_unseen.zip", folder / "fewer", "cifar_resnet20", 32, few(0.1))
        yield Dataset(replace(case, pack=str(made)), "main", 80)


def runs_of(datasets: Sequence[Dataset], n: int) -> Iterator[Run]:
    """Recipe after recipe, each on every dataset: whatever is there when it stops is even."""
    values = {dataset.name: sobol_values(dataset.space, n) for dataset in datasets}
    for number in range(n):
        for dataset in datasets:
            yield Run(dataset, number, values[dataset.name][number])


def trained(run: Run) -> Record:
    """The curve on val, the final metrics on val and test, the seconds of training."""
    case, net = run.dataset.case, run.dataset.net
    content, backbone = case.content, case.nets[net].backbone
    recipe = compose({**run.values, "source": "src_0"}, task="classification", backbone=backbone, seed=TRAIN_SEED)
    with tempfile.TemporaryDirectory() as scratch:
        fit = Fit(order_of(Job(case, f"recipe {run.number}", net, recipe), scratch), stopped=lambda _: "go")
        curve = [[r.share, r.terms.get("val/accuracy"), r.terms.get("val/log_loss")] for r in fit]
        outcome = fit.outcome("tr_0")
        record: Record = {"state": outcome.state, "reason": outcome.error, "seconds": outcome.cost_s, "curve": curve}
        if outcome.state == "COMPLETE":
            trained_net: Any = open_checkpoint(recipe, Path(outcome.files["weights"]), len(content.classes))
            rows = np.flatnonzero(content.split == TEST)
            network = PixelNetwork(trained_net, preprocessing_at(recipe, content))
            test = evaluate.metrics(evaluate.predict(network, content, rows), content.labels[rows])
            for split, metrics in (("val", outcome.metrics), ("test", test)):
                record[split] = [metrics["accuracy"], metrics["log_loss"]]
    rounded: Record = _rounded(record)
    return rounded


# --- the table


def save(datasets: Sequence[Dataset], known: Mapping[str, Record], n: int) -> None:
    """Everything that is done, as one file; the same runs give the same bytes."""
    page: dict[str, Any] = {"schema_version": 1, "columns": ["share", "accuracy", "log_loss"], "datasets": []}
    rows: dict[str, list[Record]] = {dataset.name: [] for dataset in datasets}
    for run in runs_of(datasets, n):
        if record := known.get(run.key):
            kept: Record = {k: record[k] for k in ("state", "seconds", "curve", "val", "test") if k in record}
            searched = {p: v for p, v in run.values.items() if p not in run.dataset.space.fixed}
            rows[run.dataset.name].append({"values": _rounded(searched), **kept})
    for dataset in datasets:
        sizes = {kind: int((dataset.case.content.split == code).sum()) for kind, code in SPLITS.items()}
        page["datasets"].append({
            "name": dataset.name, "backbone": dataset.case.nets[dataset.net].backbone,
            "content_hash": dataset.case.content.content_hash, "n_classes": len(dataset.case.content.classes),
            "n_items": sizes,
            "space": dataset.space.model_dump(mode="json"), "runs": rows[dataset.name],
        })  # fmt: skip
    if TABLE.exists() and sum(map(len, rows.values())) < n_runs(json.loads(gzip.decompress(TABLE.read_bytes()))):
        print(f"{TABLE.name} holds more than was recorded here, and is left alone", flush=True)
        return
    TABLE.parent.mkdir(exist_ok=True)
    text = json.dumps(page, ensure_ascii=False, separators=(",", ":"))
    TABLE.write_bytes(gzip.compress(text.encode(), mtime=0))
    told = ", ".join(f"{name} {len(found)}" for name, found in rows.items())
    print(f"{TABLE.name}: {told}; {TABLE.stat().st_size / 1e3:.0f} kB", flush=True)


def n_runs(page: Mapping[str, Any]) -> int:
    return sum(len(data["runs"]) for data in page["datasets"])


def _rounded(given: Any) -> Any:
    """Four significant digits are more than one seed is worth."""
    if isinstance(given, float):
        return float(f"{given:.4g}")
    if isinstance(given, Mapping):
        return {key: _rounded(value) for key, value in given.items()}
    return [_rounded(value) for value in given] if isinstance(given, list) else given


def _arguments(argv: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks record", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--recipes", type=int, default=N_RECIPES, help="of each dataset")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop after so many seconds")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the photographs, weights/ in it")
    parser.add_argument("--folder", type=Path, default=OUT / "record", help="where packs and progress lie")
    return parser.parse_args(argv)
