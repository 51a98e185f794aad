"""/openapi.json, made from the very models that check the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.openai.requests import ChatRequest, CompletionRequest, EmbeddingRequest

_PATHS: dict[str, tuple[type[BaseModel], str]] = {
    "/v1/chat/completions": (ChatRequest, "An answer to a conversation"),
    "/v1/completions": (CompletionRequest, "How a text goes on"),
    "/v1/embeddings": (EmbeddingRequest, "Texts as unit vectors"),
}
_READ = {
    "/v1/models": "The models that are served now",
    "/health": "This process lives",
    "/ready": "200 when a model answers, 503 when none does",
    "/metrics": "Prometheus",
}
_CODES = ("400", "401", "403", "404", "408", "413", "429", "500", "502", "503", "504")


def openapi(models: Sequence[str]) -> dict[str, Any]:
    """The document of an API that serves these models now."""
    _, schemas = models_json_schema(
        [(model, "validation") for model, _ in _PATHS.values()], ref_template="#/components/schemas/{model}"
    )
    for model, _ in _PATHS.values():
        schemas["$defs"][model.__name__]["properties"]["model"] = {"type": "string", "enum": list(models)}
    error = {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    }
    failures = {
        code: {
            "description": "an error",
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
        for code in _CODES
    }
    paths: dict[str, Any] = {
        path: {
            "post": {
                "summary": summary,
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}
                    },
                },
                "responses": {
                    "200": {
                        "description": "the answer",
                        "content": {"application/json": {}, "text/event-stream": {}},
                    },
                    **failures,
                },
            }
        }
        for path, (model, summary) in _PATHS.items()
    }
    for path, summary in _READ.items():
        open_to_all: dict[str, Any] = {"security": []} if path in ("/health", "/ready") else {}
        answers = {"200": {"description": "yes"}, **failures}
        paths[path] = {"get": {"summary": summary, "responses": answers, **open_to_all}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "vlaunch", "version": "1"},
        "paths": paths,
        "components": {
            "schemas": {**schemas["$defs"], "Error": error},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
