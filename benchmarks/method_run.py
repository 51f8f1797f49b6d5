"""One method, one network, one seed, in a process of its own: its peak of memory is its own, and so is a crash."""

import hashlib
import json
import math
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.method_cases import Case
from domain.job import default_objective
from domain.lot import LotOrder, SourceFiles, TeacherFiles, TrialOrder
from domain.recipe import Recipe
from intake.packs import Pack, open_pack
from models.build import build
from models.weights import load_start, read_weights
from transfer import evaluate
from transfer.checkpoint import members_of, open_checkpoint, preprocessing_at
from transfer.evaluate import PixelNetwork
from transfer.fit import Fit
from transfer.measures import give_head

TRAIN, VAL, TEST = 0, 1, 2  # as packs number the splits
N_LOOKS = 300  # target pictures on which the source head is asked before and after
CONTEXT = multiprocessing.get_context("forkserver")  # a fork of a clean process: starts at once, its peak is its own

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    case: Case
    row: str  # the method, or the reference
    net: str  # which of the case's networks
    recipe: Recipe
    teacher: TeacherFiles | None = None
    keep: str | None = None  # where the trained weights go, if anyone wants them
    device: str = "cpu"

    @property
    def key(self) -> str:
        """The same for the same training: by this a finished run is found again, also when recipes can say more."""
        recipes = [None if self.teacher is None else self.teacher.recipe, self.recipe]
        said = [self.case.name, self.case.content.content_hash, self.row, self.net, self.device]
        shown = [recipe and recipe.model_dump(mode="json", exclude_defaults=True) for recipe in recipes]
        text = json.dumps([*said, *shown], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def place(self) -> Record:
        return {
            "key": self.key, "case": self.case.name, "row": self.row, "net": self.net,
            "backbone": self.recipe.backbone, "seed": self.recipe.seed,
        }  # fmt: skip


def each_alone(jobs: Sequence[Job], *, n_processes: int, until: float) -> Iterator[Record]:
    """The records of `jobs` as they end, each from its own process; none is begun, and none goes on, after `until`."""
    CONTEXT.set_forkserver_preload([__name__])
    waiting, running = list(jobs), dict[Any, tuple[Job, Any]]()
    try:
        while waiting or running:
            while waiting and len(running) < n_processes and time.monotonic() < until:
                job = waiting.pop(0)
                ours, its = CONTEXT.Pipe(duplex=False)
                process = CONTEXT.Process(target=_tell, args=(job, its))
                process.start()
                its.close()
                running[ours] = (job, process)
            left = until - time.monotonic()
            if left <= 0:
                return
            for pipe in wait(list(running), timeout=min(left, 1e6)):
                job, process = running.pop(pipe)
                yield job.place | _hear(pipe)
                process.join()
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()


def _tell(job: Job, pipe: Connection) -> None:
    pipe.send(train(job))


def _hear(pipe: Any) -> Record:
    try:
        heard: Record = pipe.recv()
    except EOFError:
        heard = {"state": "FAILED", "reason": "its process died"}
    return heard


def train(job: Job) -> Record:
    """Train, then look at what came out."""
    with tempfile.TemporaryDirectory() as scratch:
        fit = Fit(order_of(job, scratch), stopped=lambda _: "go")
        for _ in fit:
            pass
        outcome = fit.outcome("tr_0")
        record: Record = {
            "state": outcome.state, "reason": outcome.error, "seconds": round(outcome.cost_s, 2),
            "peak_mib": round(outcome.peak_bytes / 2**20), "remarks": outcome.facts.get("remarks", []),
        }  # fmt: skip
        if outcome.state == "COMPLETE":
            weights = Path(outcome.files["weights"])
            record |= look(job, weights)
            if job.keep is not None:
                shutil.copyfile(weights, job.keep)
    return record


def order_of(job: Job, scratch: str, **given: Any) -> LotOrder:
    """One trial, ranked as a job with so many val items would rank it."""
    own, content = job.case.nets[job.net], job.case.content
    objective = default_objective(int((content.split == VAL).sum()))
    trial = TrialOrder(
        trial_id="tr_0", number=0, recipe=job.recipe, pack=job.case.pack, source_pack=job.case.source_pack,
        source=SourceFiles(
            weights=None if job.recipe.source.startswith("scratch:") else own.weights, n_classes=own.n_source_classes
        ),
        teachers=() if job.teacher is None else (job.teacher,),
    )  # fmt: skip
    return LotOrder.model_validate({
        "lot_id": "lot_0", "fence": 1, "trials": (trial,), "objective": objective, "n_folds": 1,
        "classes": content.classes, "scratch": scratch, "device": job.device, **given,
    })  # fmt: skip


# --- what came out


def look(job: Job, weights: Path) -> Record:
    """Answers on test, what is left of the source task, how far each stage moved."""
    case, own = job.case, job.case.nets[job.net]
    net = open_checkpoint(job.recipe, weights, len(case.content.classes))
    rows = np.flatnonzero(case.content.split == TEST)
    found: Record = {"test": _bits(_logits(net, job, case.content, rows), case.content.labels[rows])}
    if own.weights is None or job.recipe.source.startswith("scratch:"):
        return found
    found["moved"] = moved(own.backbone, own.weights, weights)
    if own.n_source_classes:
        source = build(own.backbone, n_classes=own.n_source_classes)
        load_start(source, Path(own.weights), with_head=True)
        give_head(net, source.head)
        if case.source_pack is not None:
            pack = open_pack(Path(case.source_pack))
            items = np.flatnonzero(pack.split == TEST)
            for kind, network in (("source_before", source), ("source_after", net)):
                found[kind] = _bits(_logits(network, job, pack, items), pack.labels[items])
        before, after = (_logits(network, job, case.content, rows[:N_LOOKS]) for network in (source, net))
        found["source_kl"] = [round(float(v), 5) for v in kl(before, after)]
    return found


def kl(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:  # (N, C), (N, C) -> (N,)
    """KL(p || q), p the softmax before, q after."""
    p, q = evaluate.log_softmax(before), evaluate.log_softmax(after)
    divergence: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(1)
    return divergence


def moved(backbone: str, source: str, trained: Path) -> dict[str, float]:
    """||w - w0|| / ||w0|| by stage, over the weights that came from the source; of an ensemble, its last member's."""
    start = load_start(build(backbone, n_classes=1), Path(source)).weights
    tensors, _ = read_weights(trained)
    now = (members_of(tensors) or [tensors])[-1]
    sums: dict[str, tuple[float, float]] = {}
    for name, origin in start.items():
        if name in now:
            stage = name.partition(".")[0]
            far, size = sums.get(stage, (0.0, 0.0))
            far += (now[name].double() - origin.double()).square().sum().item()
            sums[stage] = (far, size + origin.double().square().sum().item())
    return {stage: float(f"{math.sqrt(far / max(size, 1e-30)):.4g}") for stage, (far, size) in sums.items()}


def _logits(net: nn.Module, job: Job, pack: Pack, rows: NDArray[np.int64]) -> NDArray[Any]:
    network: Any = net
    return evaluate.predict(PixelNetwork(network, preprocessing_at(job.recipe, pack)), pack, rows, device=job.device)


def _bits(logits: NDArray[Any], labels: NDArray[np.int64]) -> str:
    """1 where the answer is right, item by item."""
    return "".join("1" if right else "0" for right in logits.argmax(1) == labels)


def bits(text: str) -> NDArray[np.float64]:
    return np.frombuffer(text.encode(), np.uint8).astype(np.float64) - ord("0")


def load_progress(path: Path) -> dict[str, Record]:
    """Finished runs by key; a last line that was cut off is left out."""
    found: dict[str, Record] = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[record["key"]] = record
    return found


def remember(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
