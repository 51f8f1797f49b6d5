"""`make demo`: transfer learning on handwritten digits, from A to B, over REST, on this machine alone.

A: the digits 0 to 4, with all their scans.  B: the digits 5 to 9, with 10 labelled scans each, 50 in all.
Job 1 trains a small network on A from scratch. Job 2 searches how best to transfer it to B. A control searches as long
on the same 50 scans from scratch. Everything else of B is test, and is looked at once per job.

The scans are those that scikit-learn ships (Alpaydin & Kaynak, UCI 1998: 1797 scans, 8x8 pixels), so nothing is
downloaded. The service lives in a temporary home; yours, if you have one, is not touched.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from curves import Curve, draw, sentence
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from graft import Client, Dataset, Interval, Job, Trial
from graft.cli.following import follow
from graft.cli.views import view_for_terminal
from graft.cli.wording import duration, interval
from graft.downloads import unzip
from graft.home import running

OUT = Path(__file__).resolve().parent / "out"
N_PER_CLASS = 10
SPLIT_SEED = 2026  # which 10; the settings below were chosen on other splits
TRIALS_A = 3
TRIALS_B = 16
# Digits have no mirror images; scans of 8x8 pixels are shown to the network at 32x32.
SPACE: dict[str, Any] = {"data.flip": False, "data.resolution": 32, "data.mixup_alpha": 0.0}
# Strong augmentation on A: features that bear shifts and stretches serve other digits better.
SPACE_A = {**SPACE, "steps": {"low": 800, "high": 1600}, "data.augmentation": 1.0}
# The same for transfer and control. At most 60 steps: given hundreds, a small network learns these digits from nothing
# nearly as well; what transfer brings is that it need not. Every stage moves at the rate of the head, and at a higher
# one than the default space, which is made for large pretrained networks, would try.
SPACE_B = {
    **SPACE,
    "steps": {"low": 24, "high": 60},
    "optimizer.lr_head": {"low": 0.03, "high": 0.2},
}
SPACE_B_TRANSFER = {**SPACE_B, "optimizer.inner_ratio": 1.0, "batch_norm": "train"}

NAMES = {
    "scratch": "from scratch, default",
    "linear_probe": "transfer, linear probe",
    "fine_tuning": "transfer, plain fine-tuning",
    "l2_sp": "transfer, L2-SP",
}

console = Console(highlight=False)


@dataclass(frozen=True)
class Row:
    """One line of the table at the end."""

    name: str
    test_accuracy: Interval
    training_s: float


def main() -> int:
    began = time.monotonic()
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="graft-demo-") as scratch_name:
        scratch = Path(scratch_name)
        held_out = write_scans(scratch)
        console.print(f"[bold]Graft demo[/]: a service in {scratch / 'home'}, its messages in {OUT / 'serve.log'}")
        with service(scratch / "home") as client:
            report = transfer(client, scratch)
            bundle = fetch_bundle(client, report.searched, scratch)
            seen = predict(bundle, held_out)
    tell(report, seen, time.monotonic() - began)
    return 0


def write_scans(scratch: Path) -> list[Path]:
    """Dataset folders `a` and `b`, and one scan of each digit of B that is never uploaded."""
    digits = load_digits()
    held_out: list[Path] = []
    for k, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        side = "a" if digit < 5 else "b"
        folder = scratch / side / str(digit)
        if side == "b" and not folder.exists():
            folder.mkdir(parents=True)
            folder = scratch / "held_out" / str(digit)
            held_out.append(folder / f"{k}.png")
        folder.mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels / 16 * 255).astype(np.uint8)  # 17 levels of ink
        Image.fromarray(grey).save(folder / f"{k}.png")
    return sorted(held_out)


@contextmanager
def service(home: Path) -> Iterator[Client]:
    """An embedded service that ends with this process, however this ends; one thread, so that its trials come to the
    same numbers on machines of a kind."""
    argv = [sys.executable, "-m", "graft", "serve", "--home", str(home), "--port", "0", "--watch-parent"]
    environment = os.environ | {"GRAFT_WORKERS": "1", "GRAFT_N_THREADS": "1"}
    with (OUT / "serve.log").open("wb") as log:
        server = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        while (facts := running(home)) is None:
            if server.poll() is not None:
                raise SystemExit(f"the service did not start: look into {OUT / 'serve.log'}")
            time.sleep(0.05)
        with Client(facts.url, (home / "key").read_text().strip()) as client:
            yield client
    finally:
        server.terminate()
        server.wait()


@dataclass(frozen=True)
class Report:
    """The three finished jobs and what they were run on."""

    source: Job
    searched: Job
    control: Job
    dataset_b: Dataset
    rows: tuple[Row, ...]
    curves: tuple[Curve, ...]


def transfer(client: Client, scratch: Path) -> Report:
    """A, then B from A, and B from nothing beside it."""
    a = client.datasets.upload(scratch / "a", "digits 0-4")
    few = {"n_labelled_per_class": N_PER_CLASS, "seed": SPLIT_SEED}
    b = client.datasets.upload(scratch / "b", "digits 5-9", options=few)
    a, b = client.datasets.wait(a.id), client.datasets.wait(b.id)
    for dataset in (a, b):
        console.print(f"dataset {dataset.name}: {splits(dataset)}")

    console.print("\n[bold]Job 1[/]: digits 0-4 from scratch")
    source = run(client, client.jobs.submit(
        a.id, name="source: digits 0-4", sources=["scratch:smallnet"], space=SPACE_A, trials=TRIALS_A, n_folds=1,
    ))  # fmt: skip
    console.print(f"test accuracy on 0-4: {interval(result_of(source).test_accuracy)}")

    console.print(
        f"\n[bold]Job 2[/]: digits 5-9 from job 1, {N_PER_CLASS} labelled scans each; a control from scratch beside it"
    )
    searched = client.jobs.submit(
        b.id, name="transfer: digits 5-9", sources=[source.id], space=SPACE_B_TRANSFER, trials=TRIALS_B
    )
    control = client.jobs.submit(
        b.id, name="control: digits 5-9", sources=["scratch:smallnet"], space=SPACE_B, trials=TRIALS_B
    )
    searched, control = run(client, searched), run(client, control)
    return Report(source, searched, control, b, rows(client, searched, control), curves(client, searched, control))


def run(client: Client, job: Job) -> Job:
    """The job at its end, shown while it runs."""
    with view_for_terminal() as view:
        job = follow(client, job, view)
    if job.state != "COMPLETE":
        raise SystemExit(f"{job.name} is {job.state}: {job.error}")
    return job


def result_of(job: Job) -> Any:
    assert job.result is not None
    return job.result


def splits(dataset: Dataset) -> str:
    counts = (dataset.statistics or {}).get("per_split", {})
    return ", ".join(f"{n} {split}" for split, n in counts.items())


def rows(client: Client, searched: Job, control: Job) -> tuple[Row, ...]:
    """Anchors and winners of both jobs, all on the same test scans."""

    def of_anchors(job: Job) -> list[Row]:
        return [
            Row(NAMES.get(a.name, a.name), a.test_accuracy, client.trials.get(a.trial_id).cost_s or 0.0)
            for a in result_of(job).anchors
        ]

    found = of_anchors(control)
    found.append(Row("from scratch, searched", result_of(control).test_accuracy, control.cost_s))
    found += of_anchors(searched)
    found.append(Row("transfer, searched", result_of(searched).test_accuracy, searched.cost_s))
    return tuple(found)


def curves(client: Client, searched: Job, control: Job) -> tuple[Curve, ...]:
    """Val accuracy by step: the same default recipe from scratch and from job 1, and the winners of both searches."""

    def curve(name: str, trial: Trial) -> Curve:
        return Curve.of(name, client.trials.curve(trial.id))

    found = []
    anchors = {t.anchor: t for job in (control, searched) for t in client.jobs.trials(job.id) if t.anchor}
    for anchor in ("scratch", "fine_tuning"):
        if anchor in anchors:
            found.append(curve(NAMES[anchor], anchors[anchor]))
    for name, job in (("from scratch, searched", control), ("transfer, searched", searched)):
        found.append(curve(name, client.trials.get(result_of(job).best_trial_id)))
    return tuple(found)


def fetch_bundle(client: Client, job: Job, scratch: Path) -> Path:
    """The bundle, kept in demo/out/bundle."""
    folder = OUT / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    unzip(client.jobs.download_bundle(job.id, scratch / "bundle.zip"), folder)
    return folder


def predict(bundle: Path, images: list[Path]) -> list[tuple[str, str, float]]:
    """What the bundle's own predict.py says of scans that were never uploaded: (digit, its label, its probability)."""
    argv = [sys.executable, "predict.py", *map(str, images), "--top", "1", "--json"]
    done = subprocess.run(argv, cwd=bundle, capture_output=True, text=True, check=True)
    answers = {Path(a["image"]).parent.name: a["predictions"][0] for a in json.loads(done.stdout)}
    return [(digit, best["label"], best["probability"]) for digit, best in answers.items()]


def tell(report: Report, seen: list[tuple[str, str, float]], wall_s: float) -> None:
    """The table, the verdict, the picture, and the same as JSON."""
    console.print("\n[bold]Scans that were never uploaded, through the bundle's predict.py[/]")
    for digit, label, probability in seen:
        console.print(f"  a {digit} is taken for a {label} ({probability:.2f})")

    result = result_of(report.searched)
    table = Table(title=f"\nTest accuracy on {result.n_test} scans of 5-9 that no search saw")
    table.add_column("recipe")
    table.add_column("accuracy [95 % interval]", justify="right")
    table.add_column("training time", justify="right")
    for row in report.rows:
        table.add_row(row.name, interval(row.test_accuracy), f"{row.training_s:.1f} s")
    console.print(table)
    console.print(result.verdict)
    said = sentence(report.curves)
    console.print(said)
    picture = draw(report.curves, OUT / "learning_curves.png", said)
    n_test_looks = result.n_test_looks
    content = {
        "rows": [asdict(row) for row in report.rows], "verdict": result.verdict, "curves": said,
        "held_out": [{"digit": d, "label": label, "probability": p} for d, label, p in seen],
        "n_test": result.n_test, "n_test_looks": n_test_looks, "splits": splits(report.dataset_b), "wall_s": wall_s,
    }  # fmt: skip
    (OUT / "result.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    console.print(f"\n{picture}\n{OUT / 'bundle'}\n{OUT / 'result.json'}\nwhole run: {duration(wall_s)}")


if __name__ == "__main__":
    sys.exit(main())
