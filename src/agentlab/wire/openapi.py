"""The API as an OpenAPI 3.1 document, rendered from the rows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from agentlab import __version__
from agentlab.errors import AgentLabError
from agentlab.wire.routes import ALWAYS, PARAMETER, ROUTES, Route

REFERENCE = "#/components/schemas/{model}"
MEDIA = {"sse": "text/event-stream", "bytes": "application/octet-stream", "text": "text/plain"}
PROBLEM: dict[str, Any] = {
    "type": "object",
    "description": "An error: what happened, why, and what to do.",
    "required": ["code", "message", "cause", "remedy", "docs", "retryable", "request_id"],
    "properties": {
        "code": {"type": "string"},
        "message": {"type": "string"},
        "cause": {"type": "string"},
        "remedy": {"type": "string"},
        "docs": {"type": "string"},
        "retryable": {"type": "boolean"},
        "facts": {"type": "object"},
        "request_id": {"type": ["string", "null"]},
    },
}


def document() -> dict[str, Any]:
    """The whole document; the same rows give the same document."""
    bodies = {route.request_type for route in ROUTES.values()} | {route.query_type for route in ROUTES.values()}
    answers = {route.response_type for route in ROUTES.values()}
    wanted: list[tuple[type[BaseModel], Any]] = [(each, "validation") for each in _named(bodies)]
    wanted += [(each, "serialization") for each in _named(answers)]
    references, definitions = models_json_schema(wanted, ref_template=REFERENCE)
    schemas = {**definitions.get("$defs", {}), "Problem": PROBLEM}
    names: dict[Any, str] = {model: value["$ref"].rsplit("/", 1)[1] for (model, _), value in references.items()}
    paths: dict[str, Any] = {}
    for route in ROUTES.values():
        path = PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, names, schemas)
    queries = {names[query] for query in bodies if query is not None and query.__name__ in _query_names()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "AgentLab",
            "version": __version__,
            "description": "Run AI coding agents unattended in disposable sandboxes that you own.",
        },
        "servers": [{"url": "http://agentlab", "description": "over the daemon's Unix socket"}],
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": {name: each for name, each in sorted(schemas.items()) if name not in queries}},
    }


def _named(types: set[type[BaseModel] | None]) -> list[type[BaseModel]]:
    return sorted((each for each in types if each is not None), key=lambda each: each.__name__)


def _query_names() -> set[str]:
    return {route.query for route in ROUTES.values() if route.query is not None}


def _operation(route: Route, names: dict[Any, str], schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "tags": [route.name.partition(".")[0]],
        "summary": route.doc,
        "x-permission": route.permission,
        "parameters": _parameters(route, names, schemas),
        "responses": {str(route.status): _answer(route, names), **_failures((*route.errors, *ALWAYS))},
    }
    if route.request_type is not None:
        content = {"application/json": {"schema": {"$ref": REFERENCE.format(model=names[route.request_type])}}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.upload:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(route: Route, names: dict[Any, str], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in route.parameters
    ]
    if route.query_type is not None:
        schema = schemas[names[route.query_type]]
        found += [
            {"name": name, "in": "query", "required": False, "schema": each}
            for name, each in schema["properties"].items()
        ]
    if route.mutates:
        text = {"type": "string", "minLength": 1, "maxLength": 200}
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": text})
    if route.stream == "sse":
        found.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _answer(route: Route, names: dict[Any, str]) -> dict[str, Any]:
    if route.stream == "websocket":
        return {"description": "Switched to a WebSocket."}
    if route.stream is not None:
        return {"description": "Well.", "content": {MEDIA[route.stream]: {"schema": {"type": "string"}}}}
    if route.response_type is None:
        return {"description": "Well."}
    schema = {"$ref": REFERENCE.format(model=names[route.response_type])}
    return {"description": "Well.", "content": {"application/json": {"schema": schema}}}


def _failures(errors: tuple[type[AgentLabError], ...]) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for error in errors:
        by_status.setdefault(error.status, []).append(error.code)
    schema = {"$ref": REFERENCE.format(model="Problem")}
    return {
        str(status): {
            "description": ", ".join(sorted(set(codes))),
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status, codes in sorted(by_status.items())
    }
