"""The OpenAPI document: FastAPI's, with every error in the one form that they all have."""

from typing import Any

from fastapi import FastAPI

from api.schemas.problem import Problem

_REF = {"$ref": "#/components/schemas/Problem"}
_ANY_OTHER = {"description": "Any other error", "content": {"application/problem+json": {"schema": _REF}}}


def describe(app: FastAPI) -> None:
    """Let `app.openapi()` answer with the document below; built once."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = complete(build())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Replace FastAPI's own form of a validation error by ours, and say the form of any other error."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    own = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= own.pop("$defs", {}) | {"Problem": own}
    for path in document["paths"].values():
        for operation in path.values():
            if not isinstance(operation, dict) or "responses" not in operation:
                continue
            answers = operation["responses"]
            if "HTTPValidationError" in str(answers.get("422", "")):
                del answers["422"]
            answers["default"] = _ANY_OTHER
    return document
