"""`graft train PATH`: from a folder of images to a bundle and an honest account."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from graft.answers import Dataset, Job
    from graft.archives import Archive
    from graft.cli.memory import Remembered
    from graft.client import Client

OnInterrupt = Literal["ask", "cancel", "keep", "detach"]


def train(
    path: Annotated[
        Path, typer.Argument(help="Folder (class/photo.jpg, or train/ val/ test/ of such, or a CSV), CSV or archive.")
    ],
    task: Annotated[str, typer.Option(help="The learning problem.")] = "classification",
    preset: Annotated[
        Literal["fast", "balanced", "best"],
        typer.Option(
            help="How much the answer is worth: minutes, an hour or two, or a night. Sets sources, space, budget and "
            "the rest together; other options stand in place of its own."
        ),
    ] = "balanced",
    budget_trials: Annotated[
        int | None,
        typer.Option(min=1, help="Stop after so many trials; the preset's ends count if no end is given here."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Have the bundle after so many minutes of searching.")
    ] = None,
    device_minutes: Annotated[
        float | None, typer.Option(min=0.01, help="Stop after so many minutes of training, all workers together.")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="Stop once the best trial is as good as this on val, by the first objective.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many searched trials in a row without a new best.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="Weights to start from (torchvision:resnet18, src_…, job_…, scratch:smallnet). Repeatable."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Who teaches, for distillation: a finished job (job_…) with the same classes, best or ensemble (of "
            "this job's own trials), or larger weights that are fine-tuned first (torchvision:resnet50, src_…)."
        ),
    ] = None,
    source_dataset: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="A dataset (ds_…) that the source was trained on, or one like it."),
    ] = None,
    learn_from: Annotated[
        Literal["workspace", "installation", "nothing"] | None,
        typer.Option(help="Whose finished jobs say which recipes to try first; this workspace's if not given."),
    ] = None,
    screen: Annotated[
        bool | None,
        typer.Option(
            "--screen/--no-screen",
            help="Whether the sources' ranking before training may reorder them and leave hopeless ones out.",
        ),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=1, max=5, help="Fits per trial: 1 is the fastest; by the size of val if not given."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="What to look for: accuracy, log_loss, macro_f1, balanced_accuracy or auc first; repeated, with a "
            "further one or latency_ms, latency_batch_ms, size_bytes, source_accuracy, it gives a front to choose from."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME<=VALUE",
            help="Only networks within it can win: 'latency_ms<=20', 'size_bytes<=5e6', 'macro_f1>=0.8'. Repeatable.",
        ),
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=10,
            metavar="N",
            help="Train the best N recipes again with two further seeds each, inside the budget, and choose by the "
            "mean; 0: none.",
        ),
    ] = None,
    combine: Annotated[
        bool | None,
        typer.Option(
            "--combine/--no-combine",
            help="Whether an average or an ensemble of the best trials may be handed back, where val says so.",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="Who proposes recipes: auto, tpe, random, qmc, gp, cmaes, nsga2, nsga3, pshe2 or hazero."),
    ] = None,
    pruner: Annotated[
        str | None,
        typer.Option(
            help="What stops trials early: median, halving, hyperband, patience, wilcoxon, extrapolation or none."
        ),
    ] = None,
    fidelity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=LOW",
            help="Try every trial cheaply first, and run the best third in full: fraction=0.3 of the training items, "
            "or resolution=96; none: in full at once.",
        ),
    ] = None,
    anchors: Annotated[
        bool | None,
        typer.Option("--anchors/--no-anchors", help="Whether the linear probe, plain fine-tuning and L2-SP run first."),
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Trials at a time; one per worker if not given.")] = None,
    keep_top: Annotated[int | None, typer.Option(min=1, max=50, help="Trials whose weights are kept; 3.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all that is drawn; 0 if not given.")] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=VALUE",
            help="Fix what is searched, or say where to search: data.flip=false, optimizer.lr_head=0.001..0.5, "
            "regularizer=l2,l1_sp. Repeatable; `graft methods` lists the paths.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="How the dataset is prepared: n_labelled_per_class=10, n_train_per_class=20, seed=3. Repeatable.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the bundle; it must be new or empty.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of dataset and job; the folder's name if not given.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Submit and leave; the same call later picks it up.")
    ] = False,
    on_interrupt: Annotated[OnInterrupt, typer.Option(help="What Ctrl-C does to the job.")] = "ask",
) -> None:
    """Find the best way to fine-tune a network on labelled images.

    Starts a service in the background if none is configured. Called again on the same content while a detached job
    still runs, it follows that job.
    """
    from graft.cli.bundle import check_empty
    from graft.cli.given import parse_fidelity, parse_fixes, parse_limits, parse_options
    from graft.home import home_folder

    path = path.expanduser().absolute()
    if not path.exists():
        raise typer.BadParameter(f"{path} does not exist", param_hint="PATH")
    if out is not None:
        check_empty(out)
    options = parse_options(option or [])
    wanted: dict[str, Any] = {
        "name": name or path.stem,
        "preset": preset,
        "sources": source,
        "teacher": teacher,
        "source_dataset_id": source_dataset,
        "n_folds": folds,
        "learn_from": learn_from,
        "screen": screen,
        "combine": combine,
        "confirm": {"top": confirm} if confirm else (None if confirm is None else False),
        "objectives": objective,
        "limits": parse_limits(limit or []),
        "sampler": sampler,
        "pruner": pruner,
        "anchors": anchors,
        "parallel": parallel,
        "keep_top": keep_top,
        "seed": seed,
        "fidelity": None if fidelity is None else parse_fidelity(fidelity),
        "space": parse_fixes(fix or []),
        "trials": budget_trials,
        "wall_s": None if minutes is None else minutes * 60,
        "device_s": None if device_minutes is None else device_minutes * 60,
        "target": target,
        "patience": patience,
    }
    home = home_folder()
    with _service(home) as client:
        job = _submit_or_pick_up(client, home, path, task, options, wanted)
        if detach:
            typer.echo(f"{job.id} goes on by itself: `graft status {job.id}`, or this call again to follow it")
            return
        job = _follow(client, job, on_interrupt)
        _leave(client, job, out, path)


def _service(home: Path) -> "Client":
    """The configured service, else the embedded one of this home, started if need be."""
    import os

    from graft.client import Client
    from graft.home import running
    from graft.serving import require, start_background

    if not os.environ.get("GRAFT_URL") and running(home) is None:
        require("fastapi", "worker")
        require("torch", "worker")
        typer.echo(f"starting a service in {home} (log: {home / 'serve.log'}; `graft stop` ends it)")
        start_background(home)
    return Client(home=home)


def _submit_or_pick_up(
    client: "Client", home: Path, path: Path, task: str, options: dict[str, Any], wanted: dict[str, Any]
) -> "Job":
    """The unfinished job of this content and these options, else a new one on a dataset that is uploaded only if it is
    new."""
    from graft.archives import as_archive
    from graft.cli.memory import Remembered, recall, remember, service_name

    with tempfile.TemporaryDirectory(prefix="graft-train-") as scratch:
        with _progress("packing") as tell:
            archive = as_archive(path, Path(scratch), tell=tell)
        service = service_name(home, client.url)
        known = recall(home, path, archive.sha256, service, options)
        job = _unfinished(client, known)
        if job:
            typer.echo(f"following {job.id}, which runs on this content already; its options stay as they are")
            return job
        dataset = _usable(client, known, task) or _upload(client, home, archive, str(wanted["name"]), task, options)
    remember(home, Remembered(str(path), archive.sha256, service, dataset.id, options=options))
    if dataset.state != "READY":
        typer.echo("checking every image")
        dataset = client.datasets.wait(dataset.id)
    _describe(dataset)
    job = client.jobs.submit(dataset.id, **wanted)
    remember(home, Remembered(str(path), archive.sha256, service, dataset.id, job.id, options))
    typer.echo(f"job {job.id}")
    return job


def _unfinished(client: "Client", known: "Remembered | None") -> "Job | None":
    from graft.errors import GraftApiError

    if known is None or known.job_id is None:
        return None
    try:
        job = client.jobs.get(known.job_id)
    except GraftApiError as problem:
        if problem.status == 404:
            return None
        raise
    return None if job.finished else job


def _usable(client: "Client", known: "Remembered | None", task: str) -> "Dataset | None":
    """The dataset that this content became earlier, if the service still has it."""
    from graft.errors import GraftApiError

    if known is None:
        return None
    try:
        dataset = client.datasets.get(known.dataset_id)
    except GraftApiError as problem:
        if problem.status == 404:
            return None
        raise
    return dataset if dataset.state in {"READY", "CHECKING"} and dataset.task == task else None


def _upload(
    client: "Client", home: Path, archive: "Archive", name: str, task: str, options: dict[str, Any]
) -> "Dataset":
    with _progress("uploading") as tell:
        return client.datasets.upload_archive(archive, name, task, options, tell=tell, memory=home / "uploads.json")


def _progress(what: str) -> Any:
    from graft.cli.transfers import transfer_progress

    return transfer_progress(what)


def _describe(dataset: "Dataset") -> None:
    """What the service found in the dataset, in a few lines."""
    facts = dataset.statistics or {}
    counts = ", ".join(f"{n} {split}" for split, n in (facts.get("per_split") or {}).items())
    typer.echo(
        f"dataset {dataset.id}: {facts.get('n_items', '?')} images, {facts.get('n_classes', '?')} classes ({counts})"
    )
    shown = sorted(dataset.findings, key=lambda f: f.severity == "info")[:5]
    for finding in shown:
        place = f"{finding.path}: " if finding.path else ""
        typer.echo(f"  {finding.severity}: {place}{finding.detail} ({finding.code})")
    if dataset.n_findings > len(shown):
        typer.echo(f"  {dataset.n_findings} findings in all; `graft datasets --json` has more of them")


def _follow(client: "Client", job: "Job", on_interrupt: OnInterrupt) -> "Job":
    """The finished job. A Ctrl-C is answered as the user wants; after `keep`, the job is followed to its end."""
    from graft.cli.following import follow
    from graft.cli.interrupts import on_ctrl_c
    from graft.cli.views import view_for_terminal

    while True:
        try:
            with view_for_terminal() as view:
                return follow(client, job, view)
        except KeyboardInterrupt:
            on_ctrl_c(client, job.id, on_interrupt)
            job = client.jobs.get(job.id)


def _leave(client: "Client", job: "Job", out: Path | None, path: Path) -> None:
    """The bundle in a folder and the account on the screen; GraftError if there is none to leave."""
    from graft.cli.account import account
    from graft.cli.bundle import fetch_bundle, fresh_folder
    from graft.cli.wording import error_text
    from graft.errors import GraftError

    if job.state != "COMPLETE":
        why = error_text(job.error) if job.error else f"stopped by {job.stopped_by}, no finished trial was kept"
        raise GraftError(f"{job.id} is {job.state}: {why}")
    folder, names = fetch_bundle(client, job.id, out or fresh_folder(path.stem))
    for line in account(job):
        typer.echo(line)
    hint = f"   try it: cd {folder} && pip install -r requirements.txt && python predict.py IMAGE" if names else ""
    typer.echo(f"\nbundle: {folder}{hint}")
