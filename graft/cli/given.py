"""What is given on the command line as text, read as the service takes it."""

from typing import Any, Literal

import typer


def parse_fixes(fixes: list[str]) -> dict[str, Any]:
    """`path=value` pairs as a space: `a=1`, `a=0.1..1` (a range), `a=x,y` (a choice), or JSON."""
    space: dict[str, Any] = {}
    for fix in fixes:
        path, sign, text = fix.partition("=")
        if not sign or not path.strip() or not text.strip():
            raise typer.BadParameter(f"{fix!r}: write it as path=value, as in data.flip=false", param_hint="--fix")
        space[path.strip()] = _fix_value(text.strip())
    return space


def parse_limits(given: list[str]) -> dict[str, dict[str, float]]:
    """`name<=value` and `name>=value` as the limits of a job."""
    import re

    limits: dict[str, dict[str, float]] = {}
    for text in given:
        found = re.fullmatch(r"\s*(\w+)\s*(<=|>=)\s*(\S+)\s*", text)
        bound = _scalar(found[3]) if found else None
        if found is None or isinstance(bound, bool) or not isinstance(bound, int | float):
            raise typer.BadParameter(f"{text!r}: write it as latency_ms<=20 or macro_f1>=0.8", param_hint="--limit")
        limits.setdefault(found[1], {})["at_most" if found[2] == "<=" else "at_least"] = bound
    return limits


def parse_fidelity(text: str) -> dict[str, Any] | Literal[False]:
    """`fraction=0.3`, `resolution=96` or `none`, as the service takes it."""
    if text.strip() == "none":
        return False
    dimension, _, low = text.partition("=")
    try:
        return {"dimension": dimension.strip(), "low": float(low)}
    except ValueError:
        detail = f"{text!r}: write it as fraction=0.3, resolution=96 or none"
        raise typer.BadParameter(detail, param_hint="--fidelity") from None


def parse_options(given: list[str]) -> dict[str, Any]:
    """`name=value` pairs as the options of a dataset; a value is a number, a word or JSON."""
    options: dict[str, Any] = {}
    for option in given:
        name, sign, text = option.partition("=")
        if not sign or not name.strip() or not text.strip():
            raise typer.BadParameter(f"{option!r}: write it as name=value, as in seed=3", param_hint="--option")
        options[name.strip()] = _scalar(text)
    return options


def _fix_value(text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError:
        pass
    low, dots, high = text.partition("..")
    if dots:
        ends = {"low": _scalar(low), "high": _scalar(high)}
        if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends.values()):
            raise typer.BadParameter(f"{text!r}: a range is written low..high with two numbers", param_hint="--fix")
        return ends
    if "," in text:
        return [_scalar(part) for part in text.split(",")]
    return _scalar(text)


def _scalar(text: str) -> Any:
    import json

    try:
        return json.loads(text.strip().lower() if text.strip().lower() in {"true", "false"} else text)
    except ValueError:
        return text.strip()
