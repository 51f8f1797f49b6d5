"""What a search reads of its trials: a few columns, for a job may have thousands of them."""

from collections import defaultdict
from collections.abc import Collection
from itertools import count
from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from store.tables import ReportRow, TrialRow

Curve = list[tuple[float, float]]  # (share, value)
MAX_ASKED = 1000  # ids in one query


class Learnable(NamedTuple):
    id: str
    number: int
    state: str
    anchor: str | None
    values: dict[str, Any]
    value: float | None
    metrics: dict[str, Any] | None
    attrs: dict[str, Any]


def learnable_trials(session: Session, job_id: str, *, known: Collection[int]) -> list[Learnable]:
    """The trials of a job by number, without those `known`."""
    first = next(number for number in count() if number not in known)
    columns = select(*(getattr(TrialRow, name) for name in Learnable._fields))
    query = columns.where(TrialRow.job_id == job_id, TrialRow.number >= first).order_by(TrialRow.number)
    return [trial for row in session.execute(query) if (trial := Learnable(*row)).number not in known]


def curves_of(session: Session, trial_ids: Collection[str]) -> dict[str, Curve]:
    """The curves of these trials on val, in the order in which they were trained."""
    curves: defaultdict[str, Curve] = defaultdict(list)
    columns = select(ReportRow.trial_id, ReportRow.share, ReportRow.value).where(ReportRow.value.is_not(None))
    ordered = columns.order_by(ReportRow.trial_id, ReportRow.share, ReportRow.fold, ReportRow.step)
    ids = list(trial_ids)
    for begin in range(0, len(ids), MAX_ASKED):
        points = session.execute(ordered.where(ReportRow.trial_id.in_(ids[begin : begin + MAX_ASKED])))
        for trial_id, share, value in points:
            curves[trial_id].append((share, float(value or 0.0)))
    return curves
