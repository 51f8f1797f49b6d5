import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import table
from benchmarks.table import Figure, lower_bound, quantile, render


def test_an_aim_holds_on_its_bound() -> None:
    assert Figure("a", 0.95, "ratio", (">=", 0.95)).holds is True
    assert Figure("a", 0.94, "ratio", (">=", 0.95)).holds is False
    assert Figure("a", 50.0, "ms", ("<=", 50.0)).holds is True
    assert Figure("a", 50.1, "ms", ("<=", 50.0)).holds is False
    assert Figure("a", 1.0, "s").holds is None


def test_rows_have_the_five_fields() -> None:
    row = Figure("gap, p50", 12.345678, "ms", ("<=", 50.0)).row()
    assert row == {"figure": "gap, p50", "value": 12.346, "unit": "ms", "aim": "<= 50", "holds": True}


def test_quantile_interpolates() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert quantile([0, 10], 0.99) == pytest.approx(9.9)


def test_the_lower_bound_lies_below_the_median_and_tightens() -> None:
    few, many = np.linspace(0.9, 1.1, 11).tolist(), np.linspace(0.9, 1.1, 1001).tolist()
    assert 0.9 < lower_bound(few) < lower_bound(many) < 1.0
    assert lower_bound([2.0, 2.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="at least two"):
        lower_bound([1.0])


def test_the_table_says_no_loudly() -> None:
    text = render({"gap": [Figure("p50", 60.0, "ms", ("<=", 50.0)), Figure("n", 50, "gaps")]})
    assert "NO" in text.splitlines()[2]
    assert len({line.index("p50") for line in text.splitlines() if "p50" in line}) == 1


def test_published_figures_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "OUT", tmp_path / "out")
    table.publish("speed", [Figure("x", 1.0, "s")], table.machine())
    page = json.loads((tmp_path / "out" / "speed.json").read_text("utf-8"))
    assert set(page) == {"machine", "rows"}
    assert page["machine"]["n_cores"] >= 1
    assert page["rows"] == [{"figure": "x", "value": 1.0, "unit": "s", "aim": None, "holds": None}]
    assert "speed" in capsys.readouterr().out
