"""From an uploaded archive to a prepared dataset. Nothing of the archive is ever written under its own name.

The archive is read twice: once for its names, which decide the layout, once for its items, one at a time. A damaged
archive is refused; a damaged item is left out and listed.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from domain.dataset import Finding, Item, Manifest, Split, Statistics
from domain.errors import Invalid
from intake import images, splits
from intake.archives import kind, members, read_member
from intake.layouts import Candidate, Layout, load
from intake.likeness import Clusters, Print, cluster, fingerprint
from intake.limits import Limits
from intake.names import escape
from intake.prepared import Writer, member

_PRECEDENCE = (Split.TRAIN, None, Split.VAL, Split.TEST)  # which copy of an image is kept
_SEVERITIES = ("error", "warning", "info")
_IMBALANCE = 10
_FEW = 10


class Picture(NamedTuple):
    """What is kept of an image once its bytes have been looked at."""

    width: int
    height: int
    print: Print


class Usable(NamedTuple):
    candidate: Candidate
    id: str
    picture: Picture


def prepare(
    archive: Path, out: Path, *, task: str, options: dict[str, object], limits: Limits | None = None
) -> Manifest:
    """Check, divide and store the items of `archive`; `out` becomes a prepared zip (see `intake.prepared`)."""
    limits = limits or Limits()
    layouts = load(task)
    chosen = splits.read_options(options)
    names = [entry.name for entry in members(archive, limits)]
    layout = layouts.find_layout(names, lambda name: read_member(archive, name, limits), limits)
    _check_classes({c.label for c in layout.candidates})
    findings = list(layout.findings)
    with Writer(out) as writer:
        usable = _read_items(archive, layout, writer, limits, findings)
        usable = _drop_copies(usable, findings)
        classes = sorted({c.label for c in layout.candidates})
        _check_sizes(classes, usable)
        entries = _entries(usable, classes, findings)
        placed = splits.place(entries, chosen)
        items = _items(usable, entries, placed, findings)
        statistics = _statistics(items, classes, entries, placed.source)
        _check_splits(statistics, findings)
        manifest = Manifest(
            task=task, layout=layout.name, classes=tuple(classes), items=items, statistics=statistics,
            findings=_shown(findings, limits), n_findings=len(findings), content_hash=content_hash(classes, items),
            facts={"archive": kind(archive), "n_files": len(names), "options": chosen.model_dump(mode="json")},
        )  # fmt: skip
        writer.finish(manifest)
    return manifest


def content_hash(classes: Sequence[str], items: Iterable[Item]) -> str:
    """sha256 over the class names and (id, label, split) of every item, in no particular order."""
    lines = sorted(f"{item.id} {item.label} {item.split}" for item in items)
    return hashlib.sha256("\n".join([*classes, "", *lines]).encode()).hexdigest()


def _read_items(archive: Path, layout: Layout, writer: Writer, limits: Limits, findings: list[Finding]) -> list[Usable]:
    """Decode every candidate once; the bytes of each distinct usable image go to the writer."""
    wanted = {candidate.path: candidate for candidate in layout.candidates}
    known: dict[str, Picture | Invalid] = {}
    usable = []
    for entry in members(archive, limits):
        candidate = wanted.get(entry.name)
        if candidate is None:
            continue
        if entry.size > limits.max_item_bytes:
            findings.append(_finding("item_too_large", "error", f"over {limits.max_item_bytes} bytes", entry.name))
            continue
        data = entry.read()
        item_id = hashlib.sha256(data).hexdigest()
        if item_id not in known:
            known[item_id] = seen = _look(data, limits)
            if isinstance(seen, Picture):
                writer.add(item_id, data)
        seen = known[item_id]
        if isinstance(seen, Picture):
            usable.append(Usable(candidate, item_id, seen))
        else:
            findings.append(_finding(seen.code, "error", seen.detail, entry.name))
    return sorted(usable, key=_kept_first)


def _kept_first(item: Usable) -> tuple[str, str, int, str]:
    path, label, split = item.candidate
    return item.id, label, _PRECEDENCE.index(split), path


def _look(data: bytes, limits: Limits) -> Picture | Invalid:
    try:
        image = images.decode(data, limits)
    except Invalid as fault:
        return fault
    return Picture(image.width, image.height, fingerprint(image))


def _drop_copies(usable: Sequence[Usable], findings: list[Finding]) -> list[Usable]:
    """One item for equal bytes of one class, in train if any copy is there; copies in two classes stay, and warn."""
    kept: list[Usable] = []
    for item in usable:
        twin = kept[-1] if kept and kept[-1].id == item.id else None
        if twin is None:
            kept.append(item)
            continue
        path, other = item.candidate.path, escape(twin.candidate.path)
        if twin.candidate.label != item.candidate.label:
            kept.append(item)
            detail = f"the same image is {twin.candidate.label!r} as {other} and {item.candidate.label!r} here"
            findings.append(_finding("same_image_in_two_classes", "warning", detail, path))
        elif (twin.candidate.split or Split.TRAIN) != (item.candidate.split or Split.TRAIN):
            detail = f"the same bytes as {other}, in another split; left out here"
            findings.append(_finding("duplicate_across_splits", "warning", detail, path))
        else:
            findings.append(_finding("duplicate", "warning", f"the same bytes as {other}; left out", path))
    return kept


def _entries(usable: Sequence[Usable], classes: Sequence[str], findings: list[Finding]) -> list[splits.Entry]:
    """What the split needs to know: near-duplicates and copies in two classes share a cluster."""
    prints = np.stack([item.picture.print for item in usable])
    names, doubted = cluster(prints, [item.candidate.label for item in usable])
    for group in doubted:
        first = usable[group[0]].candidate
        detail = f"{len(group)} images look alike at small size; only the closest of them are kept on one side"
        findings.append(_finding("images_alike", "warning", detail, first.path))
    clusters = Clusters(len(usable))
    for i, name in enumerate(names):
        clusters.join(i, name)
        if i and usable[i].id == usable[i - 1].id:
            clusters.join(i, i - 1)
    names = clusters.names()
    for item, name in zip(usable, names, strict=True):
        if item.id != usable[name].id:
            findings += _likeness(item.candidate, usable[name].candidate)
    numbers = {label: number for number, label in enumerate(classes)}
    return [
        splits.Entry(item.id, numbers[item.candidate.label], name, item.candidate.split)
        for item, name in zip(usable, names, strict=True)
    ]


def _likeness(item: Candidate, first: Candidate) -> Iterator[Finding]:
    """What there is to say about a near-duplicate. Splits that the upload gives are not changed, only questioned."""
    shown = escape(first.path)
    if item.split and first.split and item.split != first.split:
        detail = f"looks like {shown}, which the upload puts into {first.split}"
        yield _finding("near_duplicate_across_splits", "warning", detail, item.path)
    else:
        yield _finding("near_duplicate", "info", f"looks like {shown}; both stay on one side of a split", item.path)
    if item.label != first.label:
        detail = f"looks like {shown} of class {first.label!r}"
        yield _finding("near_duplicate_across_classes", "warning", detail, item.path)


def _items(
    usable: Sequence[Usable], entries: Sequence[splits.Entry], placed: splits.Placed, findings: list[Finding]
) -> tuple[Item, ...]:
    items = []
    for item, entry, split, fold in zip(usable, entries, placed.splits, placed.folds, strict=True):
        path, picture = item.candidate.path, item.picture
        if split is None:
            findings.append(_finding("item_surplus", "info", "over n_train_per_class; left out", path))
            continue
        items.append(Item(
            id=item.id, path=escape(path), member=member(item.id), label=entry.label, split=split, fold=fold,
            width=picture.width, height=picture.height,
        ))  # fmt: skip
    return tuple(items)


def _statistics(
    items: Sequence[Item], classes: Sequence[str], entries: Sequence[splits.Entry], source: str
) -> Statistics:
    counts = Counter((item.label, item.split) for item in items)
    widths, heights = ([getattr(item, side) for item in items] for side in ("width", "height"))
    return Statistics.model_validate({
        "n_items": len(items),
        "n_classes": len(classes),
        "per_split": {s.value: sum(counts[k, s] for k in range(len(classes))) for s in Split},
        "per_class": {name: {s.value: counts[k, s] for s in Split} for k, name in enumerate(classes)},
        "width_quantiles": _quantiles(widths),
        "height_quantiles": _quantiles(heights),
        "n_near_duplicates": len(entries) - len({entry.cluster for entry in entries}),
        "split_source": source,
    })  # fmt: skip


def _quantiles(values: Sequence[int]) -> list[int]:
    return [int(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1], method="nearest")]


def _check_classes(classes: set[str]) -> None:
    if len(classes) < 2:
        raise Invalid(
            "dataset_too_few_classes",
            f"at least 2 classes are needed, found {', '.join(sorted(classes)) or 'none'}; give one folder per class, "
            "train/ val/ test/ folders of them, or a labels.csv with path,label",
            classes=sorted(classes),
        )


def _check_sizes(classes: Sequence[str], usable: Sequence[Usable]) -> None:
    counts = Counter(item.candidate.label for item in usable)
    if not usable:
        raise Invalid("dataset_empty", "not one image of the archive can be used")
    if small := {name: counts[name] for name in classes if counts[name] < 2}:
        shown = ", ".join(f"{name}: {n}" for name, n in list(small.items())[:20])
        raise Invalid(
            "dataset_class_too_small", f"every class needs 2 usable, different images ({shown})",
            counts={name: counts[name] for name in classes},
        )  # fmt: skip


def _check_splits(statistics: Statistics, findings: list[Finding]) -> None:
    """Every class trains, no split is empty; what is merely thin is said."""
    per_class = statistics.per_class
    if untrained := [name for name, counts in per_class.items() if not counts[Split.TRAIN]]:
        raise Invalid("dataset_class_too_small", f"no training image of {', '.join(untrained[:20])}", counts=per_class)
    if empty := [split for split, n in statistics.per_split.items() if not n]:
        raise Invalid(
            "dataset_too_small", f"too few different images to fill {' and '.join(empty)}", counts=statistics.per_split
        )
    for split in (Split.VAL, Split.TEST):
        if missing := [name for name, counts in per_class.items() if not counts[split]]:
            detail = f"{split} has no image of {', '.join(missing[:20])}"
            findings.append(_finding("class_missing_in_split", "warning", detail))
    trained = {name: counts[Split.TRAIN] for name, counts in per_class.items()}
    most, least = max(trained, key=lambda name: trained[name]), min(trained, key=lambda name: trained[name])
    if trained[most] > _IMBALANCE * trained[least]:
        detail = f"{most!r} has {trained[most]} training images, {least!r} has {trained[least]}"
        findings.append(_finding("class_imbalance", "warning", detail))
    if few := [f"{name}: {n}" for name, n in trained.items() if n < _FEW]:
        findings.append(_finding("few_items_per_class", "info", f"training images of {', '.join(few[:20])}"))


def _shown(findings: Sequence[Finding], limits: Limits) -> tuple[Finding, ...]:
    """The gravest first, then by path, as many as are kept."""
    ordered = sorted(findings, key=lambda f: (_SEVERITIES.index(f.severity), f.path or "", f.code))
    return tuple(ordered[: limits.max_findings])


def _finding(code: str, severity: str, detail: str, path: str | None = None) -> Finding:
    shown = None if path is None else escape(path)
    return Finding.model_validate({"code": code, "severity": severity, "detail": detail, "path": shown})
