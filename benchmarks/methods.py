"""Every registered method at its default, on the same splits, with three seeds.

    python -m benchmarks methods --quick     digits: from 0-4 to 5-9, a quarter of an hour at most on two cores
    python -m benchmarks methods --real      photographs and published weights, hours; what is done is not done again
    python -m benchmarks methods --real --limit-s 3600    stops after an hour with what there is

All networks of one case begin from the same weights, whichever seed: a seed draws the head, the views and the order.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.method_cases import DATA, Case, all_parts, digit_packs, digits_source, digits_target, photo_cases
from benchmarks.method_run import Job, Record, each_alone, load_progress, remember
from benchmarks.method_table import FINE_TUNING, L2, SCRATCH, TOWARDS_START, finding_rows, gather, method_rows
from benchmarks.table import OUT, Figure, machine, publish
from domain.lot import TeacherFiles
from domain.recipe import Part
from models.build import build

SEEDS = (0, 1, 2)
QUICK_LIMIT_S = 15 * 60
N_DEPTHS = 4  # of AnB and AnB+


def main(argv: Sequence[str]) -> int:
    given = _arguments(argv)
    facts, until = machine(), time.monotonic() + given.limit_s
    name = "methods_quick" if given.quick else "methods_real"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if given.quick else OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, until, given.processes, given.device, re.compile(given.only))
        cases = [digits(bench)] if given.quick else list(photo_cases(given.data, folder))
        if not cases:
            raise SystemExit(f"no photographs and weights in {given.data}; see --data")
        records = list(bench.compare(cases))
    figures, shown = report(cases, records)
    publish(name, figures, facts, shown=shown)
    return 0


def report(cases: Sequence[Case], records: Sequence[Record]) -> tuple[list[Figure], str]:
    """The figures for the JSON, and the text of both tables."""
    runs = gather(records)
    rows, table = method_rows(runs)
    found, verdicts = finding_rows(cases, runs, {case.name: depths_of(case) for case in cases})
    return [*rows, *found], f"{table}\n\n{verdicts}"


class Bench:
    """Runs jobs, each in its own process, and keeps every record in a file of lines."""

    def __init__(self, folder: Path, until: float, n_processes: int, device: str, only: re.Pattern[str]) -> None:
        self.folder, self.until, self.n_processes, self.device, self.only = folder, until, n_processes, device, only
        self.progress = folder / "progress.jsonl"

    def run(self, jobs: Sequence[Job]) -> list[Record]:
        """The records of `jobs` in their order, those that are still missing last; without what time did not allow."""
        known = load_progress(self.progress)
        missing = [
            job for job in jobs if job.key not in known or (job.keep is not None and not Path(job.keep).exists())
        ]
        began = time.monotonic()
        for n, record in enumerate(each_alone(missing, n_processes=self.n_processes, until=self.until), 1):
            remember(self.progress, record)
            known[record["key"]] = record
            told = f"{record['case']}, {record['row']}, seed {record['seed']}: {record['state']}"
            print(f"[{n}/{len(missing)}, {time.monotonic() - began:.0f} s] {told}", flush=True)
        return [known[job.key] | {"row": job.row} for job in jobs if job.key in known]

    def compare(self, cases: Sequence[Case]) -> Iterator[Record]:
        """First every case's teacher, then everything else, a seed at a time."""
        teachers: dict[str, TeacherFiles] = {}
        jobs: list[Job] = []
        refused: list[Record] = []
        for case in cases:
            job = self.job(case, "teacher, fine-tuned", "teacher", 0, {}, keep=f"teacher-{case.name}")
            teachers[case.name] = TeacherFiles(weights=str(job.keep), recipe=job.recipe)
            jobs.append(job)
        yield from self.run(jobs)
        jobs = []
        for case in cases:
            for row, net, slots, scratch, reason in rows_of(case):
                if not self.only.search(f"{case.name}, {row}") or not (case.complete or decides(row)):
                    continue
                if reason is not None:
                    refused.append(_skipped(case, row, net, reason))
                    continue
                jobs += [
                    self.job(case, row, net, seed, slots, scratch=scratch, teacher=teachers.get(case.name))
                    for seed in SEEDS
                ]
        jobs.sort(key=lambda job: (not decides(job.row), job.recipe.seed))
        done = {record["key"]: record for record in self.run(jobs)}
        order = sorted(jobs, key=lambda job: ([c.name for c in cases].index(job.case.name), rank(job.row)))
        yield from (done[job.key] for job in order if job.key in done)
        yield from refused

    def job(
        self, case: Case, row: str, net: str, seed: int, slots: dict[str, Part], *, scratch: bool = False,
        teacher: TeacherFiles | None = None, keep: str | None = None,
    ) -> Job:  # fmt: skip
        recipe = case.recipe(net, slots, seed=seed, scratch=scratch)
        kept = None if keep is None else str(self.folder / f"{keep}.safetensors".replace(" ", "_"))
        wants = any(
            "teacher" in part.needs_of(slots[part.slot].params)
            for part in all_parts() if part.slot in slots and slots[part.slot].name == part.name
        )  # fmt: skip
        return Job(case, row, net, recipe, teacher if wants else None, kept, self.device)


Row = tuple[str, str, dict[str, Part], bool, str | None]  # name, network, parts, from scratch, why not


def rows_of(case: Case) -> Iterator[Row]:
    """Every row of the table of one case: the references, every registered method, AnB and AnB+ by depth."""
    smaller = case.nets["student"] != case.nets["main"]
    for net in case.nets:
        if net != "teacher" and not (net == "student" and not smaller):
            yield FINE_TUNING, net, {}, False, None
            yield SCRATCH, net, {}, True, None
    for part in all_parts():
        name = f"{part.slot}.{part.name}"
        params = dict(case.instead.get(name, {}))
        slots = {part.slot: Part(name=part.name, params=params)}
        row = ", ".join([name, *(f"{param} = {value}" for param, value in params.items())])
        first = "student" if "teacher" in part.needs_of(params) and smaller else "main"
        reasons = {}
        for net in (first, *(n for n in ("main", "tokens") if n in case.nets and n != first)):
            refused = case.refusals(net, case.recipe(net, slots, seed=0), all_parts())
            if not refused:
                yield row, net, slots, False, None
                break
            reasons[net] = "; ".join(refusal.detail for refusal in refused)
        else:
            yield row, first, slots, False, reasons[first]
    for n in depths_of(case):
        kept = {"surgery": Part(name="reinit_above", params={"depth": n})}
        yield f"AnB, n = {n}", "main", {**kept, "schedule": Part(name="freeze", params={"depth": n})}, False, None
        yield f"AnB+, n = {n}", "main", kept, False, None


def depths_of(case: Case) -> list[int]:
    """A few depths, from the first stage to all of them."""
    n_stages = build(case.nets["main"].backbone, n_classes=1).n_stages
    count = min(N_DEPTHS, n_stages)
    return sorted({1 + round(k * (n_stages - 1) / max(1, count - 1)) for k in range(count)})


def decides(row: str) -> bool:
    """Whether a finding hangs on this row: those are trained first."""
    wanted = {FINE_TUNING, SCRATCH, L2, *(f"regularizer.{name}" for name in TOWARDS_START)}
    return row in wanted or row.startswith(("AnB", "distillation."))


def rank(row: str) -> tuple[int, str]:
    """References first, then methods by slot, depths last."""
    first = (FINE_TUNING, L2, SCRATCH, "schedule.linear_probe")
    return (first.index(row), "") if row in first else (len(first) + row.startswith("AnB"), row)


def digits(bench: Bench) -> Case:
    """The target, once networks have learned the source."""
    pack_a, pack_b = digit_packs(bench.folder)
    source = digits_source(pack_a)
    jobs = [bench.job(source, "source", net, 0, {}, keep=f"source-{net}") for net in source.nets]
    for record in (found := bench.run(jobs)):
        if record["state"] != "COMPLETE":
            raise SystemExit(f"the source was not learned: {record['reason']}")
        print(f"{record['backbone']}: {record['test'].count('1') / len(record['test']):.3f} on the source's test items")
    if len(found) < len(jobs):
        raise SystemExit("no time to learn the source")
    return digits_target(pack_a, pack_b, {job.net: str(job.keep) for job in jobs})


def _skipped(case: Case, row: str, net: str, reason: str) -> Record:
    return {
        "case": case.name, "row": row, "net": net, "backbone": case.nets[net].backbone, "seed": 0,
        "state": "not for this case", "reason": reason,
    }  # fmt: skip


def _arguments(argv: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(prog="python -m benchmarks methods", description=str(__doc__).partition("\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--quick", action="store_true", help="digits")
    which.add_argument("--real", action="store_true", help="photographs and published weights")
    parser.add_argument("--limit-s", type=float, help="stop after so many seconds")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the photographs, weights/ in it")
    parser.add_argument("--only", default="", help="a regular expression that `case, row` must match")
    given = parser.parse_args(argv)
    given.limit_s = given.limit_s or (QUICK_LIMIT_S if given.quick else float("inf"))
    return given
