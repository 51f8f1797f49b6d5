"""Events as one line of text."""

from graft.answers import Event
from graft.cli.wording import duration, error_text, number, size


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
            needs = f", {size(body['memory_bytes'])} of memory" if body.get("memory_bytes") else ""
            return f"a trial takes about {duration(body.get('s_per_trial'))} on {body.get('device', '?')}{needs}"
        case "job.result":
            share = (body.get("test_accuracy") or {}).get("value")
            return f"result: trial {body.get('best_number', '?')}, test accuracy {number(share)}"
        case "job.log":
            return str(body.get("text") or body.get("detail") or body.get("message") or body)
    rest = ", ".join(f"{name} {value}" for name, value in body.items())
    return f"{event.kind} {rest}".strip()
