"""Graft as a user has it: the embedded service is started, a job is submitted by the client, its bundle is fetched.

`graft_job.py <task.json>`. Start-up, upload, probe, search and finish all count; what is then asked of the service only
to draw curves (checkpoints of earlier incumbents, of the anchors) does not.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from benchmarks.rivals.task import Incumbent, Logits, Task, leave, read_task, right
from domain.recipe import Recipe
from graft import Client, Trial
from graft.downloads import unzip
from graft.home import running

PROBE_SHARE = 0.1  # of the budget: the job's own clock starts after its probe


def main(task: Task) -> None:
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch, service(Path(scratch) / "home", task) as client:
        started_s = task.elapsed_s()
        upload = client.datasets.upload(Path(task.folder) / "pictures.zip")
        source = client.sources.register(task.weights, task.backbone)
        dataset = client.datasets.wait(upload.id)
        submitted_s = task.elapsed_s()
        job = client.jobs.submit(
            dataset.id, sources=[source.ref], space={"data.resolution": task.resolution}, keep_top=50,
            wall_s=max(10.0, task.left_s() - PROBE_SHARE * task.budget_s), seed=task.seed,
        )  # fmt: skip
        done = client.jobs.wait(job.id)
        if done.result is None:
            raise RuntimeError(f"the job ended {done.state}: {done.error}")
        client.jobs.download_bundle(job.id, Path(scratch) / "bundle.zip")
        searched_s = task.elapsed_s()

        trials = list(client.jobs.trials(job.id))
        found = list(incumbents(client, trials, task, Path(scratch)))
        labels = task.data("test")[1]
        anchors = [(t.anchor, logits_of(client, t, task, Path(scratch))) for t in trials if t.anchor]
        others = {str(name): right(logits, labels) for name, logits in anchors if logits is not None}
        unzip(Path(scratch) / "bundle.zip", Path(scratch) / "bundle")
        from benchmarks.rivals.ours import bundle_on_test

        best = next(t for t in trials if t.id == done.result.best_trial_id)
        val = {"log_loss": done.result.val, "accuracy": (best.metrics or {}).get("accuracy", float("nan"))}
        found.append(Incumbent(searched_s, val, bundle_on_test(task, Path(scratch) / "bundle")))
        leave(
            task, found, searched_s=searched_s, others=others, started_s=started_s, submitted_s=submitted_s,
            first_trial_s=seconds(task, done.started_at), n_trials=len(trials), stopped_by=done.stopped_by,
            verdict=done.result.verdict, anchors_val={t.anchor: t.value for t in trials if t.anchor},
            states={state: sum(t.state == state for t in trials) for state in {t.state for t in trials}},
        )  # fmt: skip


@contextmanager
def service(home: Path, task: Task) -> Iterator[Client]:
    """An embedded service that ends with this process."""
    argv = [sys.executable, "-m", "graft", "serve", "--home", str(home), "--port", "0", "--watch-parent"]
    environment = os.environ | {"GRAFT_WORKERS": "1", "GRAFT_N_THREADS": "1"}
    with (Path(task.out) / "serve.log").open("wb") as log:
        server = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        while (facts := running(home)) is None:
            if server.poll() is not None:
                raise RuntimeError(f"the service did not start: see {task.out}/serve.log")
            time.sleep(0.02)
        with Client(facts.url, (home / "key").read_text().strip()) as client:
            yield client
    finally:
        server.terminate()
        server.wait()


def incumbents(client: Client, trials: list[Trial], task: Task, scratch: Path) -> Iterator[Incumbent]:
    """Completed trials that were the best when they ended; test only where the checkpoint was kept."""
    least = float("inf")
    ended = [t for t in trials if t.state == "COMPLETE" and t.value is not None and t.finished_at]
    for trial in sorted(ended, key=lambda t: str(t.finished_at)):
        if trial.value is not None and trial.value < least:
            least = trial.value
            val = {name: (trial.metrics or {}).get(name, float("nan")) for name in ("accuracy", "log_loss")}
            yield Incumbent(seconds(task, trial.finished_at), val, logits_of(client, trial, task, scratch))


def logits_of(client: Client, trial: Trial, task: Task, scratch: Path) -> Logits | None:
    """Of a trial's checkpoint on test, if it was kept."""
    from benchmarks.rivals.ours import on_test  # torch only once the clock has stopped: a client has none

    if not trial.has_checkpoint:
        return None
    file = client.trials.download_checkpoint(trial.id, scratch / f"{trial.id}.safetensors")
    return on_test(task, Recipe.model_validate(trial.recipe), file)


def seconds(task: Task, at: str | None) -> float:
    """A moment that the service tells, on the task's clock."""
    return datetime.fromisoformat(str(at)).timestamp() - task.began


if __name__ == "__main__":
    main(read_task(sys.argv[1]))
