"""Events as one line of text."""

from graft.answers import Event
from graft.cli.wording import error_text, estimate_line, number


def event_line(event: Event) -> str:
    """What happened, in words; a kind of event that this version does not know is shown as it came."""
    body = event.body
    if "number" in body:
        trial = f"trial {body['number']}" + (f" ({body['anchor']})" if body.get("anchor") else "")
    else:
        trial = f"trial {body.get('trial_id', '?')}"
    match event.kind:
        case "job.state":
            why = f": {error_text(body['error'])}" if body.get("error") else ""
            return f"job is {body.get('state', '?')}{why}"
        case "trial.created":
            return f"{trial} planned"
        case "trial.state":
            value = f", val {number(body['value'])}" if body.get("value") is not None else ""
            why = f": {error_text(body['error'])}" if body.get("error") else ""
            return f"{trial} is {body.get('state', '?')}{value}{why}"
        case "trial.report":
            value = f", val {number(body['value'])}" if body.get("value") is not None else ""
            return f"{trial} {round(float(body.get('share') or 0) * 100)} %{value}"
        case "job.best":
            return f"best so far: {trial}, val {number(body.get('value'))}"
        case "job.estimate":
            return estimate_line(body)
        case "job.result":
            share = (body.get("test_accuracy") or {}).get("value")
            return f"result: trial {body.get('best_number', '?')}, test accuracy {number(share)}"
        case "job.log":
            return str(body.get("text") or body.get("detail") or body.get("message") or body)
    rest = ", ".join(f"{name} {value}" for name, value in body.items())
    return f"{event.kind} {rest}".strip()
