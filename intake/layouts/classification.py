"""Labelled images, in one of three layouts, each also inside one enclosing folder:

class_folders   ants/1.jpg  bees/2.jpg
split_folders   train/ants/1.jpg  val/ants/2.jpg  test/bees/3.jpg
csv             labels.csv (or the only csv) with path,label[,split], and the images anywhere
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from domain.dataset import Finding
from domain.errors import Invalid
from intake.images import SUFFIXES
from intake.labels import SPLITS, Row, fault, has_header, read_rows
from intake.layouts import Candidate, Layout
from intake.limits import Limits
from intake.names import escape, is_junk

LABELS = "labels.csv"


def find_layout(names: Sequence[str], read: Callable[[str], bytes], limits: Limits) -> Layout:
    """Which files are items and of which class; a finding for each that is not."""
    images = sorted(name for name in names if _is_image(name))
    tables = sorted(name for name in names if name.lower().endswith(".csv") and not is_junk(name))
    if not images:
        raise Invalid("dataset_empty", f"there is no image among the {len(names)} files of the archive")
    root = _root(images, tables)
    folders = _from_folders(images, root)
    table = _labels_table(tables, root, read, n_classes=len({c.label for c in folders.candidates}))
    layout = folders if table is None else _from_table(images, root, table, read(table), limits)
    used = {candidate.path for candidate in layout.candidates} | {f.path for f in layout.findings} | {table}
    others = [name for name in sorted(names) if name not in used and escape(name) not in used]
    return layout._replace(findings=[*layout.findings, *map(_ignored, others), *_alike(layout.candidates)])


def _is_image(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return not is_junk(name) and (suffix in SUFFIXES or not suffix)


def _root(images: Sequence[str], tables: Sequence[str]) -> tuple[str, ...]:
    """The enclosing folders that all images share and that are no class or split themselves."""
    paths = [name.split("/") for name in images]
    depth = 0
    while len({path[depth] for path in paths}) == 1 and all(len(path) > depth + 1 for path in paths):
        head = paths[0][: depth + 1]
        nested = any(len(path) > depth + 2 for path in paths)
        has_table = any(table.split("/")[:-1] == head for table in tables)
        if head[-1].lower() in SPLITS or not (nested or has_table):
            break
        depth += 1
    return tuple(paths[0][:depth])


def _inner(name: str, root: tuple[str, ...]) -> list[str]:
    return name.split("/")[len(root) :]


def _from_folders(images: Sequence[str], root: tuple[str, ...]) -> Layout:
    paths = {name: _inner(name, root) for name in images}
    tops = {path[0] for path in paths.values() if len(path) > 2}
    in_splits = {top for top in tops if top.lower() in SPLITS}
    flat = {path[0] for path in paths.values() if len(path) == 2}
    # A folder called "train" of pictures of trains is a class: it holds pictures, not folders.
    others = {top for top in tops | flat if top.lower() not in SPLITS}
    by_split = bool(in_splits) and (not others or len({SPLITS[top.lower()] for top in in_splits}) > 1)
    candidates, findings = [], []
    for name, path in paths.items():
        if by_split and len(path) > 2 and path[0] in in_splits:
            candidates.append(Candidate(name, _class(path[1]), SPLITS[path[0].lower()]))
        elif not by_split and len(path) > 1:
            candidates.append(Candidate(name, _class(path[0]), None))
        else:
            findings.append(_unlabelled(name, "lies in no class folder"))
    return Layout("split_folders" if by_split else "class_folders", candidates, findings)


def _labels_table(
    tables: Sequence[str], root: tuple[str, ...], read: Callable[[str], bytes], *, n_classes: int
) -> str | None:
    """The csv that holds the labels: one called labels.csv, or the only one if the folders do not give classes."""
    near = [name for name in tables if len(_inner(name, root)) == 1 or "/" not in name]
    for name in near:
        if name.split("/")[-1].lower() == LABELS:
            return name
    only = near if len(near) == 1 else list(tables) if len(tables) == 1 else []
    return next((name for name in only if n_classes < 2 or has_header(read(name))), None)


def _from_table(images: Sequence[str], root: tuple[str, ...], table: str, data: bytes, limits: Limits) -> Layout:
    rows = read_rows(data, table, limits)
    find = _finder(images, root, table)
    chosen: dict[str, Row] = {}
    for row in rows:
        name = find(row.path)
        if name is None:
            raise fault(table, row.number, f"there is no image {escape(row.path[:200])!r} in the archive")
        before = chosen.setdefault(name, row)
        if (before.label, before.split) != (row.label, row.split):
            raise fault(table, row.number, f"{escape(name)!r} was given otherwise in row {before.number}")
    candidates = [Candidate(name, _class(row.label), row.split) for name, row in sorted(chosen.items())]
    findings = [_unlabelled(name, f"has no row in {table}") for name in images if name not in chosen]
    return Layout("csv", candidates, findings)


def _finder(images: Sequence[str], root: tuple[str, ...], table: str) -> Callable[[str], str | None]:
    """From what a row says to the image it means: beside the table, from the top, or by a file name that is unique."""
    known = {unicodedata.normalize("NFC", name): name for name in images}
    counts = Counter(name.split("/")[-1] for name in known)
    by_last = {last: name for path, name in known.items() if counts[last := path.split("/")[-1]] == 1}
    folders = {table.rpartition("/")[0], "/".join(root), ""}

    def find(path: str) -> str | None:
        wanted = unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./").strip("/")
        for folder in sorted(folders, key=len, reverse=True):
            if (name := known.get(f"{folder}/{wanted}" if folder else wanted)) is not None:
                return name
        return by_last.get(wanted)

    return find


def _class(raw: str) -> str:
    return escape(unicodedata.normalize("NFC", raw).strip()) or "_"


def _unlabelled(name: str, why: str) -> Finding:
    return Finding(code="item_unlabelled", severity="warning", detail=f"{why}; left out", path=escape(name))


def _ignored(name: str) -> Finding:
    why = "left behind by an operating system or an editor" if is_junk(name) else "not an image by its name"
    return Finding(code="file_ignored", severity="info", detail=why, path=escape(name))


def _alike(candidates: Sequence[Candidate]) -> list[Finding]:
    """Class names that differ in case alone are two classes, and probably should not be."""
    forms: dict[str, set[str]] = {}
    for candidate in candidates:
        forms.setdefault(candidate.label.casefold(), set()).add(candidate.label)
    return [
        Finding(code="class_names_alike", severity="warning", detail=f"{', '.join(sorted(names))} count as different")
        for names in forms.values()
        if len(names) > 1
    ]
