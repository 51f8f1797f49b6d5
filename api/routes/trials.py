"""Trials: the recipe, the curve, how it ended."""

from fastapi import APIRouter

from api.auth import CallerDep
from api.ids import TrialId
from api.schemas.problem import problems
from api.schemas.trial import Curve, Trial, show_report, show_trial
from api.transactions import ReadDep
from store import trials

router = APIRouter(prefix="/v1/trials", tags=["trials"])

_FOUND = problems(401, 404, 503)


@router.get("/{trial}", summary="Show a trial", response_model=Trial, responses=_FOUND)
def get_trial(session: ReadDep, caller: CallerDep, trial: TrialId) -> Trial:
    """Everything about one recipe but its curve."""
    return show_trial(trials.get_trial(session, caller.workspace_id, trial))


@router.get("/{trial}/curve", summary="Show the curve of a trial", response_model=Curve, responses=_FOUND)
def get_curve(session: ReadDep, caller: CallerDep, trial: TrialId) -> Curve:
    """Every report, in the order of training; at most some hundreds."""
    row = trials.get_trial(session, caller.workspace_id, trial)
    return Curve(items=[show_report(report) for report in trials.reports_of(session, [row.id])])
