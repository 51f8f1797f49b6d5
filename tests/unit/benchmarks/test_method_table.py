"""Intervals, verdicts and findings, worked out another way; the records of a comparison put together by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks.cost_maths import PREDICTED, Sums
from benchmarks.method_cases import Case, Net
from benchmarks.method_run import bits, kl, load_progress, remember
from benchmarks.method_table import FINE_TUNING, Paired, finding_rows, gather, method_rows, paired, slope
from models.build import build
from transfer.parts import every_part

RNG = np.random.default_rng(5)


def record(row: str, seed: int, right: np.ndarray, **more: Any) -> dict[str, Any]:
    text = "".join("1" if r else "0" for r in right)
    given = {"key": f"{row}{seed}", "case": "toy", "row": row, "net": "main", "backbone": "tiny_resnet", "seed": seed}
    return given | {"state": "COMPLETE", "reason": None, "test": text, "seconds": 1.0, "peak_mib": 100} | more


def case(similar: bool = True) -> Case:
    return Case("toy", similar, "nowhere", {"main": Net("tiny_resnet", "w")}, {})


def rows(share: float, n: int = 400) -> np.ndarray:
    return (np.arange(n) < share * n).astype(float)


# --- intervals


def test_with_one_seed_the_interval_is_students_over_items() -> None:
    d = RNG.choice([-1.0, 0.0, 1.0], (1, 200))
    found = paired(d)
    expected = stats.t.interval(0.95, 199, d.mean(), stats.sem(d[0]))
    assert (found.low, found.high) == pytest.approx(expected)


def test_with_items_that_never_differ_it_is_students_over_seeds() -> None:
    d = np.repeat([[0.1], [0.2], [0.6]], 50, axis=1)
    found = paired(d)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, 2, 0.3, stats.sem([0.1, 0.2, 0.6])))


def test_it_covers_a_true_difference_of_crossed_samples() -> None:
    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        d = 0.3 + rng.normal(0, 0.1, (3, 1)) + rng.normal(0, 1, (1, 100)) + rng.normal(0, 0.5, (3, 100))
        found = paired(d)
        inside += found.low <= 0.3 <= found.high
    assert inside >= 0.94 * 400


def test_no_difference_anywhere_is_unclear() -> None:
    assert paired(np.zeros((3, 10))) == (0, 0, 0)
    assert paired(np.zeros((3, 10))).verdict == "unclear"


def test_verdicts() -> None:
    assert Paired(1, 0.1, 2).verdict == "seen"
    assert Paired(-1, -2, -0.1).verdict == "not seen"
    assert Paired(1, -0.1, 2).verdict == "unclear"


def test_slope_is_that_of_polyfit() -> None:
    x, y = np.array([1.0, 2, 4, 5]), RNG.normal(size=(4, 3, 7))
    expected = np.polyfit(x, y.reshape(4, -1), 1)[0].reshape(3, 7)
    np.testing.assert_allclose(slope(x, y), expected)


# --- tables


def test_a_clear_difference_is_seen_and_stands_in_both_tables() -> None:
    records = [record(FINE_TUNING, seed, rows(0.8)) for seed in range(3)]
    records += [
        record("regularizer.l2", seed, rows(0.7), source_kl=[2.0] * 20, moved={"stem": 0.5}) for seed in range(3)
    ]
    records += [
        record("regularizer.l2_sp", seed, rows(0.9), source_kl=[1.0] * 20, moved={"stem": 0.1}) for seed in range(3)
    ]
    runs = gather(records)
    figures, text = method_rows(runs)
    by_method = {f.columns["method"]: f for f in figures}
    assert by_method["regularizer.l2_sp"].value == pytest.approx(0.9)
    assert by_method["regularizer.l2_sp"].columns["minus_fine_tuning"][0] == pytest.approx(0.1)
    assert by_method["regularizer.l2_sp"].columns["source_head_kl"] == 1.0
    assert "regularizer.l2_sp" in text
    found, _ = finding_rows([case()], runs, {})
    verdicts = {f.figure: f.columns["verdict"] for f in found}
    assert verdicts["toy: l2_sp beats l2 on a similar target"] == "seen"
    assert verdicts["toy: l2_sp moves the source head's answers less than l2 (KL)"] == "seen"


def test_accuracy_on_the_source_comes_before_divergence() -> None:
    source = {"source_before": "1" * 10, "source_kl": [1.0] * 5}
    records = [record("regularizer.l2", 0, rows(0.5), source_after="0" * 9 + "1", **source)]
    records += [record("regularizer.l2_sp", 0, rows(0.5), source_after="1" * 10, **source)]
    found, _ = finding_rows([case()], gather(records), {})
    [kept] = [f for f in found if "source task" in f.figure]
    assert kept.value == pytest.approx(90)
    figures, _ = method_rows(gather(records))
    assert [f.columns["source_task_lost"] for f in figures] == [0.9, 0.0]


def test_depth_that_hurts_is_seen() -> None:
    records = []
    for n, share in ((1, 0.9), (2, 0.8), (3, 0.6)):
        records += [record(f"AnB, n = {n}", seed, rows(share)) for seed in range(2)]
        records += [record(f"AnB+, n = {n}", seed, rows(0.9)) for seed in range(2)]
    found, _ = finding_rows([case()], gather(records), {"toy": [1, 2, 3]})
    by_claim = {f.figure.partition(": ")[2].split(" (")[0]: f for f in found}
    assert by_claim["AnB falls with depth"].columns["verdict"] == "seen"
    assert by_claim["AnB falls with depth"].value == pytest.approx(15)
    assert by_claim["AnB+ does not fall with depth"].columns["verdict"] == "unclear"


def test_what_failed_or_makes_no_sense_has_a_reason() -> None:
    failed = record("feature.x", 0, rows(0.5)) | {"state": "FAILED", "reason": "diverged"}
    figures, text = method_rows(gather([record(FINE_TUNING, 0, rows(0.8)), failed]))
    assert figures[1].value is None
    assert figures[1].columns["reason"] == "FAILED: diverged"
    assert "was not measured: FAILED: diverged" in text
    json.dumps([f.row() for f in figures])


# --- records


def test_bits_and_divergence() -> None:
    assert bits("0110").tolist() == [0, 1, 1, 0]
    p, q = np.array([[2.0, 0.0, -1.0]]), np.array([[0.0, 1.0, 0.5]])
    expected = stats.entropy(np.exp(p[0]) / np.exp(p).sum(), np.exp(q[0]) / np.exp(q).sum())
    assert kl(p, q)[0] == pytest.approx(expected)
    assert kl(p, p)[0] == 0


def test_a_line_that_was_cut_off_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    remember(file, {"key": "a", "state": "COMPLETE"})
    remember(file, {"key": "b", "state": "COMPLETE"})
    file.write_text(file.read_text("utf-8")[:-10], "utf-8")
    assert list(load_progress(file)) == ["a"]


# --- costs


def test_every_part_that_could_be_timed_has_a_prediction() -> None:
    without = {"surgery.adapter", "surgery.adaptformer", "schedule.linear_probe"}  # transformers; no steps at all
    assert {f"{p.slot}.{p.name}" for p in every_part()} == {*PREDICTED} | without


def test_operations_counted_by_hand() -> None:
    sums = Sums.of(build("tiny_smallnet", n_classes=3), 32, 8)
    convs = 4 * 3 * 25 * 8 * 8 + 8 * 4 * 9 * 4 * 4 + 16 * 8 * 9 * 2 * 2
    assert sums.macs == convs + 16 * 3
    assert sums.n_kernel_weights == 4 * 3 * 25 + 8 * 4 * 9 + 16 * 8 * 9
    assert sums.penalty_share == pytest.approx(3 * sums.n_kernel_weights / (6 * sums.macs * 8))
