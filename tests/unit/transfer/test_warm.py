"""Shelves keep what was used last, and nothing else."""

from pathlib import Path

from transfer.warm import Shelf, file_key, forget


def test_the_least_recently_used_goes_first() -> None:
    shelf: Shelf[str] = Shelf(2)
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    for name in ("a", "b", "a", "c", "a", "b"):
        assert shelf.get(name, lambda name=name: make(name)) == name
    assert made == ["a", "b", "c", "b"]


def test_things_weigh_what_they_say_and_the_newest_always_stays() -> None:
    shelf: Shelf[int] = Shelf(10, float)
    shelf.put("small", 4)
    shelf.put("large", 40)
    assert shelf.take("small") is None
    assert shelf.take("large") == 40


def test_what_is_taken_is_gone_and_forgetting_empties_all() -> None:
    shelf: Shelf[int] = Shelf(3)
    shelf.put("a", 1)
    shelf.put("b", 2)
    assert shelf.take("a") == 1
    assert shelf.take("a") is None
    forget()
    assert shelf.take("b") is None


def test_a_file_that_was_written_again_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    before = file_key(path)
    path.write_text("three")
    assert file_key(path) != before
