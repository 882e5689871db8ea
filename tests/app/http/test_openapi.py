"""`/openapi.json` describes the operations with their options, bodies and responses."""

import json

from app.http.app import create_app
from app.http.v1 import OPERATIONS


def test_every_operation_and_option_is_described():
    document = create_app().openapi()
    for operation in OPERATIONS:
        documented = document["paths"][f"/v1/{operation.name}"]["post"]
        parameters = {entry["name"] for entry in documented["parameters"]}
        assert parameters == set(operation.options.model_fields)
        assert "application/x-safetensors" in documented["requestBody"]["content"]
        assert documented["responses"]["200"]["content"].keys() == operation.encoders.keys()
        assert {"400", "406", "408", "413", "415", "422", "503"} <= documented["responses"].keys()
    assert "HTTPValidationError" not in json.dumps(document)


def test_the_option_upsampling_is_described():
    document = create_app().openapi()
    for name in ("loss", "gradient", "evaluate", "visualize"):
        parameters = document["paths"][f"/v1/{name}"]["post"]["parameters"]
        (parameter,) = (entry for entry in parameters if entry["name"] == "upsampling")
        assert parameter["schema"] == {"type": "string", "default": "none"}
        assert "one of none, bilinear, bilinear_aligned, fcn" in parameter["description"]
