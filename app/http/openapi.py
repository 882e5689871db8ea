"""The parts of `/openapi.json` that FastAPI does not know, since it parses no request here.

Binary bodies are media types without a schema, as in OpenAPI 3.1.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import ERROR_TYPES, NotFound
from ..formats import json, multipart, safetensors
from ..inputs import DECODERS, READERS
from ..options import LossOptions, option_text
from . import problems

Responses = dict[int | str, dict[str, Any]]

PALETTE_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
PLAIN_TEXT: Responses = {200: {"description": "OK", "content": {"text/plain": {}}}}

_OBJECT = {"schema": {"type": "object"}}
_FILE = {"type": "string", "contentMediaType": "application/octet-stream"}
_BODIES: Mapping[str, dict[str, Any]] = {
    safetensors.MEDIA_TYPE: {},
    multipart.MEDIA_TYPE: {
        "schema": {"type": "object", "properties": dict.fromkeys(READERS, _FILE)}
    },
    json.MEDIA_TYPE: _OBJECT,
}
_ERRORS: Responses = {
    error.status: {"description": error.title, "content": {problems.MEDIA_TYPE: _OBJECT}}
    for error in ERROR_TYPES
}


def json_responses(*error_statuses: int) -> Responses:
    """Returns the responses of a path that answers with a JSON object or one of these errors."""
    success = {"description": "OK", "content": {json.MEDIA_TYPE: _OBJECT}}
    return {200: success, **{status: _ERRORS[status] for status in error_statuses}}


def operation_responses(summary: str, media_types: Iterable[str]) -> Responses:
    """Returns the responses of an operation: these media types, or an error."""
    content: dict[str, Any] = {media_type: {} for media_type in media_types}
    errors = {status: error for status, error in _ERRORS.items() if status != NotFound.status}
    return {200: {"description": summary, "content": content}, **errors}


def operation_request(options: type[LossOptions]) -> dict[str, Any]:
    """Returns the request of an operation: its query parameters and its body."""
    schemas = options.model_json_schema()["properties"]
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{field.description} Expected: {field.title}.",
            "schema": _query_schema(schemas[name], field.default),
        }
        for name, field in options.model_fields.items()
    ]
    content = {media_type: _BODIES[media_type] for media_type in DECODERS}
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _query_schema(schema: Mapping[str, Any], default: object) -> dict[str, Any]:
    """Returns the schema of an option as a query has it, where lists are texts with commas."""
    if schema.get("type") == "number":
        keywords = ("type", "default", "minimum", "maximum", "exclusiveMinimum")
        return {keyword: schema[keyword] for keyword in keywords if keyword in schema}
    text = option_text(default)
    return {"type": "string", "default": text} if text else {"type": "string"}
