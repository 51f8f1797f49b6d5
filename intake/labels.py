"""A table of labels: `path,label[,split]`, one row per item, the header optional. Every fault names its row."""

import csv
import io
import re
from collections.abc import Iterator
from typing import NamedTuple

from domain.dataset import Split
from domain.errors import Invalid
from intake.limits import Limits
from intake.names import escape

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img"),
    "label": ("label", "class", "class_name", "category", "target"),
    "split": ("split", "set", "subset", "partition"),
}
SPLITS = {
    "train": Split.TRAIN, "training": Split.TRAIN,
    "val": Split.VAL, "valid": Split.VAL, "validation": Split.VAL, "dev": Split.VAL,
    "test": Split.TEST, "testing": Split.TEST,
}  # fmt: skip
_NUMBER = re.compile(r"[+-]?\d+([.,]\d*)?$")


class Row(NamedTuple):
    number: int  # as a person counts, the header included
    path: str
    label: str
    split: Split | None


def fault(name: str, number: int | None, why: str) -> Invalid:
    at = f", row {number}" if number else ""
    return Invalid("labels_invalid", f"{escape(name)}{at}: {why}", path=escape(name), row=number)


def has_header(data: bytes) -> bool:
    """Whether the first row names a path column and a label column."""
    first = data.split(b"\n", 1)[0][:4096].decode("utf-8-sig", "replace").strip("\r")
    return _header(next(csv.reader([first], delimiter=_delimiter(first)), [])) is not None


def read_rows(data: bytes, name: str, limits: Limits) -> list[Row]:
    """All rows of a table, checked one by one."""
    text = _decode(data, name)
    first = text.split("\n", 1)[0]
    columns: dict[str, int] | None = None
    rows = []
    for number, cells in _records(text, _delimiter(first), name):
        if columns is None:
            columns = _header(cells)
            if columns is not None:
                continue
            columns = {"path": 0, "label": 1, "split": 2}
        if any(cell.strip() for cell in cells):
            rows.append(_row(cells, columns, name, number, limits))
    if not rows:
        raise fault(name, None, "there is no row in it")
    return rows


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(name, data.count(b"\n", 0, error.start) + 1, "not UTF-8; save the table as UTF-8") from None
    if "\0" in text:
        raise fault(name, text.count("\n", 0, text.index("\0")) + 1, "holds a NUL byte; save the table as UTF-8")
    return text


def _records(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    number = 0
    while True:
        number += 1
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # also a cell of more than 128 KiB
            raise fault(name, number, str(error)) from None


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _header(cells: list[str]) -> dict[str, int] | None:
    known = [cell.strip().lower() for cell in cells]
    found = {
        column: next(known.index(alias) for alias in aliases if alias in known)
        for column, aliases in _COLUMNS.items()
        if not set(known).isdisjoint(aliases)
    }
    return found if {"path", "label"} <= set(found) else None


def _row(cells: list[str], columns: dict[str, int], name: str, number: int, limits: Limits) -> Row:
    values = {column: cells[at].strip() if at < len(cells) else "" for column, at in columns.items()}
    path, label, split = values["path"], values["label"], values.get("split", "").lower()
    if not path:
        raise fault(name, number, "the path is empty")
    if not label:
        raise fault(name, number, "the label is empty")
    if len(label) > limits.max_label_chars or len(path) > limits.max_path_bytes:
        raise fault(name, number, f"a cell is longer than {limits.max_label_chars} characters")
    for cell in (path, label):
        if cell[0] in "=@" or (cell[0] in "+-" and len(cell) > 1 and not _NUMBER.match(cell)):
            raise fault(name, number, f"{escape(cell[:40])!r} is a spreadsheet formula, not a value")
    if split and split not in SPLITS:
        raise fault(name, number, f"the split {escape(split[:40])!r} is none of train, val, test")
    return Row(number, path, label, SPLITS.get(split))
