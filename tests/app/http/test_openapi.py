"""`/openapi.json` describes the operations with their options, bodies and responses."""

import json

import pytest
from serving import assert_problem

from app.errors import ERROR_TYPES
from app.formats import multipart
from app.http.app import create_app
from app.http.v1 import OPERATIONS, RESOURCES, openapi_document
from app.inputs import DECODERS, READERS
from app.options import (
    EvaluateOptions,
    LossOptions,
    PredictOptions,
    VisualizeOptions,
    choices_of,
    parse,
)

DOCUMENT = openapi_document()
SCHEMAS = DOCUMENT["components"]["schemas"]
PATHS = {f"/v1/{operation.name}": operation for operation in OPERATIONS}

every_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda row: row.name)


def entry_of(operation):
    return DOCUMENT["paths"][f"/v1/{operation.name}"]["post"]


def test_the_document_is_that_of_the_application(client):
    assert create_app().openapi() == DOCUMENT
    assert client.get("/openapi.json").json() == DOCUMENT
    assert DOCUMENT["paths"].keys() == {*PATHS, *(resource.path for resource in RESOURCES)}


@every_operation
def test_every_operation_and_option_is_described(operation):
    documented = entry_of(operation)
    parameters = {entry["name"] for entry in documented["parameters"]}
    assert parameters == set(operation.options.model_fields)
    assert documented["requestBody"]["content"].keys() == DECODERS.keys()
    assert documented["responses"]["200"]["content"].keys() == operation.encoders.keys()


@pytest.mark.parametrize(
    "options", [LossOptions, EvaluateOptions, VisualizeOptions, PredictOptions]
)
def test_every_choice_is_an_enumeration(options):
    (operation,) = (row for row in OPERATIONS if row.options is options)
    for parameter in entry_of(operation)["parameters"]:
        field = options.model_fields[parameter["name"]]
        schema = parameter["schema"]
        if field.title.startswith(("one of", "some of")):
            names = schema.get("enum") or schema["items"]["enum"]
            assert names == [*choices_of(field)]
            assert ", ".join(names) in field.title
            for name in names:
                parse(options, [(parameter["name"], name)])
        else:
            assert not choices_of(field)
            assert schema["type"] in ("number", "integer") or "pattern" in schema
        if "default" in schema:
            parse(options, [(parameter["name"], f"{schema['default']}")])


@every_operation
def test_the_inputs_that_an_operation_needs_are_required(operation):
    content = entry_of(operation)["requestBody"]["content"]
    for media_type in ("multipart/form-data", "application/json"):
        schema = content[media_type]["schema"]
        needed = {"required": ["logits", "labels"]}
        if operation.name in ("visualize", "predict"):
            needed = {"minProperties": 1}
        if operation.name == "evaluate":
            some = [{"required": [name]} for name in ("logits", "prediction", "image")]
            needed = {"required": ["labels"], "anyOf": some}
        assert {key: schema[key] for key in needed} == needed
        assert schema["properties"].keys() <= READERS.keys()
    assert content[multipart.MEDIA_TYPE]["schema"]["properties"].keys() == READERS.keys()


@every_operation
def test_the_examples_of_bodies_are_answered(client, operation):
    examples = entry_of(operation)["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        response = client.post(f"/v1/{operation.name}", json=example["value"])
        assert response.status_code == 200, response.text
        if operation.name == "loss":
            (documented,) = SCHEMAS["Loss"]["examples"]
            answer = response.json()
            for losses in (answer, *answer["per_image"], answer["per_class"][1]):
                name = "mean_nll" if "mean_nll" in losses else "loss"
                losses[name] = pytest.approx(losses[name], rel=1e-6)  # processors differ
            assert documented == answer


def test_every_error_is_documented_where_it_can_occur():
    statuses = {f"{error.status}" for error in ERROR_TYPES}
    assert DOCUMENT["components"]["responses"].keys() == {*statuses, "500"}
    for operation in OPERATIONS:
        assert entry_of(operation)["responses"].keys() == {"200", "500", *statuses} - {"404"}
    for resource in RESOURCES:
        documented = DOCUMENT["paths"][resource.path]["get"]["responses"].keys()
        assert documented == {"200", "405", "500", *map(str, resource.errors)}
    assert [row.path for row in RESOURCES if 404 in row.errors] == ["/v1/palettes/{name}"]


def test_every_error_has_the_members_of_the_documented_problem(client):
    schema = SCHEMAS["Problem"]
    for response, status, code in (
        (client.get("/nothing"), 404, "not_found"),
        (client.request("PUT", "/livez"), 405, "method_not_allowed"),
        (client.post("/v1/loss", json={"a": 1}), 422, "ill_posed"),
        (client.post("/v1/loss", content=b"x"), 415, "unsupported_media"),
        (client.get("/v1/palettes", headers={"Accept": "a/b"}), 406, "not_acceptable"),
        (client.post("/v1/loss", json=[0] * 70_000), 413, "too_large"),
    ):
        problem = assert_problem(response, status, code)
        assert set(schema["required"]) <= problem.keys() <= schema["properties"].keys()
    (example,) = schema["examples"]
    assert set(schema["required"]) <= example.keys() <= schema["properties"].keys()


def test_every_reference_leads_somewhere():
    text = json.dumps(DOCUMENT)
    assert "HTTPValidationError" not in text
    for name in SCHEMAS:
        assert f"#/components/schemas/{name}" in text
    for part in text.split('"$ref": "#/')[1:]:
        target = DOCUMENT
        for key in part.partition('"')[0].split("/"):
            target = target[key]
