"""The page of methods says what the code says, of every method."""

import re
from pathlib import Path

import pytest

from domain.space import Choice, FloatRange
from models.build import members
from transfer import scores
from transfer.parts import every_part
from worker import methods_page
from worker.methods_page import legal, plain, render, told


@pytest.fixture(scope="module")
def page() -> str:
    return render()


def test_every_method_has_its_section(page: str) -> None:
    for part in every_part():
        assert f'### <a id="{part.slot}{part.name}"></a>`{part.name}`\n' in page
        assert f"(#{part.slot}{part.name})" in page
    for name in scores.names():
        assert f"### `{name}`\n" in page
    for name, entry in members().items():
        assert (f"| `{name}` |" in page) == entry.variant.public


def test_every_method_states_its_cost(page: str) -> None:
    assert "not stated" not in page


def test_every_param_has_range_and_default(page: str) -> None:
    for part in every_part():
        section = page.partition(f'<a id="{part.slot}{part.name}">')[2].partition("\n### ")[0]
        for name, range_ in part.space.items():
            assert re.search(rf"^\| `{name}` \| .+ \| `.+` \|$", section, re.M), (part.name, name)
            assert legal(range_) in section


def test_rows_have_as_many_cells_as_their_heads(page: str) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block.splitlines()[0]


def test_fences_are_closed(page: str) -> None:
    assert page.count("```") % 2 == 0


def test_a_docstring_is_taken_apart() -> None:
    found = told("Does it.\n\nL = |a| * b\nSource 2018.\n\nCost: one pass\nmore.\n")
    assert found == ("Does it.", "L = |a| * b\nSource 2018.", "one pass more.")
    assert told("Does it.").cost == ""


def test_markdown_sees_nothing_of_its_own() -> None:
    assert plain("a|b *c* <d> `x_*y`") == r"a\|b \*c\* \<d> `x_*y`"


def test_ranges_in_words() -> None:
    assert legal(FloatRange(low=1e-4, high=1, log=True, default=0.1)) == "0.0001 to 1, logarithmic"
    assert legal(Choice(options=(True, "a"), default="a")) == "`True`, `a`"


def test_check_refuses_a_stale_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    monkeypatch.setattr(methods_page, "FILE", tmp_path / "methods.md")
    monkeypatch.setattr(methods_page, "render", lambda: page)
    monkeypatch.setattr("sys.argv", ["methods_page", "--check"])
    assert methods_page.main() == 1
    (tmp_path / "methods.md").write_text(page.replace("Methods", "Method", 1), "utf-8")
    assert methods_page.main() == 1
    assert "stale" in capsys.readouterr().err
    (tmp_path / "methods.md").write_text(page, "utf-8")
    assert methods_page.main() == 0
