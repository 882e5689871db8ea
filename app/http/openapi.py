"""The document at `/openapi.json`, made of the same tables and types that answer requests.

The schemas of answers come from the dataclasses of `seg_loss` by their annotations. Binary bodies
are media types without a schema, as in OpenAPI 3.1. A schema cannot say that shapes fit each other:
a body that fits its schema may still be ill-posed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import seg_loss
from seg_loss import Evaluation
from seg_loss.constants import ABSENT, NORMALIZATIONS

from ..errors import ERROR_TYPES, MethodNotAllowed, NotFound, RequestError, Unavailable
from ..formats import json, multipart, safetensors
from ..images.palettes import NUM_COLOURS, OWN, PALETTES, SOURCES
from ..input_reports import MAX_VALUES, REPORTS
from ..inputs import DECODERS, READERS
from ..options import (
    COUNT,
    MAX_IGNORED,
    NUMBER,
    SIZE,
    EvaluateOptions,
    LossOptions,
    PredictOptions,
    VisualizeOptions,
    choices_of,
    option_text,
)
from ..preprocessing import PREPROCESSINGS
from ..results import EVALUATION_FIELDS, LOSS_FIELDS, MAX_MATRIX_CLASSES, PredictedClass
from . import problems

Json = dict[str, Any]

_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_NUMBER_OR_NULL: Json = {"type": ["number", "null"]}
_SCALARS: Mapping[object, Json] = {
    str: _STRING,
    int: _INTEGER,
    float: _NUMBER_OR_NULL,  # JSON has no NaN and no infinity
    float | None: _NUMBER_OR_NULL,
    str | None: {"type": ["string", "null"]},
}
_CHOICES = {"normalization": NORMALIZATIONS, "absent": ABSENT}
"""The members of answers that are a name among choices."""

TAGS: Mapping[str, str] = {
    "Operations": "Tensors or files are sent, options are in the query.",
    "Resources": "What requests can name, and a scene to try them with.",
    "Service": "Health, metrics and this document.",
}
"""The groups of paths, and what the API pages say of them."""
PALETTE_NAME: Json = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The name of a palette.",
    "schema": {"type": "string", "enum": [*PALETTES]},
}
PLAIN_TEXT: Json = {"text/plain": {"schema": _STRING}}
JSON_OBJECT: Json = {json.MEDIA_TYPE: {"schema": {"type": "object"}}}

_HEADERS: Json = {
    "X-Request-ID": {
        "description": "The id of the request: that of the client, or a new one.",
        "schema": _STRING,
    }
}
_RETRY_AFTER: Json = {
    "Retry-After": {"description": "Seconds until the client may try again.", "schema": _INTEGER}
}
_ALLOW: Json = {"Allow": {"description": "The methods of the path.", "schema": _STRING}}

_PATTERNS: Mapping[str, str] = {
    "size": SIZE.pattern,
    "contour_px": COUNT.pattern,
    "border_px": f"none|{COUNT.pattern}",
    "image_index": COUNT.pattern,
    "scale": rf"lnC|0\.\.lnC|auto|percentile| *{NUMBER.pattern} *, *{NUMBER.pattern} *",
    "classes": " *[^ ,][^,]*(, *[^ ,][^,]*)*",
    "colour_classes": " *[^ ,][^,]*(, *[^ ,][^,]*)*",
}
"""The texts of options that are neither numbers nor choices."""

_EXAMPLE = {"logits": [[[[0.5, 2.0]], [[1.5, -1.0]]]], "labels": [[[1, 255]]]}
_LABEL_MAP_EXAMPLE = {"prediction": [[[1, 0]]], "labels": [[[1, 255]]]}
_LOSS_EXAMPLE: Json = {
    "loss": 0.3132616877555847,
    "normalization": "valid",
    "divisor": 1.0,
    "valid_pixels": 1,
    "ignored_pixels": 1,
    "uniform_loss": 0.6931471805599453,
    "per_image": [{"loss": 0.3132616877555847, "valid_pixels": 1}],
    "per_class": [{"pixels": 0, "mean_nll": None}, {"pixels": 1, "mean_nll": 0.3132616877555847}],
    "diagnosis": {
        "state": "learning",
        "advice": "The mean loss of a pixel, 0.3133, is below ln C = 0.6931, the loss of a uniform "
        "prediction: the network tells the classes apart.",
    },
    "inputs": {
        "logits": {"file": "tensor", "dtype": "float32", "shape": [1, 2, 1, 2], "layout": "nchw"},
        "labels": {
            "file": "tensor",
            "mode": None,
            "dtype": "int64",
            "shape": [1, 1, 2],
            "read_as": "indices",
            "label_space": "raw",
            "values": [[1, 1], [255, 1]],
            "values_left_out": 0,
            "ignored_pixels": 1,
        },
    },
    "palette": {
        "name": "voc",
        "source": "default",
        "class_names": [],
        "colours": [[0, 0, 0], [128, 0, 0]],
        "ignore_colour": [224, 224, 192],
    },
    "warnings": [],
}
"""The answer of `/v1/loss` to `_EXAMPLE`."""
_ERRORS: tuple[type[RequestError], ...] = (*ERROR_TYPES, RequestError)
"""All errors: `RequestError` itself stands for those of the service."""
_LABELS_AND_PREDICTED: Json = {
    "required": ["labels"],
    "anyOf": [{"required": [name]} for name in ("logits", "prediction", "image")],
}
_NEEDED: Mapping[type[LossOptions], Json] = {
    EvaluateOptions: _LABELS_AND_PREDICTED,
    VisualizeOptions: {"minProperties": 1},
    PredictOptions: {"minProperties": 1},
}
"""The inputs that an operation with these options needs, if not logits and labels."""
_EXAMPLES: Mapping[type[LossOptions], Json] = {
    EvaluateOptions: {"a label map": {"value": _LABEL_MAP_EXAMPLE}},
}
"""Bodies beside that of two pixels."""


def document(paths: Mapping[str, Any]) -> Json:
    """Returns the document with these paths."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "seg-loss",
            "summary": "The pixel-wise softmax loss of semantic segmentation",
            "version": seg_loss.__version__,
        },
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": dict(paths),
        "components": {"schemas": _schemas(), "responses": _error_responses()},
    }


def operation(
    name: str, summary: str, options: type[LossOptions], media_types: Iterable[str]
) -> Json:
    """Returns the entry of a POST path: its query parameters, its body and its responses."""
    schemas = {
        "loss": _reference("Loss"),
        "evaluate": _reference("Evaluation"),
        "predict": _reference("Prediction"),
    }
    content = {
        media_type: {"schema": schemas[name]} if media_type == json.MEDIA_TYPE else {}
        for media_type in media_types
    }
    statuses = [error.status for error in ERROR_TYPES if error is not NotFound]
    return {
        "operationId": name,
        "tags": ["Operations"],
        "summary": summary,
        "parameters": _parameters(options),
        "requestBody": {
            "required": True,
            "description": f"Tensors or files by name: {', '.join(READERS)}.",
            "content": _bodies(options),
        },
        "responses": _responses(summary, content, statuses),
    }


def resource(
    tag: str,
    summary: str,
    content: Mapping[str, object],
    errors: Iterable[int],
    parameters: Iterable[Mapping[str, object]],
) -> Json:
    """Returns the entry of a GET path."""
    entry = {"tags": [tag], "summary": summary, "parameters": list(parameters)}
    statuses = [*errors, MethodNotAllowed.status]
    return {**entry, "responses": _responses(summary, content, statuses)}


def json_content(schema: str) -> Json:
    """Returns the content of a response in JSON with a schema of that name."""
    return {json.MEDIA_TYPE: {"schema": _reference(schema)}}


def _responses(description: str, content: Mapping[str, object], statuses: Iterable[int]) -> Json:
    success = {"description": description, "headers": _HEADERS, "content": dict(content)}
    errors = {
        f"{status}": {"$ref": f"#/components/responses/{status}"}
        for status in sorted({*statuses, RequestError.status})
    }
    return {"200": success, **errors}


def _error_responses() -> Json:
    return {
        f"{error.status}": {
            "description": error.title,
            "headers": {
                **_HEADERS,
                **(_RETRY_AFTER if error is Unavailable else {}),
                **(_ALLOW if error is MethodNotAllowed else {}),
            },
            "content": {problems.MEDIA_TYPE: {"schema": _reference("Problem")}},
        }
        for error in _ERRORS
    }


def _parameters(options: type[LossOptions]) -> list[Json]:
    schemas = options.model_json_schema()["properties"]
    parameters = []
    for name, field in options.model_fields.items():
        schema = schemas[name]
        choices = choices_of(field)
        is_list = schema.get("type") == "array"
        text = option_text(field.default)
        query: Json = {"type": "string", "default": text} if text else {"type": "string"}
        if choices:
            query["enum"] = [*choices]
        if choices and is_list:
            query.pop("default", None)
            query = {"type": "array", "items": query, "minItems": 1, "uniqueItems": True}
        elif name in _PATTERNS:
            query["pattern"] = f"^({_PATTERNS[name]})$"
        elif is_list:
            integer = " *[+-]?[0-9]{1,18} *"
            query["pattern"] = f"^(none|{integer}(,{integer}){{0,{MAX_IGNORED - 1}}})$"
        elif schema.get("type") == "number":
            keywords = ("type", "default", "minimum", "maximum")
            query = {keyword: schema[keyword] for keyword in keywords}
        elif name == "num_classes":
            query = next(entry for entry in schema["anyOf"] if entry["type"] == "integer")
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": f"{field.description} Expected: {field.title}.",
                "schema": query,
                **({"style": "form", "explode": False} if query["type"] == "array" else {}),
            }
        )
    return parameters


def _bodies(options: type[LossOptions]) -> Json:
    """Returns the content of a request by media type; the first has examples to try."""
    needed = _NEEDED.get(options, {"required": ["logits", "labels"]})
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    integers = {key: _reference("Integers") for key in json.INTEGER_KEYS}
    lists = {key: integers.get(key, _reference("Numbers")) for key in json.KEYS}
    bodies: Json = {
        safetensors.MEDIA_TYPE: {},
        multipart.MEDIA_TYPE: {"schema": _object(dict.fromkeys(READERS, file), **needed)},
        json.MEDIA_TYPE: {
            "schema": _object(lists, **needed),
            "examples": {"two pixels": {"value": _EXAMPLE}, **_EXAMPLES.get(options, {})},
        },
    }
    media_types = sorted(DECODERS, key=lambda media_type: media_type != json.MEDIA_TYPE)
    return {media_type: bodies[media_type] for media_type in media_types}


def _schemas() -> Json:
    counts = {"type": "array", "items": _INTEGER}
    matrix = {
        "description": f"The confusion matrix, rows = truth. Up to {MAX_MATRIX_CLASSES} classes: "
        "its rows. More classes: the triplets [row, column, count] of the entries that are not 0.",
        "oneOf": [
            {"type": "array", "items": counts},
            _answer(
                {
                    "num_classes": _INTEGER,
                    "triplets": {
                        "type": "array",
                        "items": {**counts, "minItems": 3, "maxItems": 3},
                    },
                }
            ),
        ],
    }
    warnings = {"type": "array", "items": _STRING}
    colour = {**counts, "minItems": 3, "maxItems": 3}
    echo = {"inputs": _reference("Inputs"), "palette": _reference("ChosenPalette")}
    hints = {name: _hint_of(Evaluation, name) for name in EVALUATION_FIELDS}
    evaluation = {**_properties(hints), "confusion": matrix}
    loss = {name: evaluation[name] for name in LOSS_FIELDS}
    without_logits = "null for a prediction without logits, like every loss."
    palette = {
        "name": {"type": "string", "enum": [*PALETTES]},
        "num_classes": _INTEGER,
        "class_names": {"type": "array", "items": _STRING},
        "ignore_index": _INTEGER,
        "background_index": {"type": ["integer", "null"]},
        "shared_colours": {
            "type": "array",
            "description": "Colours that several classes have.",
            "items": _answer({"colour": colour, "classes": counts}),
        },
    }
    chosen_palette = {
        "name": {"type": "string", "enum": [*PALETTES, OWN]},
        "source": {
            "type": "string",
            "enum": [*SOURCES],
            "description": "What has decided on the palette: the request, the network that is "
            "served, the file of a label map, the number of classes or the values, or nothing.",
        },
        "class_names": {
            "type": "array",
            "items": _STRING,
            "description": "Names of the classes from 0 on; there may be fewer than classes.",
        },
        "colours": {
            "type": "array",
            "items": colour,
            "description": "Red, green and blue of each class.",
        },
        "ignore_colour": colour,
    }
    model = {
        "network": {**_STRING, "description": "fcn8s and the like, or package.module:callable."},
        "num_classes": _INTEGER,
        "class_names": {"type": "array", "items": _STRING},
        "preprocessing": {"type": "string", "enum": [*PREPROCESSINGS]},
        "max_photo_pixels": _INTEGER,
        "tile_side_pixels": _INTEGER,
        "tile_overlap_pixels": _INTEGER,
    }
    colours = {
        "type": "array",
        "items": colour,
        "minItems": NUM_COLOURS,
        "maxItems": NUM_COLOURS,
    }
    return {
        "Numbers": _lists_of("number", "Numbers"),
        "Integers": _lists_of("integer", "Integers"),
        "Loss": {**_answer({**loss, **echo, "warnings": warnings}), "examples": [_LOSS_EXAMPLE]},
        "Evaluation": _answer(
            {
                **evaluation,
                "diagnosis": _or_null(evaluation["diagnosis"], without_logits),
                "calibration": _or_null(evaluation["calibration"], without_logits),
                **echo,
                "warnings": warnings,
            }
        ),
        "Prediction": _answer(
            {
                "num_images": _INTEGER,
                "size": {**counts, "description": "Height and width, or all spatial axes."},
                "num_classes": _INTEGER,
                "classes": {
                    "type": "array",
                    "description": "The classes that some pixel is predicted as.",
                    "items": _schema_of(PredictedClass),
                },
                "evaluation": {
                    "description": "Loss and metrics, with labels; else null.",
                    "oneOf": [_answer(evaluation), {"type": "null"}],
                },
                **echo,
                "warnings": warnings,
            }
        ),
        "Inputs": {
            **_object({name: _schema_of(report) for name, report in REPORTS.items()}),
            "description": "What was found in each input that was sent. The values of label maps "
            "are pairs of a value and its number of pixels, by value, as they are in the file; of "
            f"more than {MAX_VALUES} those with the most pixels.",
        },
        "ChosenPalette": _answer(chosen_palette),
        "Palettes": _answer({"palettes": {"type": "array", "items": _answer(palette)}}),
        "Palette": _answer({**palette, "colours": colours}),
        "Model": _answer(
            {
                "model": {
                    "description": "The network, which computes the logits of photos, or null.",
                    "oneOf": [_answer(model), {"type": "null"}],
                }
            }
        ),
        "Status": _answer({"status": {"type": "string", "enum": ["live", "ready"]}}),
        "Problem": _problem(),
    }


def _problem() -> Json:
    """Returns the schema of a problem document (RFC 9457)."""
    always = {
        "type": {"type": "string", "format": "uri"},
        "title": _STRING,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {**_STRING, "description": "where: expected ..., got .... fix"},
        "error": {**_STRING, "description": "The same as detail."},
        "code": {**_STRING, "examples": [error.code for error in ERROR_TYPES]},
        "request_id": _STRING,
    }
    names = {"type": "array", "items": _STRING}
    sometimes = {
        **dict.fromkeys(("where", "expected", "got", "fix"), _STRING),
        **dict.fromkeys(("accepted", "offered", "routes"), names),
        **dict.fromkeys(("limit", "retry_after_seconds"), _INTEGER),
    }
    example = {
        "type": "urn:seg-loss:ill_posed",
        "title": "Ill-posed input",
        "status": 422,
        "detail": "normalization: expected one of valid, full, got 'ful'. Did you mean full?",
        "error": "normalization: expected one of valid, full, got 'ful'. Did you mean full?",
        "code": "ill_posed",
        "request_id": "a-1",
        "where": "normalization",
        "expected": "one of valid, full",
        "got": "'ful'",
        "fix": "Did you mean full?",
    }
    schema = {"type": "object", "properties": {**always, **sometimes}, "required": [*always]}
    return {**schema, "examples": [example]}


def _schema_of(hint: Any) -> Json:
    """Returns the schema of the JSON that `results.to_jsonable` makes of a value of this type."""
    if isinstance(hint, type) and is_dataclass(hint):
        return _answer(_properties(get_type_hints(hint)))
    if get_origin(hint) is tuple:
        return {"type": "array", "items": _schema_of(get_args(hint)[0])}
    return _SCALARS.get(hint, {})


def _properties(hints: Mapping[str, Any]) -> Json:
    return {
        name: {**_STRING, "enum": [*_CHOICES[name]]} if name in _CHOICES else _schema_of(hint)
        for name, hint in hints.items()
    }


def _hint_of(owner: type, name: str) -> type | UnionType:
    """Returns the type of a field or a cached property."""
    member = getattr(owner, name, None)
    hints = get_type_hints(owner if member is None else member.func)
    hint: type | UnionType = hints[name if member is None else "return"]
    return hint


def _lists_of(kind: str, name: str) -> Json:
    """Returns the schema of nested lists, which refers to itself."""
    entries = {"anyOf": [{"type": kind}, _reference(name)]}
    return {"type": "array", "items": entries, "minItems": 1}


def _object(properties: Mapping[str, object], **more: object) -> Json:
    return {"type": "object", "properties": properties, "additionalProperties": False, **more}


def _or_null(schema: Json, description: str) -> Json:
    return {"description": description, "oneOf": [schema, {"type": "null"}]}


def _answer(properties: Mapping[str, object]) -> Json:
    return _object(properties, required=[*properties])


def _reference(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
